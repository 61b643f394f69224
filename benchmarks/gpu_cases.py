"""What benchmarks/gpu.py measures: ours and what PyTorch users write, over several input sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ulfast import ops
from ulfast.ops import _extension, reference
from ulfast.profiling.cases import pixels

Thunk = Callable[[int], Any]
COMPILED = (3, 9, 10)  # ranks raced against torch.compile: a compilation takes seconds, and the rank changes little


@dataclass
class Race:
    """Functions of the number of the input set, and the largest deviations from float64, ours and the plain one's."""

    ours: Thunk
    peers: dict[str, Thunk]
    error: float
    plain_error: float


@dataclass
class Job:
    """A row to measure.

    Attributes:
        make: from the number of input sets to the race; nothing is allocated before.
        input_bytes: of one set.
        bytes, flops: least traffic and arithmetic of a call.
        memory: bytes that the plain expression needs at its peak, two sets counted (more only where they are small).
        missing: there is no kernel to measure.
    """

    op: str
    n: int
    d: int
    k: int
    dtype: str
    make: Callable[[int], Race]
    input_bytes: int
    bytes: float
    flops: float
    memory: float
    repeats: int = 0
    missing: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} {self.n} x {self.d}, k {self.k}, {self.dtype}"


def rows_of(k: int, d: int, device: torch.device) -> Tensor:
    """(k, d) orthonormal rows, made on the device."""
    return torch.linalg.qr(torch.randn(d, k, device=device))[0].T.contiguous()


def deviation(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max())


def compiled(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False, backend="eager" if device.type == "cpu" else "inductor")


def tf32(function: Callable[[int], Any]) -> Thunk:
    def run(i: int) -> Any:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return function(i)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    return run


