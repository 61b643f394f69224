"""The caller's global state does not reach the kernels: every operator, loader, fit and poison in odd states."""

from __future__ import annotations

import ast
import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ulfast
from ulfast import ops
from ulfast.analysis.separability import separability
from ulfast.data import Augment, MemoryLoader
from ulfast.data.lazy import LazyImages
from ulfast.data.loaders.projected import ProjectedLoader, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.ops import cuda, cuda_filters, cuda_generators, products, reference, schemas, state
from ulfast.poisons import POISONS, poison
from ulfast.profiling.check import samples
from ulfast.projection.other_fits import FITS, fit_weights, leace

ROOT = Path(ulfast.__file__).parent
SAMPLES = samples()


# --- the states -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], None], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def dtype(value: torch.dtype):
    return setting(torch.get_default_dtype, torch.set_default_dtype, value)


def precision(value: str):
    return setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


@contextlib.contextmanager
def everything() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("bfloat16", "meta", "autocast", "inference_mode", "medium", "deterministic"):
            stack.enter_context(STATES[name]())
        yield


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64": lambda: dtype(torch.float64),
    "bfloat16": lambda: dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "high": lambda: precision("high"),
    "medium": lambda: precision("medium"),  # the one respected by CPUs with bfloat16 products
    "deterministic": lambda: setting(  # fills fresh memory with NaN
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "one thread": lambda: setting(torch.get_num_threads, torch.set_num_threads, 1),
    "all of them": everything,
}
EACH = pytest.mark.parametrize("odd", STATES)
# The quick tests set all of them at once and fail if any one fails; the slow tests tell which.
ONCE = pytest.mark.parametrize(
    "odd", [name if name == "all of them" else pytest.param(name, marks=pytest.mark.slow) for name in STATES]
)


def facts() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value)]
    return [t for v in value for t in flat(v)] if isinstance(value, (list, tuple)) else []


def same(run: Callable[[], Any], odd: str, want: Any = None) -> None:
    """The result of `run` in the odd state is that in the usual state, and the state is then unchanged."""
    want = flat(run() if want is None else want)
    with STATES[odd]():
        before = facts()
        got = run()
        assert facts() == before
    got = flat(got)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape)
        assert a.isfinite().all()
        # Another number of threads adds in another order.
        off = 2e-3 if odd == "one thread" and a.is_floating_point() else 0
        torch.testing.assert_close(a, b, atol=off, rtol=off)


def test_the_states_are_odd_and_end():
    before = facts()
    for name, odd in STATES.items():
        with odd():
            assert facts() != before or name == "one thread"
        assert facts() == before


# --- operators ------------------------------------------------------------------------------------------------------

DRAW = torch.Generator().manual_seed(0)
X = torch.rand(6, 384, generator=DRAW)
ROWS = torch.linalg.qr(torch.randn(384, 300, generator=DRAW))[0].T.contiguous()
CLASSES = torch.arange(6) % 2
IMAGES = torch.randint(0, 256, (6, 8, 16, 3), dtype=torch.uint8, generator=DRAW)
# Above the ranks at which the library's products take over, on the CPU and on CUDA.
LARGE: dict[str, tuple[Any, ...]] = {
    "project": (X, ROWS[:150]),
    "project ": (X.half(), ROWS[:150]),
    "project  ": (X.double(), ROWS[:150]),
    "project   ": (IMAGES, ROWS),
    "project_": (X, ROWS[:150]),
    "project_classwise": (X, ROWS.view(2, 150, 384), CLASSES),
    "ingest": (IMAGES, ROWS, torch.ones(3), torch.ones(3), torch.float32),
    "ingest ": (IMAGES, ROWS.view(2, 150, 384), torch.ones(3), torch.ones(3), torch.float32, None, None, None, CLASSES),
}
CALLS = list(SAMPLES.items()) + list(LARGE.items())
IDS = [f"{name.strip()}-{i}" for i, (name, _) in enumerate(CALLS)]
ON_CUDA = {**vars(cuda_filters), **vars(cuda_generators), **vars(cuda)}


def on_copies(function: Callable[..., Any], given: tuple[Any, ...]) -> Callable[[], Any]:
    """Result and arguments after a call, whatever it changes in place."""

    def run() -> Any:
        mine = tuple(v.clone() if isinstance(v, Tensor) else v for v in given)
        got = function(*mine)
        return got, mine

    return run


