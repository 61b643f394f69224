"""The cases of benchmarks/gpu.py: ours and what PyTorch users write, over several input sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ulfast import ops
from ulfast.ops import _extension, crossover, reference
from ulfast.profiling.cases import pixels

Thunk = Callable[[int], Any]
F32, F16, BF16, U8 = torch.float32, torch.float16, torch.bfloat16, torch.uint8


@dataclass
class Race:
    """Functions of the number of the input set.

    Attributes:
        ours: the operator; `forms` the same written elsewhere.
        peers: what else does it.
        error, plain_error: largest deviations from float64 in the first and the last rows, ours and the plain one's.
    """

    ours: Thunk
    peers: dict[str, Thunk]
    error: float = 0.0
    plain_error: float = 0.0
    forms: dict[str, Thunk] = field(default_factory=dict)


@dataclass
class Job:
    """A row to measure.

    Attributes:
        make: from the number of input sets to the race; nothing is allocated before.
        input_bytes: of one set.
        bytes, flops: least traffic and arithmetic of a call.
        memory: bytes that the plain expression needs at its peak, two sets counted (more only where they are small).
        missing: there is no kernel to measure.
        note: what sets it apart from another of the same shape.
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
    missing: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.op} {self.n} x {self.d}, k {self.k}, {self.dtype}{self.note and ', ' + self.note}"


def rows_of(k: int, d: int, device: torch.device) -> Tensor:
    """(k, d) orthonormal rows, made on the device."""
    return torch.linalg.qr(torch.randn(d, k, device=device))[0].T.contiguous()


def deviation(got: Tensor, exact: Tensor) -> float:
    """A NaN anywhere makes it infinite."""
    return float((got.double() - exact).abs().nan_to_num(torch.inf).max())


