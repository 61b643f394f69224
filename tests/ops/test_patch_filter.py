"""patch_filter: equal to its twin on every CPU level, size and thread count, and by the way that a GPU takes; what it
refuses."""

from __future__ import annotations

import itertools

import pytest
import torch

from ulfast import ops
from ulfast.ops import cuda_filters, reference


def make(n, h, w, c, taps, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + h + w + c)
    x = torch.rand(n, h, w, c, generator=g).to(dtype)
    return x, torch.randn(taps, taps, taps, taps, c, c, generator=g) / taps


@pytest.mark.parametrize(
    ("size", "taps"),
    [
        ((5, 32, 32, 3), 5),
        ((1, 7, 16, 3), 7),
        ((4, 9, 17, 3), 3),
        ((2, 13, 50, 1), 13),
        ((3, 5, 24, 2), 5),
        ((2, 5, 13, 4), 3),
        ((2, 40, 70, 3), 9),
        ((1, 5, 5, 3), 5),
        ((2, 6, 6, 5), 3),
        ((0, 8, 32, 3), 3),
    ],
)
def test_matches_its_twin(level, size, taps):
    x, filters = make(*size, taps)
    want = reference.patch_filter(x.double(), filters)
    got = ops.patch_filter(x, filters)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)


def test_any_thread_count_and_strides(threads):
    x, filters = make(11, 12, 20, 3, 5)
    want = ops.patch_filter(x, filters)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(ops.patch_filter(strided, filters), want)
        # Images do not depend on those that come with them, but for the order of no sum.
        assert torch.equal(ops.patch_filter(x[3:10], filters), want[3:10])


def test_nothing_leaks_in_from_outside_an_image():
    x, filters = make(4, 8, 16, 3, 3)
    x[1] = torch.nan
    got = ops.patch_filter(x, filters)
    assert torch.isfinite(got[[0, 2, 3]]).all()
    assert torch.isnan(got[1]).all()


SIDES = {1: (1, 2, 7), 3: (3, 4, 9), 5: (5, 6, 17), 13: (13, 14, 26, 31)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("c", [1, 2, 3, 4])
@pytest.mark.parametrize("taps", SIDES)
def test_the_convolutions_of_a_gpu_match_the_twin(taps, c, dtype):
    """On the CPU's tensors: nothing in them knows a device."""
    bound = 1e-12 if dtype == torch.float64 else 2e-5
    for h, w in itertools.product(SIDES[taps], repeat=2):
        x, filters = make(2, h, w, c, taps, dtype)
        before = x.clone()
        got = cuda_filters.patch_filter(x, filters)
        assert got.dtype == dtype
        assert got.is_contiguous()
        torch.testing.assert_close(got.double(), reference.patch_filter(x.double(), filters), atol=bound, rtol=bound)
        assert torch.equal(x, before)


def test_the_convolutions_of_a_gpu_take_strides_few_images_and_half():
    x, filters = make(3, 9, 12, 3, 5)
    want = cuda_filters.patch_filter(x, filters)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(cuda_filters.patch_filter(strided, filters), want, atol=1e-5, rtol=1e-5)
    assert cuda_filters.patch_filter(x[:0], filters).shape == (0, 9, 12, 3)
    x[1] = torch.nan
    got = cuda_filters.patch_filter(x, filters)
    torch.testing.assert_close(got[[0, 2]], want[[0, 2]], atol=1e-5, rtol=1e-5)
    half = cuda_filters.patch_filter(x[::2].bfloat16(), filters)
    assert half.dtype == torch.bfloat16
    assert (half.float() - want[::2]).abs().max() < 2**-6 * want.abs().max()
    with pytest.raises(ValueError, match="sides of 5 or more"):
        cuda_filters.patch_filter(x[:, :4], filters)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("size", "taps"), [((5, 32, 32, 3), 13), ((2, 224, 224, 3), 13), ((3, 5, 9, 4), 5), ((2, 6, 6, 5), 3)]
)
def test_on_a_gpu(gpu, size, taps):
    """Also in a CUDA graph, and without waiting for the device."""
    x, filters = make(*size, taps)
    want = ops.patch_filter(x, filters)
    x, filters = x.cuda(), filters.cuda()
    torch.testing.assert_close(ops.patch_filter(x, filters).cpu(), want, atol=5e-5, rtol=5e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.patch_filter(x, filters)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.patch_filter(x, filters)
    got.zero_()
    graph.replay()
    torch.testing.assert_close(got.cpu(), want, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_go_to_the_twin(dtype):
    x, filters = make(2, 8, 20, 3, 3, dtype)
    torch.testing.assert_close(ops.patch_filter(x, filters), reference.patch_filter(x, filters))


def test_registration():
    x, filters = make(2, 8, 16, 3, 3)
    torch.library.opcheck(torch.ops.ulfast.patch_filter.default, (x, filters))
    compiled = torch.compile(ops.patch_filter, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, filters), ops.patch_filter(x, filters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8, 16, 3, dtype=torch.uint8)}, "floating format"),
        ({"x": torch.zeros(2, 8, 16)}, "must be"),
        ({"x": torch.zeros(2, 2, 16, 3)}, "sides of 3 or more"),
        ({"filters": torch.zeros(3, 3, 3, 3, 3, 1)}, "filters must be"),
        ({"filters": torch.zeros(4, 4, 4, 4, 3, 3)}, "T odd"),
    ],
)
def test_errors(change, message):
    x, filters = make(2, 8, 16, 3, 3)
    with pytest.raises(ValueError, match=message):
        ops.patch_filter(**{"x": x, "filters": filters, **change})
