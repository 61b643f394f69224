"""What the operators promise on every device. The small cases run on the CPU; the others need a GPU, and have the
sizes at which a CUDA kernel takes another way: many rows, images in pieces, odd addresses.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from ulfast import ops
from ulfast.ops import cuda, reference
from ulfast.profiling.check import TOLERANCE, deviation, samples

SAMPLES = samples()
# Tolerance of each dtype of images; absolute ten times that.
ROWS = {torch.uint8: 3e-6, torch.float32: 3e-6, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def on(cpu, *gpu):
    """Cases of a test whose first parameter is the device: one for the CPU, or None, and those for a GPU."""
    there = [] if cpu is None else [("cpu", *cpu)]
    return there + [pytest.param("cuda", *case, marks=pytest.mark.gpu) for case in gpu]


@pytest.fixture
def device(request):
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    return torch.device(request.param)


def draw(n, d, dtype, device):
    g = torch.Generator(device).manual_seed(n + d)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, d), generator=g, dtype=dtype, device=device)
    return torch.rand(n, d, generator=g, device=device).to(dtype)


def rows_of(k, d, device):
    """(k, d) float32, short and not orthonormal: no formula here asks for that."""
    g = torch.Generator().manual_seed(k + d)
    return (torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1) / max(1, k) ** 0.5).to(device)


def fit(basis, dtype):
    return basis.double() if dtype == torch.float64 else basis


def exact(x, basis):
    """In float64, by blocks."""
    b, factor = basis.double(), 255 if x.dtype == torch.uint8 else 1
    blocks = (block.double() / factor for block in x.split(8192))
    return torch.cat([rows - (rows @ b.T) @ b for rows in blocks]) if len(x) else x.double()


def close(got, want, dtype):
    torch.testing.assert_close(got.double(), want.double(), atol=10 * ROWS[dtype], rtol=ROWS[dtype])


SHAPES = [(1100, 52, 9), (1100, 7300, 3), (1056, 7204, 10), (2113, 3072, 16), (1100, 3075, 12), (130, 150528, 9)]


@pytest.mark.parametrize("dtype", list(ROWS))
@pytest.mark.parametrize(
    ("device", "n", "d", "k"), on((40, 52, 3), *SHAPES, (65536, 96, 4), (1100, 3072, 100)), indirect=["device"]
)
def test_project(device, n, d, k, dtype):
    x, basis = draw(n, d, dtype, device), fit(rows_of(k, d, device), dtype)
    got = ops.project(x, basis)
    close(got, exact(x, basis), dtype)
    assert torch.equal(ops.project(x, basis), got)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("device", "n", "d", "k"), on(None, (65536, 3072, 10), (1100, 150528, 4)), indirect=["device"])
def test_project_of_much(device, n, d, k, dtype):
    x, basis = draw(n, d, dtype, device), rows_of(k, d, device)
    got = ops.project(x, basis)
    for rows in (slice(64), slice(n // 2 - 32, n // 2 + 32), slice(n - 64, n)):
        close(got[rows], exact(x[rows], basis), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("device", "n", "d", "k"),
    on((40, 52, 3), (7, 15, 2), (1100, 3072, 10), (1100, 7300, 3), (9, 150528, 5), (64, 3072, 100)),
    indirect=["device"],
)
def test_out_and_in_place(device, n, d, k, dtype):
    x, basis = draw(n, d, dtype, device), fit(rows_of(k, d, device), dtype)
    before, want = x.clone(), exact(x, basis)
    out = torch.full_like(x, torch.nan)
    assert ops.project(x, basis, out=out) is out
    close(out, want, dtype)
    assert torch.equal(x, before)
    labels = torch.arange(n, device=device) % 2
    bases = torch.stack([basis, basis.flip(1)])
    out.fill_(torch.nan)
    assert ops.project_classwise(x, bases, labels, out=out) is out
    close(out, torch.where(labels[:, None] == 0, want, exact(x, bases[1])), dtype)
    assert ops.project_(x, basis) is x
    close(x, want, dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("device", "n", "d", "k"), on((9, 52, 3), (9, 52, 3), (1100, 3072, 10), (1100, 7300, 3)), indirect=["device"]
)
def test_odd_addresses(device, n, d, k, dtype):
    """The first value of each tensor is one past the start of its memory."""

    def moved(t):
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    x, basis = draw(n, d, dtype, device), rows_of(k, d, device)
    want = exact(x, basis)
    close(ops.project(moved(x), moved(basis)), want, dtype)
    out = moved(torch.zeros(n, d, dtype=reference.projected_dtype(dtype), device=device))
    ops.project(x, basis, out=out)
    close(out, want, dtype)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    close(ops.project_classwise(moved(x), moved(basis[None]), moved(labels)), want, dtype)
    wide = torch.cat([x.new_zeros(n, 3), x], dim=1)
    close(ops.project(wide[:, 3:], basis), want, dtype)
    if dtype != torch.uint8:
        close(ops.project_(moved(x), basis), want, dtype)


@pytest.mark.parametrize("dtype", list(ROWS))
@pytest.mark.parametrize(
    ("device", "n", "d", "r", "classes"),
    on((40, 52, 2, 3), (1100, 7300, 2, 7), (1100, 3072, 1, 100), (65536, 96, 1, 10), (130, 150528, 4, 3)),
    indirect=["device"],
)
def test_project_classwise(device, n, d, r, classes, dtype):
    x = draw(n, d, dtype, device)
    labels = torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(n)).to(device)
    labels[labels == 1] = 0  # a class without a row
    bases = torch.stack([fit(rows_of(r, d, device), dtype).roll(i, 1) for i in range(classes)])
    got = ops.project_classwise(x, bases, labels)
    for c in range(classes):
        close(got[labels == c], exact(x[labels == c], bases[c]), dtype)


# --- ingest ----------------------------------------------------------------------------------------------------------


def batch(n, h, w, c, k, device, dtype=torch.uint8):
    g = torch.Generator(device).manual_seed(n + h)
    images = torch.randint(0, 256, (n, h, w, c), generator=g, dtype=torch.uint8, device=device)
    images = images if dtype == torch.uint8 else (images / 255).to(dtype)
    basis = rows_of(k, h * w * c, device) if k else None
    mean, std = torch.linspace(0.3, 0.6, c, device=device), torch.linspace(0.2, 0.4, c, device=device)
    shift = torch.randint(-4, 5, (n, 2), generator=g, dtype=torch.int32, device=device)
    return images, basis, mean, std, shift, torch.arange(n, device=device) % 3 != 1


def same_batch(got, want, dtype):
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    bound = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert (got.float() - want.float()).abs().max() <= bound * want.float().abs().max().clamp_min(1)


@pytest.mark.parametrize("result", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
@pytest.mark.parametrize(
    ("device", "n", "size", "k"),
    on((9, (5, 7, 3), 3), (9, (5, 7, 3), 3), (1100, (32, 32, 3), 9), (40, (32, 32, 1), 16), (9, (224, 224, 3), 2)),
    indirect=["device"],
)
def test_ingest_takes_every_dtype(device, n, size, k, dtype, result):
    images, basis, mean, std, shift, flip = batch(n, *size, k, device, dtype)
    got = ops.ingest(images, basis, mean, std, dtype=result, shift=shift, flip=flip)
    given = (t.cpu() for t in (images[-9:], basis, mean, std))
    want = reference.ingest(*given, result, None, shift[-9:].cpu(), flip[-9:].cpu())
    same_batch(got[-9:].cpu().contiguous(memory_format=torch.channels_last), want, result)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    ("device", "n", "side", "k"),
    on((12, 8, 3), (1100, 224, 3), (1100, 224, 16), (65536, 32, 9), (1024, 64, 9)),
    indirect=["device"],
)
def test_ingest_of_much(device, n, side, k, classes):
    images, basis, mean, std, shift, flip = batch(n, side, side, 3, k, device)
    labels = torch.arange(n, device=device) * 7 % 3 if classes else None
    if classes:
        basis = torch.stack([basis.roll(i, 1) for i in range(classes)])
    got = ops.ingest(images, basis, mean, std, dtype=torch.bfloat16, shift=shift, flip=flip, labels=labels)
    for rows in (slice(16), slice(n // 2, n // 2 + 6), slice(n - 16, n)):
        some = None if labels is None else labels[rows]
        want = reference.ingest(images[rows], basis, mean, std, torch.bfloat16, None, shift[rows], flip[rows], some)
        same_batch(got[rows].contiguous(memory_format=torch.channels_last), want, torch.bfloat16)


@pytest.mark.parametrize(("device", "n", "side"), on((5, 6), (5, 6), (1100, 32)), indirect=["device"])
def test_ingest_of_odd_addresses(device, n, side):
    images, basis, mean, std, shift, flip = batch(n, side, side, 3, 3, device)
    moved = torch.cat([images.new_zeros(1), images.flatten()])[1:].view(images.shape)
    for rows in (basis, None):
        want = ops.ingest(images, rows, mean, std, shift=shift, flip=flip)
        same_batch(ops.ingest(moved, rows, mean, std, shift=shift, flip=flip), want, torch.float32)


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("device", "shape"),
    on(((5, 3, 7, 9),), ((5, 3, 7, 9),), ((7, 192),), ((1100, 3072),), ((3, 150528),), ((4, 3, 224, 224),), ((0, 5),)),
    indirect=["device"],
)
def test_pgd_step(device, shape, norm, clamp):
    g = torch.Generator().manual_seed(len(shape))
    start, grad = torch.rand(shape, generator=g), torch.randn(shape, generator=g)
    grad[..., 0] = 0
    x = (start + 0.02 * torch.rand(shape, generator=g)).clamp(0, 1)
    want = x.double()
    reference.pgd_step(want, grad.double(), start.double(), 0.01, 0.03, norm, clamp)
    for layout in (torch.contiguous_format, *([torch.channels_last] if len(shape) == 4 else [])):
        ours, *rest = (t.to(device).clone(memory_format=layout) for t in (x, grad, start))
        assert ops.pgd_step(ours, *rest, alpha=0.01, eps=0.03, norm=norm, clamp=clamp) is ours
        torch.testing.assert_close(ours.cpu().double(), want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("device", "name"), on(("project",), *((name,) for name in SAMPLES)), indirect=["device"])
def test_opcheck(device, name):
    given = [value.to(device) if isinstance(value, torch.Tensor) else value for value in SAMPLES[name]]
    if name.startswith("philox"):
        torch.library.opcheck(getattr(torch.ops.ulfast, name).default, given, {"device": device})
    else:
        torch.library.opcheck(getattr(torch.ops.ulfast, name).default, given)


# --- under torch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize(("device", "k"), on((4,), (4,), (24,), (100,)), indirect=["device"])
def test_autocast_changes_nothing(device, k, kernels):
    x, basis = draw(64, 3072, torch.float32, device), rows_of(k, 3072, device)
    labels, bases = torch.arange(64, device=device) % 2, torch.stack([basis, basis.flip(1)])
    images, mean = draw(64, 3072, torch.uint8, device).view(64, 32, 32, 3), torch.zeros(3, device=device)
    with mock.patch.object(cuda, "enabled", cuda.enabled if kernels else lambda *_: False):
        x.requires_grad_()
        basis.requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16):
            got = ops.project(x, basis)
            classwise = ops.project_classwise(x.detach(), bases.detach(), labels)
            ingested = ops.ingest(images, basis.detach(), mean, mean + 1)
            weight = torch.full((10, 3072), 1e-3, device=device)
            ops.softmax_regression_step(images, labels, weight, 0.1)
            assert torch.nn.functional.linear(x, basis).dtype == torch.bfloat16  # autocast is on
        grads = torch.autograd.grad(got, (x, basis), torch.ones_like(got))
    x, basis = x.detach(), basis.detach()
    close(got.detach(), exact(x, basis), torch.float32)
    ones = torch.ones(64, 3072, dtype=torch.float64, device=device)
    b = basis.double()
    close(grads[0], ones - (ones @ b.T) @ b, torch.float32)
    want = -((b @ x.double().T) @ ones + (b @ ones.T) @ x.double())
    torch.testing.assert_close(grads[1].double(), want, atol=1e-5 * float(want.abs().max()), rtol=1e-5)
    close(classwise, torch.where(labels[:, None] == 0, exact(x, basis), exact(x, basis.flip(1))), torch.float32)
    close(ingested.permute(0, 2, 3, 1).flatten(1), exact(images.flatten(1), basis), torch.float32)
    twin = torch.full((10, 3072), 1e-3, device=device, dtype=torch.float64)
    reference.softmax_regression_step(images, labels, twin, 0.1)
    torch.testing.assert_close(weight.double(), twin, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("device", "n", "d", "k"), on((6, 48, 4), (1100, 3072, 10), (9, 150528, 3), (64, 3072, 100)), indirect=["device"]
)
def test_backward(device, n, d, k):
    x, basis = draw(n, d, torch.float32, device).requires_grad_(), rows_of(k, d, device).requires_grad_()
    weights = draw(n, d, torch.float32, device).flip(0)
    labels = torch.arange(n, device=device) % 2
    ours = torch.autograd.grad(ops.project(x, basis), (x, basis), weights)
    a, b = x.detach().double().requires_grad_(), basis.detach().double().requires_grad_()
    want = torch.autograd.grad(a - (a @ b.T) @ b, (a, b), weights.double())
    close(ours[0], want[0], torch.float32)
    torch.testing.assert_close(ours[1].double(), want[1], atol=1e-5 * float(want[1].abs().max()), rtol=1e-5)
    bases = torch.stack([basis.detach(), basis.detach().flip(1)]).requires_grad_()
    ours = torch.autograd.grad(ops.project_classwise(x, bases, labels), (x, bases), weights)
    b = bases.detach().double().requires_grad_()
    both = [a - (a @ b[c].T) @ b[c] for c in (0, 1)]
    want = torch.autograd.grad(torch.where(labels[:, None] == 0, *both), (a, b), weights.double())
    close(ours[0], want[0], torch.float32)
    torch.testing.assert_close(ours[1].double(), want[1], atol=1e-5 * float(want[1].abs().max()), rtol=1e-5)


@pytest.mark.parametrize(("device", "d", "k"), on((48, 4), (48, 4), (3072, 10)), indirect=["device"])
def test_vmap(device, d, k):
    x, basis = draw(6, d, torch.float32, device), rows_of(k, d, device)
    batched = torch.func.vmap(ops.project, in_dims=(0, None))(x.view(2, 3, d), basis)
    close(batched.view(6, d), exact(x, basis), torch.float32)
    bases, labels = torch.stack([basis, basis.flip(1)]), torch.arange(6, device=device) % 2
    batched = torch.func.vmap(ops.project_classwise, in_dims=(0, None, 0))(x.view(2, 3, d), bases, labels.view(2, 3))
    want = torch.where(labels[:, None] == 0, exact(x, basis), exact(x, bases[1]))
    close(batched.view(6, d), want, torch.float32)


@pytest.mark.parametrize(("device", "name"), on(None, *((name,) for name in SAMPLES)), indirect=["device"])
def test_without_kernels_it_is_the_twin(device, name):
    given = tuple(value.to(device) if isinstance(value, torch.Tensor) else value for value in SAMPLES[name])
    with mock.patch.object(cuda, "enabled", return_value=False):
        assert deviation(getattr(torch.ops.ulfast, name), getattr(reference, name), given) <= TOLERANCE


def many_calls(device):
    """name -> a call that returns new tensors, of sizes that need every kind of scratch memory."""
    images, basis, mean, std, shift, flip = batch(40, 32, 32, 3, 9, device)
    large, wide, *_ = batch(3, 224, 224, 3, 3, device)
    x, labels = draw(40, 3072, torch.float32, device), torch.arange(40, device=device) % 3
    many = rows_of(100, 3072, device)
    windows, filters = torch.rand(3, 3, 3, 3, device=device) / 9, torch.rand(3, 9, 9, device=device)
    weight = rows_of(10, 3072, device)
    out = torch.empty_like(x)

    def step():
        mine = weight.clone()
        ops.softmax_regression_step(images, labels, mine, 0.1)
        return mine

    return {
        "project": lambda: ops.project(x, basis),
        "project of large ones": lambda: ops.project(large, wide),
        "project, k 100": lambda: ops.project(x, many),
        "project, out=": lambda: ops.project(x, basis, out=out).clone(),
        "project_": lambda: ops.project_(x.clone(), basis),
        "project_classwise": lambda: ops.project_classwise(x, basis.view(3, 3, -1), labels),
        "ingest": lambda: ops.ingest(images, basis, mean, std, shift=shift, flip=flip),
        "ingest, classwise": lambda: ops.ingest(images, basis.view(3, 3, -1), mean, std, shift=shift, labels=labels),
        "ingest of large ones": lambda: ops.ingest(large, wide, mean, std, flip=flip[:3]),
        "ingest of floats": lambda: ops.ingest(x.view(40, 32, 32, 3), basis, mean, std, shift=shift, flip=flip),
        "softmax_regression_step": step,
        "apply_perturbation": lambda: ops.apply_perturbation(images, x.view(40, 32, 32, 3)[:3] / 9, index=labels),
        "pgd_step linf": lambda: ops.pgd_step(x.clone(), x - 0.5, x, alpha=0.1, eps=0.05),
        "pgd_step l2": lambda: ops.pgd_step(x.clone(), x - 0.5, x, alpha=0.1, eps=0.05, norm="l2"),
        "philox_uniform": lambda: ops.philox_uniform(1, 2, 3, 7, 3000, device=device),
        "philox_normal": lambda: ops.philox_normal(1, 2, 3, 7, 3000, device=device),
        "perturb_ar": lambda: ops.perturb_ar(labels, windows, seed=1, first=2, size=(32, 32), images=images),
        "perturb_convolution": lambda: ops.perturb_convolution(images, labels, filters),
        "perturb_linear": lambda: ops.perturb_linear(images, labels, weight, steps=3),
        "class_moments": lambda: ops.class_moments(images, labels, 3)[1],
    }


CALLS = list(many_calls(torch.device("cpu")))


@pytest.mark.parametrize(("device", "name"), on(None, *((name,) for name in CALLS)), indirect=["device"])
def test_default_dtype_changes_nothing(device, name):
    call = many_calls(device)[name]
    want = call()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = call()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)


@pytest.mark.parametrize(("device", "name"), on(None, *((name,) for name in CALLS)), indirect=["device"])
def test_it_waits_for_nothing_and_can_be_captured(device, name):
    call = many_calls(device)[name]
    want = call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    got.zero_()
    graph.replay()
    assert torch.equal(got, want)