def project(n: int, d: int, k: int, dtype: torch.dtype, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        basis = rows_of(k, d, device)
        xs = [pixels(n, d, dtype, device) for _ in range(sets)]
        wide = reference.projected_dtype(dtype)
        b, half = basis.to(wide), basis.bfloat16()

        def plain(x: Tensor, b: Tensor) -> Tensor:
            x = reference.unit(x, b.dtype)
            return x - (x @ b.T) @ b

        def halves(i: int) -> Tensor:
            x = reference.unit(xs[i], wide)
            return x - ((x.bfloat16() @ half.T) @ half).to(wide)

        fast, few = compiled(plain, device), xs[0][:64]
        exact = plain(few, basis.double())
        peers: dict[str, Thunk] = {"eager": lambda i: plain(xs[i], b)}
        if k in COMPILED:
            peers["compile"] = lambda i: fast(xs[i], b)
        if dtype != torch.uint8:
            peers["addmm"] = lambda i: torch.addmm(xs[i], xs[i] @ b.T, b, alpha=-1)
        if wide == torch.float32:
            peers |= {"TF32 products": tf32(lambda i: plain(xs[i], b)), "bf16 products": halves}
        return Race(
            lambda i: ops.project(xs[i], basis),
            peers,
            deviation(ops.project(few, basis), exact),
            deviation(plain(few, b), exact),
        )

    size, wide = dtype.itemsize, reference.projected_dtype(dtype).itemsize
    return Job(
        "project",
        n,
        d,
        k,
        str(dtype)[6:],
        make,
        n * d * size,
        float(n * d * (size + wide)),
        4.0 * n * d * k,
        2.0 * n * d * size + 16.0 * n * d,
    )


def classwise(n: int, d: int, k: int, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        bases = torch.nn.functional.normalize(torch.randn(k, 1, d, device=device), dim=2)
        xs = [torch.rand(n, d, device=device) for _ in range(sets)]
        labels = torch.randint(0, k, (n,), device=device)

        def gather(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
            own = bases[labels]
            return x - ((x[:, None] @ own.mT) @ own)[:, 0]

        fast, few = compiled(gather, device), xs[0][:64]
        exact = reference.project_classwise(few.double(), bases.double(), labels[:64])
        return Race(
            lambda i: ops.project_classwise(xs[i], bases, labels),
            {
                "eager": lambda i: gather(xs[i], bases, labels),
                "compile": lambda i: fast(xs[i], bases, labels),
                "masked products": lambda i: reference.project_classwise(xs[i], bases, labels),
            },
            deviation(ops.project_classwise(few, bases, labels[:64]), exact),
            deviation(gather(few, bases, labels[:64]), exact),
        )

    return Job("project_classwise", n, d, k, "float32", make, 4 * n * d, 8.0 * n * d, 4.0 * n * d, 28.0 * n * d)


def ingest(n: int, side: int, k: int, device: torch.device) -> Job:
    d = 3 * side * side

    def make(sets: int) -> Race:
        basis = rows_of(k, d, device)
        xs = [pixels(n, d, torch.uint8, device).view(n, side, side, 3) for _ in range(sets)]
        mean, std = torch.rand(3, device=device), torch.rand(3, device=device) + 0.1
        shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32, device=device)
        flip = torch.rand(n, device=device) < 0.5

        def chain(x: Tensor, basis: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            rows = reference.unit(x, basis.dtype).flatten(1)
            rows = (rows - (rows @ basis.T) @ basis).view(x.shape)
            m = len(x)
            return reference.augment(rows, mean, std, dtype, shift[:m], flip[:m])

        def ours(x: Tensor) -> Tensor:
            m = len(x)
            return ops.ingest(x, basis, mean, std, dtype=torch.bfloat16, shift=shift[:m], flip=flip[:m])

        fast, few = compiled(chain, device), xs[0][:16]
        exact = chain(few, basis.double(), torch.float64)
        peers: dict[str, Thunk] = {"eager": lambda i: chain(xs[i], basis)}
        if k in COMPILED:
            peers["compile"] = lambda i: fast(xs[i], basis)
        peers["TF32 products"] = tf32(lambda i: chain(xs[i], basis))
        errors = deviation(ours(few), exact), deviation(chain(few, basis), exact)
        return Race(lambda i: ours(xs[i]), peers, *errors)

    return Job("ingest", n, d, k, "uint8 to bfloat16", make, n * d, 3.0 * n * d, 4.0 * n * d * k, 40.0 * n * d)


def softmax(n: int, d: int, k: int, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        xs = [pixels(n, d, torch.uint8, device) for _ in range(sets)]
        y = torch.randint(0, k, (n,), device=device)
        ours, theirs, exact = (torch.zeros(k, d, device=device, dtype=t) for t in (None, None, torch.float64))
        ops.softmax_regression_step(xs[0], y, ours, 0.1)
        reference.softmax_regression_step(xs[0], y, theirs, 0.1)
        reference.softmax_regression_step(xs[0], y, exact, 0.1)
        errors = deviation(ours, exact), deviation(theirs, exact)
        peers: dict[str, Thunk] = {"eager": lambda i: reference.softmax_regression_step(xs[i], y, theirs, 0.01)}
        return Race(lambda i: ops.softmax_regression_step(xs[i], y, ours, 0.01), peers, *errors)

    return Job("softmax_regression_step", n, d, k, "uint8", make, n * d, float(n * d), 4.0 * n * d * k, 12.0 * n * d)


def generator(name: str, n: int, device: torch.device, missing: bool) -> Job:
    """A perturbation of n images of 32 px straight onto them: lsp, ar, regions (added by class), cuda (convolution)."""
    kernel = {"lsp": "perturb_lsp", "ar": "perturb_ar", "regions": "apply_perturbation", "cuda": "perturb_convolution"}

    def make(sets: int) -> Race:
        xs = [pixels(n, 3072, torch.uint8, device).view(n, 32, 32, 3) for _ in range(sets)]
        y = torch.randint(0, 10, (n,), device=device)
        m = 4 * 4 * 3
        tensors = {
            "lsp": (torch.randn(10, m, device=device), torch.rand(10, m, m, device=device) * 2 - 1),
            "ar": (torch.rand(10, 3, 3, 3, device=device) / 9,),
            "regions": ((torch.rand(10, 32, 32, 3, device=device) - 0.5) / 16,),
            "cuda": (torch.rand(10, 3, 3, device=device),),
        }[name]

        def call(of: Any, x: Tensor) -> Tensor:
            labels = y[: len(x)]
            if name == "lsp":
                return of(labels, *tensors, 0, 0, 32, 32, 3, 8, 1.0, x)
            if name == "ar":
                return of(labels, *tensors, 0, 0, 32, 32, 1.0, "l2", x)
            return of(x, *tensors, labels) if name == "regions" else of(x, labels, *tensors)

        ours, twin = getattr(torch.ops.ulfast, kernel[name]), getattr(reference, kernel[name])
        few = xs[0][:16]
        off = deviation(call(ours, few), call(twin, few).double())  # whole levels: both must have the same bytes
        return Race(lambda i: call(ours, xs[i]), {"eager": lambda i: call(twin, xs[i])}, off, 0.0)

    return Job(name, n, 3072, 10, "uint8", make, n * 3072, 6144.0 * n, 0.0, 60.0 * n * 3072, 3, missing)


def jobs(device: torch.device, dry: bool) -> Iterator[Job]:
    """The most wanted first: time may end before the list."""
    f32, u8, bf16 = torch.float32, torch.uint8, torch.bfloat16
    # Side, batches of ingest and project_classwise, batches of project.
    sides = [(32, (4096, 128, 65536), (4096, 128, 1024, 65536)), (224, (128, 1024), (128, 1024))]
    if dry:
        sides = [(8, (12,), (12,))]
    for k in (3,) if dry else (9, 16, 1):
        for side, batches, _ in sides:
            for n in batches:
                yield ingest(n, side, k, device)
    for k in (3,) if dry else (10, 16, 1, 100, 1000):
        for side, _, batches in sides:
            for n in batches if k <= 16 else batches[:1] if side < 64 else ():
                yield project(n, 3 * side * side, k, f32, device)
    for dtype in (u8, bf16):
        yield project(12 if dry else 4096, 192 if dry else 3072, 10, dtype, device)
    for side, batches, _ in sides:
        for n in batches:
            yield classwise(n, 3 * side * side, 10, device)
    yield softmax(12 if dry else 1024, 192 if dry else 3072, 10, device)
    kernels = getattr(_extension.load(), "cuda", None)
    names = {"lsp": "perturb_lsp", "ar": "perturb_ar", "regions": "apply_perturbation", "cuda": "perturb_convolution"}
    for name, kernel in names.items():
        yield generator(name, 2 if dry else 4096, device, not dry and not hasattr(kernels, kernel))