@EACH
@pytest.mark.parametrize(("name", "given"), CALLS, ids=IDS)
def test_operators(name, given, odd):
    same(on_copies(getattr(torch.ops.ulfast, name.strip()), given), odd)


@ONCE
@pytest.mark.parametrize(("name", "given"), CALLS, ids=IDS)
def test_twins_and_the_fallback_of_cuda(name, given, odd, monkeypatch):
    monkeypatch.setattr(cuda, "enabled", lambda *_: False)
    name = name.strip()
    if not name.startswith("philox"):  # it has no check of its own
        same(on_copies(schemas.checked_twin(name), given), odd)
    if name in ON_CUDA:
        same(on_copies(ON_CUDA[name], given), odd)


@EACH
def test_numbers_drawn_and_numbers_given(odd):
    same(lambda: [draw(1, 2, 3, 50, 7) for draw in (ops.philox_uniform, ops.philox_normal)], odd)
    same(lambda: [draw(1, 2, 3, 50, 7) for draw in (reference.philox_uniform, reference.philox_normal)], odd)
    schemas._copied.cache_clear()
    same(lambda: ops.ingest(IMAGES, ROWS[:2], (0.4, 0.5, 0.6), [0.1, 0.2, 0.3]), odd)
    schemas._copied.cache_clear()
    with STATES[odd]():  # what is kept was made in the odd state
        ops.ingest(IMAGES, None, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert not any(schemas._values(v, IMAGES.device).is_inference() for v in ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)))
    same(lambda: ops.ingest(IMAGES, None, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), odd)


