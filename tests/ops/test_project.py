"""project: against float64, every dtype, level, size at tile edges, layout; derivatives; compile; errors."""

from __future__ import annotations

import functools
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast import ops
from ulfast.ops import crossover, reference
from ulfast.projection.layer import OrthogonalProjection

DTYPES = [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
# One unit in the last place at 1.0: a smaller error says nothing about a kernel.
EPS = {torch.uint8: 6e-8, torch.float32: 6e-8, torch.float16: 5e-4, torch.bfloat16: 4e-3, torch.float64: 1.2e-16}


@functools.lru_cache(maxsize=32)
def orthonormal(d: int, k: int) -> torch.Tensor:
    """(k, d) float64; decomposing large ones takes longer than the test."""
    g = torch.Generator().manual_seed(31 * d + 1009 * k)
    return torch.linalg.qr(torch.randn(d, k, generator=g, dtype=torch.float64))[0].T.contiguous()


def make(n: int, d: int, k: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed + n + 31 * d + 1009 * k)
    x = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    x = x if dtype == torch.uint8 else (x / 255).to(dtype)
    basis = orthonormal(d, k)
    return x, basis.clone() if dtype == torch.float64 else basis.float()


def oracle(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The result in float64; float64 itself is compared with the processor's longest format."""
    rows, b = reference.unit(x, torch.float64), basis.double()
    if x.dtype == torch.float64:
        long_rows, long_b = rows.numpy().astype(np.longdouble), b.numpy().astype(np.longdouble)
        return torch.from_numpy((long_rows - (long_rows @ long_b.T) @ long_b).astype(np.float64))
    return rows - (rows @ b.T) @ b


def torch_expression(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """What a user would write in the same dtype (bytes become float32)."""
    rows = reference.unit(x, torch.float32 if x.dtype == torch.uint8 else x.dtype)
    b = basis.to(rows.dtype)
    return rows - (rows @ b.T) @ b


def assert_as_good_as_torch(x: torch.Tensor, basis: torch.Tensor, y: torch.Tensor) -> None:
    truth = oracle(x, basis)
    ours, theirs = (y.double() - truth).norm(), (torch_expression(x, basis).double() - truth).norm()
    floor = EPS[x.dtype] * truth.numel() ** 0.5
    assert ours <= 2 * max(theirs, floor), f"error {ours:.2e}, torch {theirs:.2e}"


@pytest.mark.pairs("level", "dtype")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 15, 16, 17, 3072, 3073, 12288])
@pytest.mark.parametrize("k", [1, 3, 10, 16, 17, 100])
def test_matches_float64(level, dtype, d, k):
    x, basis = make(7, d, min(k, d), dtype)
    assert_as_good_as_torch(x, basis, ops.project(x, basis))


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "k"), [(3072, 10), (700, 16), (9001, 5), (61, 7), (23, 4)])
def test_a_row_does_not_depend_on_the_other_rows(level, dtype, d, k):
    """From some dozen rows on the basis may be repacked; large results use streaming stores."""
    x, basis = make(1000 if d == 3072 else 50, d, k, dtype)
    y = ops.project(x, basis)
    assert_as_good_as_torch(x, basis, y)
    assert torch.equal(ops.project(x[3:10], basis), y[3:10])
    assert torch.equal(ops.project(x[49:50], basis), y[49:50])


@pytest.mark.parametrize("k", [1, 10, 64])
def test_imagenet_size(k):
    x, basis = make(3, 150528, k, torch.float32)
    assert_as_good_as_torch(x, basis, ops.project(x, basis))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 70),
    d=st.integers(1, 300),
    k=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 5),
)
def test_any_shape(n, d, k, dtype, threads):
    x, basis = make(n, d, min(k, d), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = ops.project(x, basis)
    finally:
        torch.set_num_threads(before)
    assert y.shape == x.shape
    assert_as_good_as_torch(x, basis, y)


def test_result_does_not_depend_on_threads_or_neighbours(threads):
    x, basis = make(67, 3072, 10, torch.float32)
    threads(1)
    one = ops.project(x, basis)
    alone = torch.cat([ops.project(row[None], basis) for row in x])
    threads(4)
    assert torch.equal(one, ops.project(x, basis))
    assert torch.equal(one, alone)


def test_large_result_streams_past_the_cache(level):
    x, basis = make(1500, 3072, 4, torch.float32)
    assert x.numel() * 4 > 16 << 20
    assert_as_good_as_torch(x, basis, ops.project(x, basis))


def test_strided_rows_and_images():
    x, basis = make(12, 48, 5, torch.float32)
    want = ops.project(x, basis)
    wide = torch.zeros(12, 64)
    wide[:, :48] = x
    assert torch.equal(ops.project(wide[:, :48], basis), want)
    assert torch.equal(ops.project(x.T.contiguous().T, basis), want)
    assert torch.equal(ops.project(x[::2], basis), want[::2])
    assert torch.equal(ops.project(x.view(12, 4, 4, 3), basis), want.view(12, 4, 4, 3))
    assert torch.equal(ops.project(x.view(12, 4, 4, 3)[:, :, :, :].expand(12, 4, 4, 3), basis).view(12, 48), want)


def test_out_and_in_place():
    x, basis = make(9, 100, 5, torch.float32)
    want, out = ops.project(x, basis), torch.empty(9, 100)
    assert ops.project(x, basis, out=out) is out
    assert torch.equal(out, want)
    y = x.clone()
    assert ops.project_(y, basis) is y
    assert torch.equal(y, want)
    many = torch.linalg.qr(torch.randn(100, 40))[0].T.contiguous()
    y = x.clone()
    torch.testing.assert_close(ops.project_(y, many), ops.project(x, many))


def test_projected_rows_are_orthogonal_to_the_basis():
    x, basis = make(5, 3072, 10, torch.float32)
    assert (ops.project(x, basis) @ basis.T).abs().max() < 1e-5


def test_gradients():
    x, basis = make(3, 11, 4, torch.float64)
    x = x.requires_grad_()
    assert torch.autograd.gradcheck(ops.project, (x, basis.requires_grad_()))
    assert torch.autograd.gradgradcheck(ops.project, (x, basis.detach()))


def test_opcheck():
    for dtype in (torch.float32, torch.float64, torch.uint8):
        x, basis = make(3, 11, 4, dtype)
        x = x.requires_grad_() if dtype.is_floating_point else x
        torch.library.opcheck(torch.ops.ulfast.project.default, (x, basis))
    x, basis = make(3, 11, 4, torch.float32)
    torch.library.opcheck(torch.ops.ulfast.project_out.default, (x, basis, torch.empty_like(x)))
    torch.library.opcheck(torch.ops.ulfast.project_.default, (x.clone(), basis))


def test_compiles_without_breaks():
    x, basis = make(6, 48, 4, torch.float32)
    compiled = torch.compile(lambda t: ops.project(t * 2, basis) + 1, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), ops.project(x * 2, basis) + 1)


