"""project_classwise: against float64 row by row, every dtype and level; labels in any order; derivatives; errors."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast import ops
from ulfast.ops import crossover, reference

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = {torch.uint8: 6e-8, torch.float32: 6e-8, torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float64: 1.2e-16}


@functools.lru_cache(maxsize=32)
def orthonormal(d, c, r):
    """(c, r, d) float64; decomposing large ones takes longer than the test."""
    g = torch.Generator().manual_seed(31 * d + 7 * c + r)
    return torch.linalg.qr(torch.randn(c, d, r, generator=g, dtype=torch.float64))[0].mT.contiguous()


def make(n, d, c, r, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed + n + 31 * d + 7 * c + r)
    x = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    bases = orthonormal(d, c, r)
    labels = torch.randint(0, c, (n,), generator=g)
    return x, bases.clone() if dtype == torch.float64 else bases.float(), labels


def oracle(x, bases, labels):
    rows, b = reference.unit(x, torch.float64), bases.double()
    return torch.stack([row - (row @ b[y].T) @ b[y] for row, y in zip(rows, labels.tolist(), strict=True)])


def check(x, bases, labels, y):
    truth = oracle(x, bases, labels)
    assert y.shape == x.shape
    assert y.dtype == (torch.float32 if x.dtype == torch.uint8 else x.dtype)
    # As for `project`: the same-dtype rounding of the result, twice.
    assert (y.double() - truth).norm() <= 4 * EPS[x.dtype] * truth.numel() ** 0.5


@pytest.mark.pairs("level", "dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 3072, 3073])
@pytest.mark.parametrize(("c", "r"), [(1, 1), (3, 1), (10, 1), (10, 3), (4, 17)])
def test_matches_float64(level, dtype, d, c, r):
    x, bases, labels = make(23, d, c, min(r, d), dtype)
    check(x, bases, labels, ops.project_classwise(x, bases, labels))


def test_imagenet_shape():
    x, bases, labels = make(5, 150528, 3, 1)
    check(x, bases, labels, ops.project_classwise(x, bases, labels))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 60),
    d=st.integers(1, 200),
    c=st.integers(1, 12),
    r=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 5),
)
def test_any_shape(n, d, c, r, dtype, threads):
    x, bases, labels = make(n, d, c, min(r, d), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = ops.project_classwise(x, bases, labels)
    finally:
        torch.set_num_threads(before)
    if n:
        check(x, bases, labels, y)
    assert y.shape == x.shape


def test_a_row_does_not_depend_on_its_neighbours(threads):
    x, bases, labels = make(101, 3072, 10, 2)
    threads(1)
    one = ops.project_classwise(x, bases, labels)
    threads(4)
    assert torch.equal(one, ops.project_classwise(x, bases, labels))
    order = torch.randperm(101)
    assert torch.equal(one[order], ops.project_classwise(x[order], bases, labels[order]))
    alone = torch.stack([ops.project(x[i : i + 1], bases[labels[i]])[0] for i in range(101)])
    assert torch.equal(one, alone)


def test_one_class_is_project():
    x, bases, _ = make(40, 300, 1, 4)
    assert torch.equal(ops.project_classwise(x, bases, torch.zeros(40, dtype=torch.int64)), ops.project(x, bases[0]))


def test_large_results_images_and_strides():
    x, bases, labels = make(1500, 3072, 7, 1)
    got = ops.project_classwise(x, bases, labels)
    torch.testing.assert_close(got, reference.project_classwise(x, bases, labels), atol=2e-6, rtol=0)
    assert torch.equal(ops.project_classwise(x.view(1500, 32, 32, 3), bases, labels), got.view(1500, 32, 32, 3))
    assert torch.equal(ops.project_classwise(x[::3], bases, labels[::3]), got[::3])


def test_library_product_above_the_fused_rank():
    x, bases, labels = make(30, 200, 4, crossover.FUSED_RANK["cpu"]["project_classwise"][torch.float32] + 5)
    check(x, bases, labels, ops.project_classwise(x, bases, labels))
    with pytest.raises(IndexError, match=r"labels\[2\] is 4"):
        ops.project_classwise(x, bases, torch.tensor([0, 1, 4] + [0] * 27))


def test_the_twin_agrees_and_marks_bad_labels():
    x, bases, labels = make(20, 100, 4, 2)
    check(x, bases, labels, reference.project_classwise(x, bases, labels))
    labels[3] = 9
    got = reference.project_classwise(x, bases, labels)
    assert got[3].isnan().all()
    assert not got[torch.arange(20) != 3].isnan().any()


def test_ingest_takes_a_classwise_basis(level):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 8, 8, 3), generator=g, dtype=torch.uint8)
    _, bases, labels = make(30, 192, 5, 2)
    index = torch.tensor([3, 3, 29, 0, 11, 7, 8])
    shift = torch.randint(-2, 3, (7, 2), generator=g, dtype=torch.int32)
    flip = torch.rand(7, generator=g) < 0.5
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    for b in (bases, torch.cat([bases] * 20, 1)):  # fused, and by library products
        b = torch.linalg.qr(b.mT)[0].mT.contiguous()
        got = ops.ingest(images, b, mean, std, index=index, shift=shift, flip=flip, labels=labels[index])
        want = reference.ingest(images, b, mean, std, torch.float32, index, shift, flip, labels[index])
        torch.testing.assert_close(got, want, atol=3e-5, rtol=1e-5)
        assert got.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(IndexError, match=r"labels\[1\] is 5"):
        ops.ingest(images, bases, mean, std, index=index[:2], labels=torch.tensor([0, 5]))
    with pytest.raises(IndexError, match=r"index\[1\] is 30"):
        ops.ingest(images, bases, mean, std, index=torch.tensor([0, 30]), labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels must be"):
        ops.ingest(images, bases, mean, std, index=index)
    with pytest.raises(ValueError, match="class-wise basis"):
        ops.ingest(images, bases[0], mean, std, labels=labels)


def test_gradients():
    x, bases, labels = make(5, 7, 3, 2, torch.float64)
    x, bases = x.requires_grad_(), bases.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.project_classwise(a, b, labels), (x, bases))
    assert torch.autograd.gradgradcheck(lambda a: ops.project_classwise(a, bases.detach(), labels), (x,))


@pytest.mark.parametrize("r", [2, 200])
def test_into_existing_memory(r):
    for dtype in (torch.float32, torch.uint8):
        x, bases, labels = make(9, 300, 4, r, dtype)
        want = ops.project_classwise(x, bases, labels)
        out = torch.full_like(want, torch.nan)
        assert ops.project_classwise(x, bases, labels, out=out) is out
        assert torch.equal(out, want)
        with pytest.raises(IndexError, match=r"labels\[0\] is 4"):
            ops.project_classwise(x, bases, labels * 0 + 4, out=out)
        for wrong in (torch.empty(9, 299), torch.empty(9, 300, dtype=torch.float64), torch.empty(300, 9).T):
            with pytest.raises(ValueError, match="out must be a contiguous"):
                ops.project_classwise(x, bases, labels, out=wrong)


def test_opcheck_compile_and_vmap():
    for dtype in (torch.float32, torch.float64, torch.uint8):
        x, bases, labels = make(5, 11, 3, 2, dtype)
        x = x.requires_grad_() if dtype.is_floating_point else x
        torch.library.opcheck(torch.ops.ulfast.project_classwise.default, (x, bases, labels))
    x, bases, labels = make(6, 48, 4, 2)
    torch.library.opcheck(torch.ops.ulfast.project_classwise_out.default, (x, bases, labels, torch.empty_like(x)))
    want = ops.project_classwise(x, bases, labels)
    compiled = torch.compile(lambda t: ops.project_classwise(t, bases, labels) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), want + 1)
    batched = torch.func.vmap(ops.project_classwise, (0, None, 0))(x.view(2, 3, 48), bases, labels.view(2, 3))
    torch.testing.assert_close(batched.view(6, 48), want)
    same = torch.func.vmap(ops.project_classwise, (0, None, None))(x.view(2, 3, 48), bases, labels[:3])
    torch.testing.assert_close(same[0], want[:3])
    with pytest.raises(ValueError, match="vmap over the bases"):
        torch.func.vmap(ops.project_classwise, (None, 0, None))(x, bases[None], labels)


@pytest.mark.parametrize(
    ("x", "bases", "labels", "error", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(3, 1, 4), torch.tensor([0, 3]), IndexError, r"\[1\] is 3, outside \[0, 3\)"),
        (torch.zeros(2, 4), torch.zeros(3, 1, 4), torch.tensor([-1, 0]), IndexError, r"labels\[0\] is -1"),
        (torch.zeros(2, 4), torch.zeros(3, 1, 4), torch.tensor([0]), ValueError, r"labels must be \(2,\) int64"),
        (torch.zeros(2, 4), torch.zeros(3, 1, 4), torch.tensor([0.0, 1.0]), ValueError, "float32"),
        (torch.zeros(2, 4), torch.zeros(1, 4), torch.tensor([0, 0]), ValueError, r"bases must be \(c, r, 4\)"),
        (torch.zeros(2, 4, dtype=torch.int32), torch.zeros(3, 1, 4), torch.tensor([0, 0]), TypeError, "uint8, float16"),
    ],
)
def test_errors(x, bases, labels, error, message):
    with pytest.raises(error, match=message):
        ops.project_classwise(x, bases, labels)
