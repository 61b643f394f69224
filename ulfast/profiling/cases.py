"""The operators as benchmark cases: ours, what PyTorch users would write instead, and bytes, flops and errors.

`ulfast profile`, `benchmarks/run.py` and `ulfast doctor` share this registry and that of the generators beside it. A
new operator takes a function and a line in `OPERATORS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import InputError
from ..ops import reference

Thunk = Callable[[], Any]


@dataclass(frozen=True)
class Shape:
    """n rows of d values, and a third number whose meaning depends on the operator, such as rank or classes."""

    n: int
    d: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parses "4096x3072x10".

        Raises:
            InputError: anything else.
        """
        parts = text.lower().split("x")
        if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
            raise InputError(f"a shape is NxDxK, for example 4096x3072x10, got {text!r}")
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.n}x{self.d}x{self.k}"

    @property
    def side(self) -> int:
        """The side of a square image with d values in three channels.

        Raises:
            InputError: d is not that of a square colour image.
        """
        side = math.isqrt(self.d // 3)
        if 3 * side * side != self.d:
            raise InputError(f"{self}: this operator takes square colour images, d = 3 * side^2 (3072, 150528)")
        return side


@dataclass
class Case:
    """One row of the table.

    Attributes:
        name: the name shown.
        ours: name to function; the fastest counts.
        peers: name to function; the first is the straightforward expression.
        bytes, flops: minimal traffic and arithmetic of one call, for the roofline.
        error: largest deviation of ours and of the plain torch expression from float64, if known.
        repeats: number of rounds; every contestant runs once per round.
        goals: the ratio to reach, by peer ("best": the best peer).
    """

    name: str
    ours: dict[str, Thunk]
    peers: dict[str, Thunk]
    bytes: float = 0.0
    flops: float = 0.0
    error: tuple[float, float] | None = None
    repeats: int = 15
    goals: dict[str, float] = field(default_factory=dict)


class Small:
    """Seeded inputs for a very short call.

    Attributes:
        images: (33, 16, 16, 3) uint8.
        x: the same as float32 in [0, 1].
        labels: (33,) int64 in [0, 4).
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (33, 16, 16, 3), dtype=torch.uint8, generator=self._generator)
        self.x = self.images / 255
        self.labels = torch.arange(33) % 4

    def normals(self, *size: int) -> Tensor:
        """float32 standard normals."""
        return torch.randn(*size, generator=self._generator)

    def rows(self, *size: int) -> Tensor:
        """(..., k, d) float32 with orthonormal rows."""
        return torch.linalg.qr(self.normals(*size).mT)[0].mT.contiguous()


@dataclass(frozen=True)
class Operator:
    """How to make a case for an operator.

    Attributes:
        make: (shape, dtype, device, compile) -> Case.
        small: arguments of a small call of every related operator of `torch.ops.ulfast`, for the check against its twin
            (`check.py`).
        third: the meaning of k.
        dtypes: accepted input dtypes, the default first.
        shape: measured unless others are requested.
    """

    make: Callable[[Shape, torch.dtype, torch.device, bool], Case]
    small: Callable[[Small], Mapping[str, tuple[Any, ...]]]
    third: str
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    shape: Shape = Shape(4096, 3072, 10)


def orthonormal(k: int, d: int, device: torch.device | str = "cpu") -> Tensor:
    """(k, d) float32 with orthonormal rows."""
    return torch.linalg.qr(torch.randn(d, k))[0].T.contiguous().to(device)


def pixels(n: int, d: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Random rows: bytes, or floats in [0, 1]."""
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, d), dtype=torch.uint8, device=device)
    return torch.rand(n, d, device=device).to(dtype)


def _deviation(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max())


def _compiled(wanted: bool, function: Callable[..., Any], *arguments: Any) -> dict[str, Thunk]:
    if not wanted:
        return {}
    fast = torch.compile(function)
    return {"compile": lambda: fast(*arguments)}