def ends(t: Tensor, count: int = 64) -> Tensor:
    """The first and the last rows."""
    return t if len(t) <= count else torch.cat([t[: count // 2], t[len(t) - count // 2 :]])


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


def forced(fused: bool, function: Callable[[int], Any]) -> Thunk:
    """With the fused kernel or with library products, regardless of `ulfast.ops.crossover`."""

    def run(i: int) -> Any:
        before, crossover.fused = crossover.fused, lambda *_: fused
        try:
            return function(i)
        finally:
            crossover.fused = before

    return run


def project(
    n: int, d: int, k: int, dtype: torch.dtype, device: torch.device, fast: bool = False, forms: bool = False
) -> Job:
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

        few = ends(xs[0])
        exact = plain(few, basis.double())
        errors = deviation(ends(ops.project(xs[0], basis)), exact), deviation(plain(few, b), exact)
        peers: dict[str, Thunk] = {"eager": lambda i: plain(xs[i], b)}
        if dtype != U8:
            peers["addmm"] = lambda i: torch.addmm(xs[i], xs[i] @ b.T, b, alpha=-1)
        if fast:
            quick = compiled(plain, device)
            peers["compile"] = lambda i: quick(xs[i], b)
        if wide == F32:
            peers |= {"TF32 products": tf32(lambda i: plain(xs[i], b)), "bf16 products": halves}
        others: dict[str, Thunk] = {}
        if forms:
            outs = [torch.empty(n, d, dtype=wide, device=device) for _ in range(sets)]
            others["out="] = lambda i: ops.project(xs[i], basis, out=outs[i])
            if dtype != U8:
                scratch = [x.clone() for x in xs]
                others["in place"] = lambda i: ops.project_(scratch[i], basis)
                peers["addmm_ in place"] = lambda i: scratch[i].addmm_(scratch[i] @ b.T, b, alpha=-1)
        return Race(lambda i: ops.project(xs[i], basis), peers, *errors, others)

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
        2.0 * n * d * size + 20.0 * n * d,
    )


def backward(n: int, d: int, k: int, device: torch.device) -> Job:
    """Forward, and the gradient of the pixels."""

    def make(sets: int) -> Race:
        basis = rows_of(k, d, device)
        xs = [torch.rand(n, d, device=device, requires_grad=True) for _ in range(sets)]
        ones = torch.randn(n, d, device=device)

        def both(of: Callable[[Tensor, Tensor], Tensor], i: int) -> Tensor:
            return torch.autograd.grad(of(xs[i], basis), xs[i], ones)[0]

        def plain(x: Tensor, b: Tensor) -> Tensor:
            return x - (x @ b.T) @ b

        few, b = ends(ones), basis.double()
        exact = few.double() - (few.double() @ b.T) @ b
        errors = deviation(ends(both(ops.project, 0)), exact), deviation(ends(both(plain, 0)), exact)
        return Race(lambda i: both(ops.project, i), {"eager": lambda i: both(plain, i)}, *errors)

    size = 16.0 * n * d
    return Job("project", n, d, k, "float32", make, 4 * n * d, size, 8.0 * n * d * k, 3 * size, note="with backward")


def crossing(op: str, n: int, side: int, k: int, dtype: torch.dtype, device: torch.device) -> Job:
    """The fused kernel against our own library products, as input for `ulfast.ops.crossover`."""
    d = 3 * side * side

    def make(sets: int) -> Race:
        basis = rows_of(k, d, device)
        xs = [pixels(n, d, dtype, device).view(n, side, side, 3) for _ in range(sets)]
        mean, std = torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
        shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32, device=device)
        flip = torch.rand(n, device=device) < 0.5
        outs = [torch.empty(n, side, side, 3, dtype=reference.projected_dtype(dtype), device=device) for _ in xs]

        def call(i: int) -> Tensor:
            if op == "project":
                return ops.project(xs[i], basis, out=outs[i])
            return ops.ingest(xs[i], basis, mean, std, dtype=BF16, shift=shift, flip=flip)

        fused, library = forced(True, call), forced(False, call)
        mine = ends(fused(0)).clone()  # `project` writes both into the same tensor
        off = deviation(mine, ends(library(0)).double())
        return Race(fused, {"library": library}, off, off)

    size = dtype.itemsize
    out = 2 if op == "ingest" else reference.projected_dtype(dtype).itemsize
    moved = float(n * d * (size + out))
    name = str(dtype)[6:]
    return Job(op, n, d, k, name, make, n * d * size, moved, 4.0 * n * d * k, 40.0 * n * d, note="crossover")


def classwise(n: int, d: int, k: int, device: torch.device, fast: bool = False) -> Job:
    def make(sets: int) -> Race:
        bases = torch.nn.functional.normalize(torch.randn(k, 1, d, device=device), dim=2)
        xs = [torch.rand(n, d, device=device) for _ in range(sets)]
        labels = torch.randint(0, k, (n,), device=device)

        def gather(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
            own = bases[labels]
            return x - ((x[:, None] @ own.mT) @ own)[:, 0]

        few, of_few = ends(xs[0]), ends(labels)
        exact = reference.project_classwise(few.double(), bases.double(), of_few)
        ours = ends(ops.project_classwise(xs[0], bases, labels))
        errors = deviation(ours, exact), deviation(gather(few, bases, of_few), exact)
        peers: dict[str, Thunk] = {
            "eager": lambda i: gather(xs[i], bases, labels),
            "masked products": lambda i: reference.project_classwise(xs[i], bases, labels),
        }
        if fast:
            quick = compiled(gather, device)
            peers["compile"] = lambda i: quick(xs[i], bases, labels)
        return Race(lambda i: ops.project_classwise(xs[i], bases, labels), peers, *errors)

    return Job("project_classwise", n, d, k, "float32", make, 4 * n * d, 8.0 * n * d, 4.0 * n * d, 28.0 * n * d)


def ingest(n: int, side: int, k: int, device: torch.device, fast: bool = False, classes: int = 0) -> Job:
    d = 3 * side * side

    def make(sets: int) -> Race:
        basis = rows_of(k, d, device)
        xs = [pixels(n, d, U8, device).view(n, side, side, 3) for _ in range(sets)]
        mean, std = torch.rand(3, device=device), torch.rand(3, device=device) + 0.1
        shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32, device=device)
        flip = torch.rand(n, device=device) < 0.5
        labels = torch.randint(0, classes, (n,), device=device) if classes else None
        if classes:
            basis = torch.stack([basis.roll(i, 1) for i in range(classes)])

        def chain(x: Tensor, basis: Tensor, shift: Tensor, flip: Tensor, labels: Tensor | None) -> Tensor:
            if labels is None:
                rows = reference.unit(x, basis.dtype).flatten(1)
                rows = (rows - (rows @ basis.T) @ basis).view(x.shape)
            else:
                rows = reference.project_classwise(reference.unit(x, basis.dtype), basis, labels)
            return reference.augment(rows, mean, std, BF16 if basis.dtype == F32 else basis.dtype, shift, flip)

        def ours(i: int) -> Tensor:
            return ops.ingest(xs[i], basis, mean, std, dtype=BF16, shift=shift, flip=flip, labels=labels)

        given = ends(xs[0]), ends(shift), ends(flip), None if labels is None else ends(labels)
        exact = chain(given[0], basis.double(), *given[1:])
        errors = deviation(ends(ours(0)), exact), deviation(chain(given[0], basis, *given[1:]), exact)
        peers: dict[str, Thunk] = {"eager": lambda i: chain(xs[i], basis, shift, flip, labels)}
        if fast:
            quick = compiled(chain, device)
            peers["compile"] = lambda i: quick(xs[i], basis, shift, flip, labels)
        peers["TF32 products"] = tf32(lambda i: chain(xs[i], basis, shift, flip, labels))
        return Race(ours, peers, *errors)

    note = f"{classes} classes" if classes else ""
    arithmetic = 4.0 * n * d * k
    return Job("ingest", n, d, k, "uint8 to bfloat16", make, n * d, 3.0 * n * d, arithmetic, 40.0 * n * d, note=note)


def softmax(n: int, d: int, k: int, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        xs = [pixels(n, d, U8, device) for _ in range(sets)]
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
    """A perturbation added directly to n images of 32 px: lsp, ar, regions (added by class), cuda (convolution)."""

    def make(sets: int) -> Race:
        xs = [pixels(n, 3072, U8, device).view(n, 32, 32, 3) for _ in range(sets)]
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

        ours, twin = getattr(torch.ops.ulfast, GENERATORS[name]), getattr(reference, GENERATORS[name])
        few = min(n, 16)
        # Whole levels: both must have the same bytes.
        off = deviation(call(ours, xs[0])[:few], call(twin, xs[0][:few]).double())
        return Race(lambda i: call(ours, xs[i]), {"eager": lambda i: call(twin, xs[i])}, off, 1.0)

    return Job(name, n, 3072, 10, "uint8", make, n * 3072, 6144.0 * n, 0.0, 60.0 * n * 3072, missing)


def moments(n: int, d: int, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        xs = [pixels(n, d, U8, device) for _ in range(sets)]
        y = torch.randint(0, 10, (n,), device=device)
        mine, twin = ops.class_moments(xs[0], y, 10), reference.class_moments(xs[0], y, 10)
        off = max(deviation(a, b.double()) for a, b in zip(mine, twin, strict=True))
        peers: dict[str, Thunk] = {"eager": lambda i: reference.class_moments(xs[i], y, 10)}
        return Race(lambda i: ops.class_moments(xs[i], y, 10), peers, off, 0.0)

    return Job("class_moments", n, d, 10, "uint8", make, n * d, float(n * d), 2.0 * n * d, 60.0 * n * d)


def pgd(n: int, d: int, norm: str, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        start = [torch.rand(n, d, device=device) for _ in range(sets)]
        grads = [torch.randn(n, d, device=device) for _ in range(sets)]
        xs, theirs = ([x.clone() for x in start] for _ in range(2))

        def ours(i: int) -> Tensor:
            return ops.pgd_step(xs[i], grads[i], start[i], alpha=0.01, eps=0.03, norm=norm)

        def plain(i: int) -> None:
            reference.pgd_step(theirs[i], grads[i], start[i], 0.01, 0.03, norm)

        ours(0)
        plain(0)
        return Race(ours, {"eager": plain}, deviation(xs[0], theirs[0].double()), 1e-6)

    return Job(f"pgd_step {norm}", n, d, 0, "float32", make, 12 * n * d, 16.0 * n * d, 6.0 * n * d, 60.0 * n * d)


def philox(name: str, n: int, d: int, device: torch.device) -> Job:
    def make(sets: int) -> Race:
        draw, few = getattr(ops, name), min(n, 16)
        off = deviation(draw(1, 2, 0, n, d, device=device)[:few].cpu(), draw(1, 2, 0, few, d).double())
        theirs = torch.rand if name == "philox_uniform" else torch.randn
        peers: dict[str, Thunk] = {"eager": lambda i: theirs(n, d, device=device)}
        return Race(lambda i: draw(1, 2, i * n, n, d, device=device), peers, off, 0.0)

    return Job(name, n, d, 0, "float32", make, 4 * n * d, 4.0 * n * d, 0.0, 8.0 * n * d)


def linear(n: int, d: int, steps: int, device: torch.device) -> Job:
    """perturb_linear; k is the number of steps. Its bits may differ, so only the budget is checked."""

    def make(sets: int) -> Race:
        xs = [pixels(n, d, U8, device) for _ in range(sets)]
        y, weight = torch.randint(0, 10, (n,), device=device), torch.randn(10, d, device=device) * 0.01
        rest = (steps, 0.8 / 255, 8 / 255, 0.9)
        call, few = torch.ops.ulfast.perturb_linear, min(n, 64)
        mine, twin = call(xs[0], y, weight, *rest)[:few], reference.perturb_linear(xs[0][:few], y[:few], weight, *rest)
        share = float((mine != twin).double().mean())
        peers: dict[str, Thunk] = {"eager": lambda i: reference.perturb_linear(xs[i], y, weight, *rest)}
        return Race(lambda i: call(xs[i], y, weight, *rest), peers, share, 0.003)

    return Job("perturb_linear", n, d, steps, "uint8", make, n * d, 2.0 * n * d, 40.0 * n * d * steps, 60.0 * n * d)


def patches(n: int, side: int, k: int, device: torch.device) -> Job:
    """patch_filter of the projection of all k x k patches, 10 k directions, against its two convolutions."""

    def make(sets: int) -> Race:
        from ulfast.projection.patches import fold

        analysis, synthesis = (torch.randn(10 * k, 3, k, k, device=device) / (2 * k) for _ in range(2))
        xs = [torch.rand(n, side, side, 3, device=device) for _ in range(sets)]
        filters = fold(analysis.cpu(), synthesis.cpu()).to(device)
        at = torch.arange(side, device=device)
        cover = torch.minimum(torch.minimum(at + 1, side - at), torch.tensor(k, device=device)).float()
        cover = cover[:, None] * cover[None, :]

        def two(x: Tensor, a: Tensor, s: Tensor) -> Tensor:
            x = x.permute(0, 3, 1, 2)
            return x - torch.nn.functional.conv_transpose2d(torch.nn.functional.conv2d(x, a), s) / cover

        plain = two(xs[0][:2], analysis, synthesis).permute(0, 2, 3, 1)
        off = deviation(ops.patch_filter(xs[0], filters)[:2], plain.double())
        peers: dict[str, Thunk] = {"two convolutions": lambda i: two(xs[i], analysis, synthesis)}
        return Race(lambda i: ops.patch_filter(xs[i], filters), peers, off, 1e-3)

    d = 3 * side * side
    taps = 3.0 * (2 * k - 1) ** 2
    memory = 40.0 * n * d
    return Job("patch_filter", n, d, k, "float32", make, 4 * n * d, 8.0 * n * d, 2.0 * n * d * taps, memory)


GENERATORS = {"lsp": "perturb_lsp", "ar": "perturb_ar", "regions": "apply_perturbation", "cuda": "perturb_convolution"}


def jobs(device: torch.device, dry: bool) -> Iterator[Job]:
    """The most important first, as time may run out before the end of the list."""
    kernels = getattr(_extension.load(), "cuda", None)
    if dry:
        yield ingest(12, 8, 3, device, fast=True)
        yield ingest(12, 8, 1, device, classes=3)
        yield project(12, 192, 3, F32, device, fast=True, forms=True)
        for dtype in (U8, BF16, F16):
            yield project(12, 192, 10, dtype, device)
        yield classwise(12, 192, 10, device, fast=True)
        for name in GENERATORS:
            yield generator(name, 2, device, False)
        yield softmax(12, 192, 10, device)
        yield moments(12, 192, device)
        yield backward(12, 192, 3, device)
        for norm in ("linf", "l2"):
            yield pgd(12, 192, norm, device)
        for name in ("philox_uniform", "philox_normal"):
            yield philox(name, 12, 192, device)
        yield linear(12, 192, 2, device)
        yield patches(2, 8, 3, device)
        for op in ("project", "ingest"):
            for k in (2, 4):
                yield crossing(op, 6, 8, k, U8 if op == "ingest" else F32, device)
        return
    small, large = 3072, 150528
    # The headline, with torch.compile.
    yield ingest(4096, 32, 9, device, fast=True)
    yield project(4096, small, 10, F32, device, fast=True, forms=True)
    yield ingest(128, 224, 9, device, fast=True)
    yield project(128, large, 10, F32, device, fast=True, forms=True)
    yield classwise(4096, small, 10, device, fast=True)
    for name, kernel in GENERATORS.items():
        yield generator(name, 4096, device, not hasattr(kernels, kernel))
    # Ranks above which library products win.
    for k in (8, 12, 16, 24, 32):
        for dtype in (F32, BF16, U8):
            yield crossing("project", 4096, 32, k, dtype, device)
        yield crossing("ingest", 4096, 32, k, U8, device)
    for k in (64, 128):
        for dtype in (F32, BF16, U8):
            yield crossing("project", 4096, 32, k, dtype, device)
    # All batches at the headline's rank, then the other ranks.
    for n in (128, 1024, 65536):
        yield ingest(n, 32, 9, device)
        yield project(n, small, 10, F32, device)
        yield classwise(n, small, 10, device)
    yield ingest(1024, 224, 9, device)
    yield project(1024, large, 10, F32, device)
    for n in (128, 1024):
        yield classwise(n, large, 10, device)
    for k in (100, 1000):
        yield project(4096, small, k, F32, device)
    yield project(128, large, 100, F32, device)
    yield ingest(4096, 32, 1, device, classes=10)
    for dtype in (U8, BF16, F16):
        yield project(4096, small, 10, dtype, device, forms=dtype == BF16)
    yield backward(4096, small, 10, device)
    for k in (16, 1):
        for n in (4096, 128, 65536):
            yield ingest(n, 32, k, device)
            yield project(n, small, k, F32, device)
        for n in (128, 1024):
            yield ingest(n, 224, k, device)
            yield project(n, large, k, F32, device)
    yield project(4096, small, 32, F32, device)
    yield softmax(1024, small, 10, device)
    for norm in ("linf", "l2"):
        yield pgd(4096, small, norm, device)
    yield pgd(64, large, "l2", device)
    yield moments(4096, small, device)
    for name in ("philox_uniform", "philox_normal"):
        yield philox(name, 4096, small, device)
    yield linear(4096, small, 30, device)
    yield patches(64, 32, 7, device)
    for k in (8, 16, 32):
        for op, dtype in (("project", F32), ("ingest", U8)):
            yield crossing(op, 128, 224, k, dtype, device)
