"""ingest: equal to its twin for every dtype, size, shift, flip and gather; border and error cases."""

from __future__ import annotations

import functools

import pytest
import torch

from ulfast import ops
from ulfast.ops import crossover, reference

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@functools.lru_cache(maxsize=32)
def orthonormal(d: int, k: int) -> torch.Tensor:
    """(k, d) float32; decomposing large ones takes longer than the test."""
    g = torch.Generator().manual_seed(d + k)
    return torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64))[0].T.float().contiguous()


def make(n: int, h: int, w: int, c: int, k: int):
    g = torch.Generator().manual_seed(n + h + w + c + k)
    images = torch.randint(0, 256, (n, h, w, c), generator=g, dtype=torch.uint8)
    basis = orthonormal(h * w * c, min(k, h * w * c)).clone()
    mean, std = torch.rand(c, generator=g), torch.rand(c, generator=g) + 0.2
    return images, basis, mean, std


@pytest.mark.pairs("level", "dtype")
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    "size", [(32, 32, 3), (5, 7, 1), (9, 8, 3), (1, 1, 3), (3, 900, 3), (64, 64, 4), (2, 5, 2), (224, 224, 3)]
)
@pytest.mark.parametrize("k", [0, 1, 9])
def test_matches_its_twin(level, dtype, size, k):
    images, basis, mean, std = make(5, *size, k)
    index = torch.tensor([4, 0, 3, 3, 1, 2])
    shift = torch.tensor([[0, 0], [4, -4], [-1, 2], [3, 0], [-4, -4], [500, -900]], dtype=torch.int32)
    flip = torch.tensor([False, True, False, True, True, False])
    args = (images, basis if k else None, mean, std, dtype, index, shift, flip)
    got = ops.ingest(*args[:4], dtype=dtype, index=index, shift=shift, flip=flip)
    want = reference.ingest(*args)
    assert got.shape == (6, size[2], size[0], size[1])
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    scale = want.float().abs().max().clamp_min(1)
    assert (got.float() - want.float()).abs().max() <= TOLERANCE[dtype] * scale


@pytest.mark.pairs
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "k"), [((32, 32, 3), 9), ((32, 32, 3), 0), ((9, 8, 3), 3), ((3, 900, 3), 2), ((5, 7, 1), 1)]
)
def test_floats_are_read_as_they_are(level, stored, size, k):
    images, basis, mean, std = make(6, *size, k)
    images = (images.double() / 255 - 0.1).to(stored)
    shift = torch.tensor([[0, 0], [2, -3], [-1, 2], [3, 0], [0, 0], [1, 1]], dtype=torch.int32)
    flip = torch.tensor([False, True, False, True, True, False])
    index = torch.tensor([5, 0, 3, 3, 1, 2])
    for dtype in (torch.float32, torch.bfloat16):
        got = ops.ingest(images, basis if k else None, mean, std, dtype=dtype, index=index, shift=shift, flip=flip)
        want = reference.ingest(images.float(), basis if k else None, mean, std, torch.float32, index, shift, flip)
        assert got.dtype == dtype
        assert (got.float() - want).abs().max() <= TOLERANCE[dtype] * want.abs().max().clamp_min(1)


def test_crop_is_a_pad_and_a_slice():
    images, _, _, _ = make(1, 8, 8, 3, 0)
    x = images[0].permute(2, 0, 1).float() / 255
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    got = ops.ingest(images, None, [0.0] * 3, [1.0] * 3, shift=torch.tensor([[-3, 2]], dtype=torch.int32))
    torch.testing.assert_close(got[0], padded[:, 1:9, 6:14])


def test_black_border_is_normalised():
    images = torch.full((1, 4, 4, 1), 255, dtype=torch.uint8)
    got = ops.ingest(images, None, [0.5], [0.25], shift=torch.tensor([[1, 0]], dtype=torch.int32))
    torch.testing.assert_close(got[0, 0, :, 0], torch.tensor([2.0, 2.0, 2.0, -2.0]))


def test_large_basis_and_wide_images_go_to_the_library():
    rank = crossover.FUSED_RANK["cpu"]["ingest"][torch.uint8] + 1
    images, basis, mean, std = make(3, 6, 6, 3, rank)
    index = torch.tensor([2, 0])
    moves = {"index": index, "shift": torch.tensor([[1, -2], [0, 3]], dtype=torch.int32), "flip": index > 0}
    got = ops.ingest(images, basis, mean, std, **moves)
    want = reference.ingest(images, basis, mean, std, torch.float32, **moves)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    labels = torch.tensor([1, 0])
    got = ops.ingest(images, torch.stack([basis, -basis.flip(1)]), mean, std, labels=labels, **moves)
    each = [reference.ingest(images, b, mean, std, torch.float32, **moves) for b in (basis, -basis.flip(1))]
    torch.testing.assert_close(got, torch.stack([each[1][0], each[0][1]]), atol=1e-4, rtol=1e-4)
    images, basis, mean, std = make(2, 1, 4000, 3, 2)
    torch.testing.assert_close(
        ops.ingest(images, basis, mean, std),
        reference.ingest(images, basis, mean, std, torch.float32),
        atol=1e-4,
        rtol=1e-4,
    )


def test_empty_batch_and_any_thread_count(threads):
    images, basis, mean, std = make(21, 8, 8, 3, 5)
    empty = ops.ingest(images, basis, mean, std, index=torch.empty(0, dtype=torch.int64))
    assert empty.shape == (0, 3, 8, 8)
    want = ops.ingest(images, basis, mean, std)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(ops.ingest(images, basis, mean, std), want)


def test_half_precision_rounds_to_nearest_even(level):
    """Every byte, at a scale that meets subnormal, normal and infinite halves."""
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    for std in (1.0, 3e4, 1e7, 1e-5):
        for dtype in (torch.float16, torch.bfloat16):
            exact = ops.ingest(images, None, [0.0], [std])
            assert torch.equal(ops.ingest(images, None, [0.0], [std], dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 4, 4, 3, dtype=torch.int32)}, ValueError, "uint8 or of a floating"),
        ({"basis": torch.zeros(1, 5)}, ValueError, r"\(k, 48\)"),
        ({"mean": [0.0]}, ValueError, "3 values"),
        ({"dtype": torch.float64}, TypeError, "float32, bfloat16 or float16"),
        ({"index": torch.tensor([0, 2])}, IndexError, r"index\[1\] is 2, outside \[0, 2\)"),
        ({"index": torch.tensor([0.0])}, ValueError, "int64"),
        ({"shift": torch.zeros(2, 2)}, ValueError, "int32"),
        ({"flip": torch.zeros(3, dtype=torch.bool)}, ValueError, r"\(2,\) bool"),
    ],
)
def test_errors(change, error, message):
    args = {"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "basis": None, "mean": [0.0] * 3, "std": [1.0] * 3}
    args |= change
    with pytest.raises(error, match=message):
        ops.ingest(args.pop("images"), args.pop("basis"), args.pop("mean"), args.pop("std"), **args)


def test_opcheck_and_compile():
    images, basis, mean, std = make(3, 4, 4, 3, 2)
    index = torch.tensor([2, 0])
    torch.library.opcheck(torch.ops.ulfast.ingest.default, (images, basis, mean, std, torch.bfloat16, index))
    compiled = torch.compile(lambda i: ops.ingest(i, basis, mean, std) * 2, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), ops.ingest(images, basis, mean, std) * 2)