def project(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d, k = shape.n, shape.d, shape.k
    x, basis = pixels(n, d, dtype, device), orthonormal(k, d, device)
    wide = torch.float32 if dtype == torch.uint8 else dtype
    b = basis.to(wide)

    def plain(a: Tensor, b: Tensor) -> Tensor:
        a = reference.unit(a, wide)
        return a - (a @ b.T) @ b

    peers: dict[str, Thunk] = {"eager": lambda: plain(x, b)}
    ours: dict[str, Thunk] = {"project": lambda: ops.project(x, basis)}
    out = torch.zeros(n, d, dtype=wide, device=device)
    ours["project out="] = lambda: ops.project(x, basis, out=out)
    if dtype != torch.uint8:
        scratch = x.clone()
        peers["addmm"] = lambda: torch.addmm(x, x @ b.T, b, alpha=-1)
        peers["addmm_ in place"] = lambda: scratch.addmm_(scratch @ b.T, b, alpha=-1)
        ours["project_ in place"] = lambda: ops.project_(scratch, basis)
    peers |= _compiled(compiled, plain, x, b)
    few = x[: min(n, 64)]
    exact = _exact(few, basis)
    error = (_deviation(ops.project(few, basis), exact), _deviation(plain(few, b), exact))
    size = x.element_size() + out.element_size()
    return Case(
        f"project {n} x {d}, k {k}",
        ours,
        peers,
        float(size * n * d),
        4.0 * n * d * k,
        error,
        goals={"eager": 10, "best": 3} if k <= 16 else {"best": 1},
    )


def _exact(x: Tensor, basis: Tensor) -> Tensor:
    rows, b = reference.unit(x, torch.float64), basis.double()
    return rows - (rows @ b.T) @ b


def project_classwise(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d, classes = shape.n, shape.d, shape.k
    x, labels = pixels(n, d, dtype, device), torch.randint(0, classes, (n,), device=device)
    bases = torch.nn.functional.normalize(torch.randn(classes, 1, d), dim=2).to(device)
    wide = torch.float32 if dtype == torch.uint8 else dtype

    def gather(a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        a, own = reference.unit(a, wide), b[y].to(wide)
        return a - ((a[:, None] @ own.mT) @ own)[:, 0]

    few, y = x[: min(n, 64)], labels[: min(n, 64)]
    exact = reference.project_classwise(reference.unit(few, torch.float64), bases.double(), y)
    error = (_deviation(ops.project_classwise(few, bases, y), exact), _deviation(gather(few, bases, y), exact))
    out = torch.zeros(n, d, dtype=wide, device=device)
    return Case(
        f"project_classwise {n} x {d}, {classes} classes",
        {
            "kernel": lambda: ops.project_classwise(x, bases, labels),
            "kernel out=": lambda: ops.project_classwise(x, bases, labels, out=out),
        },
        {
            "gather": lambda: gather(x, bases, labels),
            "masked products": lambda: reference.project_classwise(x, bases, labels),
            **_compiled(compiled, gather, x, bases, labels),
        },
        float((x.element_size() + (4 if dtype == torch.uint8 else x.element_size())) * n * d),
        4.0 * n * d,
        error,
    )


def ingest(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d, k, size = shape.n, shape.d, shape.k, shape.side
    images = pixels(n, d, torch.uint8, device).view(n, size, size, 3)
    basis, mean, std = orthonormal(k, d, device), torch.rand(3, device=device), torch.rand(3, device=device) + 0.1
    shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32, device=device)
    flip = torch.rand(n, device=device) < 0.5

    def chain(images: Tensor, basis: Tensor) -> Tensor:
        x = images.float().div(255).flatten(1)
        x = x - (x @ basis.T) @ basis
        x = ((x.view(n, size, size, 3) - mean) / std).to(dtype)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    got = ops.ingest(images[:8], basis, mean, std).permute(0, 2, 3, 1)
    exact = (_exact(images[:8].flatten(1), basis).view(got.shape) - mean) / std
    return Case(
        f"ingest u8 -> {str(dtype).removeprefix('torch.')}, {n} x {size} px, k {k}",
        {
            "ingest": lambda: ops.ingest(images, basis, mean, std, dtype=dtype),
            "with crop and flip": lambda: ops.ingest(images, basis, mean, std, dtype=dtype, shift=shift, flip=flip),
        },
        {"eager, no crop": lambda: chain(images, basis), **_compiled(compiled, chain, images, basis)},
        float(n * d * (1 + torch.empty(0, dtype=dtype).element_size())),
        4.0 * n * d * k,
        (_deviation(got, exact), math.nan),
        goals={"eager": 15},
    )


def softmax_regression_step(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d, classes = shape.n, shape.d, shape.k
    x, y = pixels(n, d, dtype, device), torch.randint(0, classes, (n,), device=device)
    ours, theirs = torch.zeros(classes, d, device=device), torch.zeros(classes, d, device=device)

    def tensors(x: Tensor, y: Tensor, weight: Tensor) -> None:
        a = reference.unit(x)
        p = (a @ weight.T).softmax(1)
        p[torch.arange(len(y), device=y.device), y] -= 1
        weight.sub_(p.T @ a, alpha=0.01 / len(y))

    a = torch.full((classes, d), 1e-3, device=device)
    exact, plain = a.double(), a.clone()
    reference.softmax_regression_step(x.double() / (255 if dtype == torch.uint8 else 1), y, exact, 0.1)
    ops.softmax_regression_step(x, y, a, 0.1)
    reference.softmax_regression_step(x, y, plain, 0.1)
    return Case(
        f"softmax_regression_step {n} x {d}, {classes} classes",
        {"kernel": lambda: ops.softmax_regression_step(x, y, ours, 0.01)},
        {"tensors": lambda: tensors(x, y, theirs)},
        float(x.element_size() * n * d + 8 * classes * d),
        4.0 * n * d * classes,
        (_deviation(a, exact), _deviation(plain, exact)),
    )


def apply_perturbation(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d, classes = shape.n, shape.d, shape.k
    x, y = pixels(n, d, torch.uint8, device), torch.randint(0, classes, (n,), device=device)
    delta = (torch.rand(classes, d, device=device) - 0.5) * 16 / 255

    def plain(x: Tensor, delta: Tensor, y: Tensor) -> Tensor:
        return (x.float() + 255 * delta[y]).clamp(0, 255).round().to(torch.uint8)

    exact = (x.double() + 255.0 * delta[y].double()).clamp(0, 255).round()
    return Case(
        f"apply_perturbation {n} x {d}, {classes} classes",
        {"kernel": lambda: ops.apply_perturbation(x, delta, index=y)},
        {"eager": lambda: plain(x, delta, y), **_compiled(compiled, plain, x, delta, y)},
        2.0 * n * d,
        2.0 * n * d,
        (_deviation(ops.apply_perturbation(x, delta, index=y), exact), _deviation(plain(x, delta, y), exact)),
    )


def pgd_step(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d = shape.n, shape.d
    x, grad, start = (torch.rand(n, d, device=device) for _ in range(3))
    norm = "linf" if shape.k != 2 else "l2"

    def plain(x: Tensor, grad: Tensor, start: Tensor) -> Tensor:
        if norm == "l2":
            delta = x + 0.01 * grad / grad.norm(dim=1, keepdim=True).clamp_min(1e-12) - start
            delta = delta * (0.03 / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
        else:
            delta = (x + 0.01 * grad.sign() - start).clamp(-0.03, 0.03)
        return (start + delta).clamp(0, 1)

    few = slice(0, min(n, 64))
    exact = plain(x[few].double(), grad[few].double(), start[few].double())
    got = ops.pgd_step(x[few].clone(), grad[few], start[few], alpha=0.01, eps=0.03, norm=norm)
    return Case(
        f"pgd_step {norm} {n} x {d}",
        {"kernel": lambda: ops.pgd_step(x, grad, start, alpha=0.01, eps=0.03, norm=norm)},
        {"eager": lambda: plain(x, grad, start), **_compiled(compiled, plain, x, grad, start)},
        16.0 * n * d,
        6.0 * n * d,
        (_deviation(got, exact), _deviation(plain(x[few], grad[few], start[few]), exact)),
    )


def _small_project(small: Small) -> dict[str, tuple[Any, ...]]:
    basis = small.rows(5, 768)
    return {
        "project": (small.images, basis),
        "project_out": (small.images, basis, torch.zeros(small.x.shape)),
        "project_": (small.x, basis),
    }


def _small_classwise(small: Small) -> dict[str, tuple[Any, ...]]:
    bases = small.rows(4, 2, 768)
    return {
        "project_classwise": (small.images, bases, small.labels),
        "project_classwise_out": (small.images, bases, small.labels, torch.zeros(small.x.shape)),
    }


def _small_ingest(small: Small) -> dict[str, tuple[Any, ...]]:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    shift = torch.stack([small.labels - 2, 1 - small.labels], 1).to(torch.int32)
    index, flip = torch.arange(32, -1, -1), small.labels % 2 == 0
    return {"ingest": (small.images, small.rows(5, 768), mean, std, torch.float32, index, shift, flip)}


def _small_softmax(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"softmax_regression_step": (small.images, small.labels, small.normals(4, 768) / 100, 0.1)}


def _small_apply(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"apply_perturbation": (small.images, small.normals(4, 16, 16, 3) / 30, small.labels, True)}


def _small_pgd(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"pgd_step": (small.x + 0.01, small.normals(*small.x.shape), small.x, 0.02, 0.2, "l2")}


def philox_uniform(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d = shape.n, shape.d
    return Case(
        f"philox_uniform {n} x {d}",
        {"kernel": lambda: ops.philox_uniform(0, 1, 0, n, d, device=device)},
        {"torch.rand": lambda: torch.rand(n, d, device=device)},
        4.0 * n * d,
    )


def philox_normal(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    n, d = shape.n, shape.d
    return Case(
        f"philox_normal {n} x {d}",
        {"kernel": lambda: ops.philox_normal(0, 1, 0, n, d, device=device)},
        {"torch.randn": lambda: torch.randn(n, d, device=device)},
        4.0 * n * d,
    )


F32, U8, BF16, F16, F64 = torch.float32, torch.uint8, torch.bfloat16, torch.float16, torch.float64

OPERATORS: dict[str, Operator] = {
    "project": Operator(project, _small_project, "basis rows", (F32, U8, BF16, F16, F64)),
    "project_classwise": Operator(
        project_classwise, _small_classwise, "classes, one row each", (F32, U8, BF16, F16, F64)
    ),
    "ingest": Operator(
        ingest, _small_ingest, "basis rows; the dtype is the result's", (BF16, F32, F16), Shape(1024, 3072, 9)
    ),
    "softmax_regression_step": Operator(
        softmax_regression_step, _small_softmax, "classes", (U8, F32), Shape(1024, 3072, 10)
    ),
    "apply_perturbation": Operator(apply_perturbation, _small_apply, "classes", (U8,)),
    "pgd_step": Operator(pgd_step, _small_pgd, "2 for L2, else L-infinity", (F32,), Shape(1024, 3072, 1)),
    "philox_uniform": Operator(
        philox_uniform, lambda small: {"philox_uniform": (7, 1, 3, 9, 50)}, "nothing", (F32,), Shape(4096, 3072, 1)
    ),
    "philox_normal": Operator(
        philox_normal, lambda small: {"philox_normal": (7, 1, 3, 9, 50)}, "nothing", (F32,), Shape(4096, 3072, 1)
    ),
}