@pytest.mark.parametrize("odd", ["float64", "bfloat16", "meta", "autocast", "high", "medium", "deterministic"])
@pytest.mark.parametrize("k", [4, 150])
def test_gradients(k, odd):
    def run() -> list[Tensor]:
        x, basis, bases = (t.clone().requires_grad_() for t in (X, ROWS[:k], ROWS[: 2 * (k // 2)].view(2, -1, 384)))
        out = torch.ops.ulfast.project(x, basis) + torch.ops.ulfast.project_classwise(x, bases, CLASSES)
        return list(torch.autograd.grad(out.square().sum(), (x, basis, bases)))

    same(run, odd)


def test_a_product_in_autocast_has_the_precision_of_one_outside():
    """At k = 150 it raised, and a twin was off by 2e-3."""
    exact = X.double() - X.double() @ ROWS[:150].double().T @ ROWS[:150].double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for run in (torch.ops.ulfast.project, schemas.checked_twin("project"), cuda.project):
            assert (run(X, ROWS[:150]) - exact).abs().max() < 2e-6


def test_precision_is_set_even_if_torchs_two_interfaces_were_mixed():
    backend = torch.backends.cuda.matmul
    if not hasattr(backend, "fp32_precision"):
        pytest.skip("this PyTorch has one interface")
    seen = []
    backend.fp32_precision = "tf32"
    try:
        state.exact(lambda: seen.append(backend.fp32_precision))()
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = "ieee"
    assert seen == ["ieee"]
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("tf32", [True, False])
def test_convolutions_have_full_precision_where_they_must_be_exact(tf32, monkeypatch, patches):
    """cuDNN's take TF32 by default: a projection of patches would be wrong in the third digit on a GPU."""
    cudnn, convolution, seen = torch.backends.cudnn, torch.nn.functional.conv2d, []

    def setting_of() -> Any:
        return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32

    def conv2d(*given: Tensor) -> Tensor:
        seen.append(setting_of())
        return convolution(*given)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    with setting(lambda: cudnn.allow_tf32, functools.partial(setattr, cudnn, "allow_tf32"), tf32):
        before = setting_of()
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        ulfast.PatchProjection(patches)(x)  # with a gradient: two convolutions
        cuda_filters.patch_filter(*SAMPLES["patch_filter"])
        assert setting_of() == before
        assert cudnn.allow_tf32 is tf32
    assert len(seen) == 1 + 9
    assert set(seen) <= {"ieee", False}


def test_a_process_setting_is_restored_by_its_last_user():
    def inner() -> None:
        assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_default_dtype() == torch.float32

    @state.ordinary
    def outer() -> None:
        state.ordinary(inner)()
        state.exact(inner)()
        inner()
        raise KeyError

    with precision("medium"), dtype(torch.float64):
        with pytest.raises(KeyError):
            outer()
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_default_dtype() == torch.float64


def test_the_heap_is_whole_with_a_narrow_default_dtype():
    """Results of half the room that kernels wrote to: a segmentation fault."""
    code = """
        import numpy as np, torch, ulfast
        data = ulfast.Dataset(np.zeros((300, 32, 32, 3), np.uint8), np.arange(300) % 3, ("a", "b", "c"))
        torch.set_default_dtype(torch.bfloat16)
        for _ in range(3):
            list(ulfast.MemoryLoader(data, 128, mean=[.5] * 3, std=[.2] * 3, augment=ulfast.Augment(), shuffle=True))
        ulfast.poison(data, "regions-4")
        assert ulfast.ops.philox_uniform(1, 2, 0, 3000, 3000).dtype == torch.float32
        """
    done = subprocess.run([sys.executable, "-c", "if 1:" + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


# --- who may allocate -----------------------------------------------------------------------------------------------

FACTORIES = {
    "empty",
    "zeros",
    "ones",
    "full",
    "eye",
    "arange",
    "linspace",
    "rand",
    "randn",
    "randint",
    "randperm",
    "tensor",
}
FACTORIES |= {"as_tensor"}


def test_operators_and_loaders_give_dtype_and_device():
    files = [*(ROOT / "ops").glob("*.py"), *(ROOT / "data/loaders").glob("*.py")]
    found, seen = [], 0
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            call = node.func if isinstance(node, ast.Call) else None
            if not (isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "torch"):
                continue
            if call.attr in FACTORIES:
                seen += 1
                given = {keyword.arg for keyword in node.keywords}
                if not {"dtype", "device"} <= given or (call.attr == "empty" and file.name[:3] in ("cpu", "cud")):
                    found.append(f"{file.name}:{node.lineno}")
    assert not found
    assert seen > 20


# --- what has no pixel, and numbers out of range --------------------------------------------------------------------


def pixels(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


LABELS, FLOATS = torch.zeros(2, dtype=torch.int64), torch.ones(3)
EMPTY: list[tuple[str, tuple[Any, ...]]] = [
    ("project", (pixels(0, 4, 4, 3), torch.ones(1, 48))),
    ("project", (pixels(2, 0, 4, 3), torch.ones(1, 0))),
    ("project", (pixels(2, 0), torch.ones(0, 0))),
    ("project_", (torch.ones(2, 0), torch.ones(200, 0))),
    ("project_classwise", (pixels(2, 0), torch.ones(1, 2, 0), LABELS)),
    ("project_classwise", (pixels(0, 5), torch.ones(0, 2, 5), LABELS[:0])),
    ("ingest", (pixels(2, 4, 0, 3), None, FLOATS, FLOATS, torch.float32)),
    ("ingest", (pixels(2, 0, 4, 3), torch.ones(2, 0), FLOATS, FLOATS, torch.float32)),
    ("ingest", (pixels(2, 4, 4, 0), torch.ones(2, 0), FLOATS[:0], FLOATS[:0], torch.bfloat16)),
    ("ingest", (pixels(0, 4, 4, 3), None, FLOATS, FLOATS, torch.float32)),
    ("softmax_regression_step", (pixels(0, 5), LABELS[:0], torch.ones(2, 5), 0.1)),
    ("apply_perturbation", (pixels(2, 0, 3), torch.ones(1, 0, 3), LABELS)),
    ("apply_perturbation", (pixels(0, 4, 3), torch.ones(0, 4, 3), None)),
    ("pgd_step", (torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0), 0.1, 0.1, "l2")),
    ("class_moments", (pixels(2, 0), LABELS, 1)),
    ("class_moments", (pixels(0, 3), LABELS[:0], 0)),
    ("count_changes", (pixels(2, 0, 3), pixels(2, 0, 3))),
    ("count_changes", (pixels(2, 4, 0), pixels(2, 4, 0))),
    ("perturb_convolution", (pixels(2, 0, 4, 3), LABELS, torch.ones(1, 3, 3))),
    ("perturb_convolution", (pixels(2, 4, 4, 0), LABELS, torch.ones(1, 3, 3))),
    ("perturb_linear", (pixels(2, 0), LABELS, torch.ones(1, 0), 2, 0.1, 0.1, 0.9)),
    ("perturb_linear", (pixels(0, 4), LABELS[:0], torch.ones(1, 4), 2, 0.1, 0.1, 0.9)),
]


class Unasked:
    """The extension, but CUDA's sizes may not be asked for: with nothing to divide by they end the process."""

    ingest_width = ingest_channels = perturb_convolution_side = 1 << 20

    @property
    def cuda(self) -> Unasked:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.endswith(("_scratch", "_parts", "_fits")):
            raise AssertionError(f"{name} was asked for images without a pixel")
        return lambda **fields: None


@pytest.mark.parametrize(("name", "given"), EMPTY)
def test_images_without_a_pixel(name, given, forked, monkeypatch):
    """Sizes that the kernels divide by: without their guard a process ended with SIGFPE."""
    want = flat(on_copies(schemas.checked_twin(name), given)())

    def check(function: Callable[..., Any]) -> None:
        for a, b in zip(flat(on_copies(function, given)()), want, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert torch.equal(a, b)

    assert forked(check, getattr(torch.ops.ulfast, name)) == 0
    if name in ON_CUDA:
        monkeypatch.setattr(cuda, "enabled", lambda *_: True)
        monkeypatch.setattr(cuda, "guard", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "stream", lambda device: 0)
        monkeypatch.setattr(cuda._extension, "load", Unasked)
        check(ON_CUDA[name])


BAD = torch.tensor([1, -1, 0, 2, 1 << 40, -(1 << 60)])
GOOD = (BAD >= 0) & (BAD < 2)
PLAIN = torch.where(GOOD, BAD, 0)
SMALL = IMAGES[:, :4, :4].contiguous()


def twin(name: str, *given: Any) -> Tensor:
    return getattr(reference, name)(*given)


def test_twins_take_numbers_out_of_range_as_the_cuda_kernels_do():
    """On a GPU, indexing with them triggers a device assertion, and -1 was the last row."""
    bases, delta = ROWS[:4, :48].reshape(2, 2, 48).contiguous(), torch.full((2, 4, 4, 3), 0.1)
    rest = (torch.ones(3), torch.ones(3), torch.float32)
    shift = torch.full((6, 2), 2, dtype=torch.int32)
    two = SMALL[:2].contiguous()
    for got, want in (
        (twin("project_classwise", SMALL, bases, BAD), twin("project_classwise", SMALL, bases, PLAIN)),
        (twin("ingest", two, None, *rest, BAD), twin("ingest", two, None, *rest, PLAIN)),
        (
            twin("ingest", SMALL, bases, *rest, None, shift, None, BAD),
            twin("ingest", SMALL, bases, *rest, None, shift, None, PLAIN),
        ),
        (
            twin("perturb_lsp", BAD, torch.ones(2, 12), torch.ones(2, 12, 12), 1, 0, 4, 4, 3, 2, 1.0),
            twin("perturb_lsp", PLAIN, torch.ones(2, 12), torch.ones(2, 12, 12), 1, 0, 4, 4, 3, 2, 1.0),
        ),
        (
            twin("perturb_ar", BAD, torch.full((2, 3, 3, 3), 0.1), 1, 0, 4, 4, 1.0, "l2"),
            twin("perturb_ar", PLAIN, torch.full((2, 3, 3, 3), 0.1), 1, 0, 4, 4, 1.0, "l2"),
        ),
    ):
        assert got[~GOOD].isnan().all()
        assert torch.equal(got[GOOD], want[GOOD])
    for name, before, after in (
        ("apply_perturbation", (SMALL, delta), ()),
        ("perturb_lsp", (), (torch.ones(2, 12), torch.ones(2, 12, 12), 1, 0, 4, 4, 3, 2, 1.0, SMALL)),
        ("perturb_ar", (), (torch.full((2, 3, 3, 3), 0.1), 1, 0, 4, 4, 1.0, "l2", SMALL)),
        ("perturb_convolution", (SMALL,), (torch.ones(2, 3, 3),)),
        ("perturb_linear", (SMALL,), (ROWS[:2, :48].contiguous(), 2, 0.1, 0.1, 0.9)),
    ):
        got, want = twin(name, *before, BAD, *after), twin(name, *before, PLAIN, *after)
        assert torch.equal(got[~GOOD], SMALL[~GOOD])
        assert torch.equal(got[GOOD], want[GOOD])
        assert not torch.equal(got[GOOD], SMALL[GOOD])
    for got, want in zip(
        twin("class_moments", SMALL, BAD, 2), twin("class_moments", SMALL[GOOD], BAD[GOOD], 2), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("index", [None, BAD])
def test_a_step_with_a_number_out_of_range_is_nan(index):
    labels = BAD if index is None else PLAIN
    weight = torch.zeros(2, 48)
    loss, correct = twin("softmax_regression_step", SMALL, labels, weight, 0.1, index)
    assert loss.isnan()
    assert correct <= GOOD.sum()
    assert weight.isnan().all()
    weight = torch.zeros(2, 48)
    twin("softmax_regression_step", SMALL, labels, weight, 0.0, index)
    assert not weight.any()


def test_a_cpu_raises_for_them():
    wide = pixels(2, 1, 6000, 3)  # images that the kernel leaves to the twin
    for images in (SMALL[:2], wide):
        for i in (-1, 2):
            with pytest.raises(IndexError, match=rf"index\[1\] is {i}, outside \[0, 2\)"):
                ops.ingest(images, None, FLOATS, FLOATS, index=torch.tensor([0, i]))


# --- products above the fused rank ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_products_are_the_twins(dtype, monkeypatch):
    monkeypatch.setitem(products.BLOCK_BYTES, "cpu", 1500)  # blocks of a row or two
    x = (255 * X).to(dtype) if dtype == torch.uint8 else X.to(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    labels = torch.tensor([1, 0, -1, 1, 2, 0])
    for basis in (ROWS[:40], ROWS[:0]):
        want = reference.project(x, basis)
        out = torch.empty_like(want)
        products.project(x, basis.to(compute), out)
        torch.testing.assert_close(out, want)
        bases = torch.stack([basis[: len(basis) // 2], basis[len(basis) // 2 :]])
        want = reference.project_classwise(x, bases, labels)
        products.project_classwise(x, bases.to(compute), labels, out)
        torch.testing.assert_close(out, want, equal_nan=True)
        assert out[[2, 4]].isnan().all()
        if dtype == compute:
            mine = x.clone()
            products.project(mine, basis.to(compute), mine)
            torch.testing.assert_close(mine, reference.project(x, basis))


# --- loaders, layers, fits, poisons ---------------------------------------------------------------------------------

NORMAL = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


@pytest.fixture(scope="module")
def data(make_dataset):
    return make_dataset(60)


@pytest.fixture(scope="module")
def basis(data):
    return ulfast.fit_basis(data, steps=60)


@pytest.fixture(scope="module")
def patches(data):
    return ulfast.fit_patches(data, patch=3, rank=4)


@ONCE
def test_loaders(data, basis, patches, odd, tmp_path):
    rows, noise = basis.rows, ulfast.fit_mean_noise(data)
    classwise = torch.stack([rows, rows.roll(1, 1), rows.roll(2, 1)])
    removal = Removal(rows=rows, patches=ulfast.PatchProjection(patches), noise=noise)
    decoded = LazyImages(data.images.shape, lambda i, out: np.copyto(out, data.images[i]))
    lazy = ulfast.Dataset(decoded, data.labels, data.classes)
    small = {"augment": Augment(area=(0.3, 1.0)), "shuffle": True, "seed": 3}

    def run() -> list[Tensor]:
        loaders = [
            MemoryLoader(data, 25),
            MemoryLoader(data, 25, basis=rows, augment=Augment(), shuffle=True, **NORMAL),
            MemoryLoader(data, 25, basis=classwise, **small),
            MemoryLoader(data, 25, removal=removal, dtype=torch.bfloat16, **small),
            MemoryLoader(data, 25, removal=Removal(transform=lambda x: x * 0.5), **small, **NORMAL),
            MemoryLoader(lazy, 25, noise=noise, part=(1, 2), drop_last=True, **small, **NORMAL),
        ]
        write_projected(tmp_path / odd, data, removal)
        loaders.append(ProjectedLoader(tmp_path / odd, data, 25, removal=removal, **small))
        return [tensor for loader in loaders for batch in loader for tensor in batch]

    same(run, odd)


@pytest.mark.slow  # Numba compiles for seconds
@pytest.mark.parametrize("odd", ["meta", "bfloat16", "all of them"])
def test_the_loader_of_ffcv(data, basis, odd, tmp_path):
    pytest.importorskip("ffcv")
    from ulfast.data.beton import FFCVLoader, write_beton

    write_beton(tmp_path / "x.beton", data)
    options = {"basis": basis.rows, "augment": Augment(area=(0.3, 1.0)), "shuffle": True, "seed": 3}
    same(lambda: list(FFCVLoader(tmp_path / "x.beton", 25, **options)), odd)


@ONCE
def test_layers(data, basis, patches, odd):
    x = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255
    layers = [ulfast.OrthogonalProjection(basis), ulfast.PatchProjection(patches), ulfast.MeanNoise(basis.rows)]
    few = x[:, :, :4, :4].contiguous()  # two convolutions

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        return [layer(x) for layer in layers] + [layers[1](few)]

    same(run, odd)


@ONCE
def test_fits(data, odd):
    def run() -> list[Any]:
        erasure, found = leace(data)
        bases = [
            ulfast.fit_basis(data, steps=40),
            ulfast.fit_basis(data, steps=40, rank=4),
            ulfast.fit_basis(data, init="torch", epochs=2),
            *(fit_weights(data, fit) for fit in FITS),
            found,
        ]
        found = ulfast.fit_patches(data, patch=3, rank=2)
        rest = [found.analysis, found.synthesis, ulfast.fit_mean_noise(data), ulfast.partial_rows(bases[0], data)]
        x = torch.from_numpy(data.images).float()
        measured = [separability(x, torch.from_numpy(data.labels), steps=3, hidden=h).accuracy for h in (0, 1)]
        evidence = [e.value for e in ulfast.diagnose(data).evidence]
        return [[b.rows for b in bases], erasure.analysis, rest, np.array(measured), np.array(evidence)]

    same(run, odd)


CNN = {"surrogate": "cnn"}
TRAINED: dict[str, dict[str, Any]] = {
    "em": {**CNN, "lr": 0.01, "rounds": 1, "steps": 2, "train_steps": 2, "batch_size": 25, "stop": 0.0},
    "em-classwise": {**CNN, "lr": 0.01, "rounds": 1, "train_steps": 2, "batch_size": 6, "stop": 0.0},
    "tap": {"preset": "quick", **CNN, "epochs": 1, "steps": 2, "batch_size": 25},
    "tap-untargeted": {"preset": "quick", **CNN, "epochs": 1, "steps": 2, "batch_size": 25},
    "adaptive": {**CNN, "epochs": 1, "steps": 2, "batch_size": 25},
    "rem": {**CNN, "lr": 0.01, "iterations": 2, "steps": 2, "steps_a": 2, "samples": 2, "batch_size": 25},
    "hypo": {**CNN, "epochs": 1, "steps": 2, "batch_size": 25},
    "sep": {**CNN, "epochs": 2, "checkpoints": 2, "steps": 2, "batch_size": 25},
    "aue": {**CNN, "lr": 0.01, "rounds": 1, "steps": 2, "train_steps": 2, "batch_size": 25},
    "aap": {**CNN, "lr": 0.01, "epochs": 1, "steps": 2, "batch_size": 25},
    "sem": {**CNN, "lr": 0.01, "iterations": 2, "steps": 2, "samples": 2, "batch_size": 25},
    "dune": {**CNN, "epochs": 2, "checkpoints": 2, "steps": 2, "batch_size": 25, "offset": 1, "flights": 1},
    "gue": {**CNN, "width": 2, "epochs": 1, "batch_size": 30, "inner_steps": 1},
    "dc": {**CNN, "width": 2, "rounds": 1, "epochs": 1, "batch_size": 30},
    "ntga": {"block_size": 20},
    "tue": {"batch_size": 20},
    "pil": {"epochs": 2, "batch_size": 25},
}


@pytest.mark.parametrize("method", [name for name in POISONS if name != "file"])
@ONCE
def test_poisons(data, method, odd):
    if odd == "one thread" and method in TRAINED:
        pytest.skip("a sum in another order can turn the sign of a step")
    same(functools.partial(poisoned, data, method), odd)


def poisoned(data: ulfast.Dataset, method: str) -> np.ndarray:
    return poison(data, method, seed=1, rate=0.9, **TRAINED.get(method, {})).images


def test_a_poison_from_a_file(data, tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 12, 12, 3), 0.02, np.float32))
    same(lambda: poison(data, "file", path=str(tmp_path / "x.npy")).images, "all of them")


@ONCE
@pytest.mark.parametrize("method", ["none+ueraser", "orthogonal+mixup", "orthogonal-patch+mean-noise+adversarial"])
def test_attacks(data, method, odd):
    def run() -> np.ndarray:
        options = {"model": "cnn", "epochs": 2, "limit": 30, "device": "cpu"}
        result = ulfast.attack(data, test=data, method=method.removeprefix("none+"), **options)
        return np.array([[row["train_loss"], row["test_loss"]] for row in result.history])

    same(run, odd)