def test_vmap():
    x, basis = make(6, 48, 4, torch.float32)
    batched = torch.func.vmap(ops.project, in_dims=(0, None))(x.view(2, 3, 48), basis)
    torch.testing.assert_close(batched.view(6, 48), ops.project(x, basis))
    with pytest.raises(ValueError, match="vmap over the basis"):
        torch.func.vmap(ops.project, in_dims=(None, 0))(x, basis[None])


def test_module():
    x, basis = make(6, 48, 4, torch.float32)
    module = OrthogonalProjection(basis)
    assert torch.equal(module(x), ops.project(x, basis))
    images = x.view(6, 4, 4, 3).permute(0, 3, 1, 2)  # NCHW, channels_last
    y = module(images)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.permute(0, 2, 3, 1).reshape(6, 48), ops.project(x, basis))
    torch.testing.assert_close(module(images.contiguous()), y)
    other = OrthogonalProjection(torch.zeros_like(basis))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.basis, basis)
    assert "directions=4, features=48" in repr(module)


def test_autocast_keeps_the_dtype_and_its_precision():
    x, basis = make(6, 48, 4, torch.float32)
    module = OrthogonalProjection(basis)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), ops.project(x, basis))  # no product in bfloat16, which would leave a remainder
        assert module(x.bfloat16()).dtype == torch.bfloat16
        assert torch.nn.functional.linear(x, basis).dtype == torch.bfloat16  # autocast is on


def test_module_exports():
    x, basis = make(6, 48, 4, torch.float32)
    module = OrthogonalProjection(basis)
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: rows},))
    assert any("ulfast.project" in str(node.target) for node in program.graph.nodes)
    more = torch.cat([x, x])
    assert torch.equal(program.module()(more), module(more))


@pytest.mark.parametrize(
    ("x", "basis", "error", "message"),
    [
        (torch.zeros(2, 4, dtype=torch.int32), torch.zeros(1, 4), TypeError, "uint8, float16"),
        (torch.zeros(2, 4), torch.zeros(1, 4, dtype=torch.int64), TypeError, "floating point"),
        (torch.zeros(2, 4), torch.zeros(4), ValueError, r"\(k, d\)"),
        (torch.zeros(4), torch.zeros(1, 4), ValueError, "at least two dimensions"),
        (torch.zeros(2, 4), torch.zeros(1, 5), ValueError, "4 features .* basis 5"),
    ],
)
def test_errors_say_what_was_expected(x, basis, error, message):
    with pytest.raises(error, match=message):
        ops.project(x, basis)


def test_out_errors():
    x, basis = make(3, 8, 2, torch.float32)
    with pytest.raises(ValueError, match="out must be"):
        ops.project(x, basis, out=torch.empty(3, 9))
    with pytest.raises(ValueError, match="contiguous floating"):
        ops.project_(x.T.contiguous().T, basis)


def test_the_twin_serves_other_devices():
    meta = ops.project(torch.empty(2, 4, device="meta"), torch.empty(1, 4, device="meta"))
    assert meta.shape == (2, 4)


def _project_in_child(queue, x, basis):
    """What a DataLoader worker does: one thread, because libgomp's pool does not survive the fork."""
    torch.set_num_threads(1)
    queue.put(float(ops.project(x, basis).sum()))


def test_a_forked_worker_does_not_hang():
    x, basis = make(64, 3072, 10, torch.float32)
    want = float(ops.project(x, basis).sum())  # starts the parent's thread pool
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_project_in_child, args=(queue, x, basis), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=20) == pytest.approx(want, rel=1e-4)
        child.join(10)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_library_product_above_the_fused_rank():
    for dtype in DTYPES:
        x, basis = make(5, 200, crossover.FUSED_RANK["cpu"]["project"][dtype] + 8, dtype)
        assert_as_good_as_torch(x, basis, ops.project(x, basis))
