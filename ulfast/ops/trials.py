"""Compares every CUDA kernel with its twin; run in the child process of `verification`.

`main` prints one line of JSON at its start, {"gpu": name}, and one for each operator: {"operator": name, "wrong": null
or a description}.

A kernel's results must match the twin's on the CPU, which is independent of the GPU and its libraries. The sizes cover
every family of `project` and `ingest` in csrc/cuda (those that keep the basis in shared memory need rows of 512 values
or more, and enough of them to fill the GPU), one row, odd rows, rows cut into pieces, and every dtype. Each call is
repeated in the `WAYS` in which programs make it.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import crossover, reference

LIMIT = 180  # seconds after which the process ends itself, in case its parent is gone
WAYS = ("plain", "misaligned", "strided", "stream", "graph")
U8, F16, BF16, F32, F64 = torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64
I64, CPU = torch.int64, torch.device("cpu")
ENOUGH = 720  # rows that fill a GPU of up to 360 multiprocessors


@dataclass(frozen=True)
class Close:
    """How close a result must be.

    Attributes:
        absolute, relative: tolerances for every value.
        share: fraction of the values that may be off further (where rounding decides), though by no more than `most`.
            If it is not 0, one value may always be.
    """

    absolute: float = 0.0
    relative: float = 0.0
    share: float = 0.0
    most: float = 0.0


EQUAL = Close()
LEVEL = Close(share=1e-3, most=1)  # whole uint8 levels, rounded or truncated
ROWS = {
    U8: Close(3e-5, 3e-6),
    F32: Close(3e-5, 3e-6),
    F64: Close(1e-11, 1e-12),
    F16: Close(2e-2, 2e-3),
    BF16: Close(3.2e-2, 1.6e-2),
}
BATCH = {F32: Close(1e-4, 2e-5), BF16: Close(3.2e-2, 1.6e-2), F16: Close(4e-3, 2e-3)}


@dataclass(frozen=True)
class Trial:
    """One call.

    Attributes:
        name: name of the operator in `torch.ops.ulfast` and of its twin.
        about: the sizes, for reports.
        given: arguments, with tensors on the CPU.
        close: tolerance for what it returns and what it changes.
        drawn: whether it takes a device instead of tensors.
        strided: whether the first argument may have gaps between its rows.
    """

    name: str
    about: str
    given: tuple[Any, ...]
    close: Close
    drawn: bool = False
    strided: bool = False


# --- one trial --------------------------------------------------------------------------------------------------------


def apart(got: Sequence[Tensor], want: Sequence[Tensor], close: Close) -> str:
    """How results differ from what they should be; empty if they are close enough."""
    for ours, twin in zip(got, want, strict=True):
        if ours.shape != twin.shape or ours.dtype != twin.dtype:
            return f"is {tuple(ours.shape)} {ours.dtype}, not {tuple(twin.shape)} {twin.dtype}"
        if not twin.numel():
            continue
        a, b = ours.double(), twin.to(ours.device).double()
        lost = a.isnan() != b.isnan()
        if lost.any():
            return f"{int(lost.sum())} of {lost.numel()} values are not a number on one side alone"
        off = (a - b).abs().nan_to_num(0.0, torch.inf)
        far = off > close.absolute + close.relative * b.abs().nan_to_num(0.0)
        count = int(far.sum())
        allowed = max(1, int(close.share * far.numel())) if close.share else 0
        if count > allowed or (count and float(off.max()) > close.most):
            return f"{count} of {far.numel()} values are off by up to {float(off.max()):.2g}"
    return ""


def _copies(values: Sequence[Any], device: torch.device, way: str = "plain") -> list[Any]:
    """The arguments on a device: tensors start one value past an aligned address, or (the first one) have gaps."""

    def copy(i: int, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if way == "misaligned" and value.numel():
            moved = torch.empty(value.numel() + 1, dtype=value.dtype, device=device)[1:].view(value.shape)
        elif way == "strided" and i == 0:
            moved = torch.empty(len(value), value.shape[1] + 3, dtype=value.dtype, device=device)[:, : value.shape[1]]
        else:
            moved = torch.empty(value.shape, dtype=value.dtype, device=device)
        return moved.copy_(value)

    return [copy(i, value) for i, value in enumerate(values)]


def _tensors(given: Sequence[Any], got: Any) -> list[Tensor]:
    """The arguments of a call, which it may have changed, and its results."""
    return [v for v in (*given, *(got if isinstance(got, tuple) else (got,))) if isinstance(v, Tensor)]


def _ways(trial: Trial, device: torch.device) -> Iterator[str]:
    for way in WAYS:
        if way == "strided" and not trial.strided:
            continue
        if way == "misaligned" and trial.drawn:
            continue
        if way in ("stream", "graph") and device.type != "cuda":
            continue
        yield way


def _run(call: Callable[..., Any], trial: Trial, device: torch.device, way: str) -> list[Tensor]:
    """All tensors of a call, after it."""
    if way not in ("stream", "graph"):
        there = _copies(trial.given, device, way)
        return _tensors(there, call(*there))
    held, there = _copies(trial.given, device), _copies(trial.given, device)
    for value in there:
        if isinstance(value, Tensor):
            value.zero_()
    stream = torch.cuda.Stream(device)
    torch.cuda.synchronize(device)

    def fill() -> None:
        for value, right in zip(there, held, strict=True):
            if isinstance(value, Tensor):
                value.copy_(right)

    if way == "stream":  # the arguments arrive late, on their own stream
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            fill()
            result = call(*there)
        stream.synchronize()
        return _tensors(there, result)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call(*there)
        torch.cuda.synchronize(device)
        graph.capture_begin()  # `torch.cuda.graph` would collect garbage first: a tenth of a second per trial
        try:
            result = call(*there)
        finally:
            graph.capture_end()
    for _ in range(2):
        for value in _tensors((), result):
            value.zero_()
        fill()
        graph.replay()
    torch.cuda.synchronize(device)
    return _tensors(there, result)


def wrong(operator: str, device: torch.device, ours: Any) -> str | None:
    """What is wrong with an operator, or None. `ours` has the kernels by name."""
    for trial in TRIALS[operator]():
        call, twin = getattr(ours, trial.name), getattr(reference, trial.name)
        there = _copies(trial.given, CPU)
        want = _tensors(there, twin(*there, device=CPU) if trial.drawn else twin(*there))
        want = [value.to(device) for value in want]

        def kernel(*given: Any, call: Callable[..., Any] = call, drawn: bool = trial.drawn) -> Any:
            return call(*given, device=device) if drawn else call(*given)

        for way in _ways(trial, device):
            where = f"{trial.name} {trial.about}{'' if way == 'plain' else f', {way}'}"
            try:
                off = apart(_run(kernel, trial, device, way), want, trial.close)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:
                return f"{where}: {type(problem).__name__}: {str(problem).strip().partition(chr(10))[0][:200]}"
            if off:
                return f"{where}: {off}"
        if device.type == "cuda":
            torch.cuda.empty_cache()  # every graph had its own memory
    return None


def try_all(operators: Sequence[str], device: torch.device, ours: Any, say: Callable[[dict[str, Any]], None]) -> int:
    """Tries operators in order and reports each result. Returns an exit code: 3 if the GPU has become unusable."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    torch.zeros(1, dtype=F32, device=device).sum().item()  # an unusable GPU is not the fault of an operator
    say({"gpu": name})
    for operator in operators:
        try:
            say({"operator": operator, "wrong": wrong(operator, device, ours)})
        except torch.OutOfMemoryError:  # temporary, and not the kernel's fault
            say({"operator": operator, "wrong": "no memory was free to try it", "passing": True})
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError:  # otherwise this operator's fault would be attributed to the next
                return 3
    return 0


def main(arguments: Sequence[str] | None = None, ours: Any = None) -> int:
    parser = argparse.ArgumentParser(description="Try ulfast's CUDA kernels against their twins.")
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("operators", nargs="*", default=list(TRIALS))
    options = parser.parse_args(arguments)
    signal.alarm(LIMIT)
    device: torch.device = options.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for ranks in crossover.FUSED_RANK["cuda"].values():
        ranks.update(dict.fromkeys(ranks, 128))  # always the kernels, even where slower
    # Unwritten memory is NaN, so that leftover results of the previous call do not count.
    torch.use_deterministic_algorithms(True, warn_only=True)

    def say(words: dict[str, Any]) -> None:
        print(json.dumps(words), flush=True)

    return try_all(options.operators, device, ours or torch.ops.ulfast, say)


# --- the trials -------------------------------------------------------------------------------------------------------


class _Draw:
    """Reproducible arguments."""

    def __init__(self, seed: int) -> None:
        self._g = torch.Generator().manual_seed(seed)

    def rows(self, n: int, d: int, dtype: torch.dtype) -> Tensor:
        """Pixels: bytes, or floats in [0, 1]."""
        if dtype == U8:
            return self.bytes(n, d)
        return self.uniforms(n, d).to(dtype)

    def bytes(self, *size: int) -> Tensor:
        return torch.randint(0, 256, size, generator=self._g, dtype=U8, device=CPU)

    def normals(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self._g, dtype=F32, device=CPU)

    def uniforms(self, *size: int) -> Tensor:
        return torch.rand(*size, generator=self._g, dtype=F32, device=CPU)

    def below(self, limit: int, n: int) -> Tensor:
        return torch.randint(0, limit, (n,), generator=self._g, dtype=I64, device=CPU)

    def basis(self, k: int, d: int, dtype: torch.dtype = F32) -> Tensor:
        """Rows of length 1 / sqrt(k): the twins do not need orthonormal rows, which take seconds to make."""
        rows = torch.nn.functional.normalize(self.normals(k, d).double(), dim=1) / max(1, k) ** 0.5
        return rows.to(F64 if dtype == F64 else F32)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _project() -> Iterator[Trial]:
    draw = _Draw(1)
    small = ((1, 1, 1), (1, 3072, 10), (5, 15, 3), (9, 16, 10), (17, 1030, 16), (7, 3073, 32), (3, 12288, 3))
    filling = ((ENOUGH, 784, 1), (ENOUGH, 3072, 10), (ENOUGH // 2, 6148, 16), (ENOUGH // 2, 3072, 32))
    # On tensor cores, in one launch and in three.
    tensor_cores = ((4 * ENOUGH, 512, 10), (4 * ENOUGH, 512, 24), (ENOUGH, 3072, 50), (ENOUGH, 3080, 100))
    for dtype in ROWS:
        for n, d, k in small if dtype == F64 else small + filling + tensor_cores:
            x, basis = draw.rows(n, d, dtype), draw.basis(k, d, dtype)
            about, close = f"{n} x {d}, k {k}, {_short(dtype)}", ROWS[dtype]
            yield Trial("project", about, (x, basis), close, strided=True)
            if (n, k) in ((9, 10), (17, 16), (ENOUGH, 10), (ENOUGH, 50)):
                out = torch.zeros(n, d, dtype=reference.projected_dtype(dtype), device=CPU)
                yield Trial("project_out", about, (x, basis, out), close)
                if dtype != U8:
                    yield Trial("project_", about, (x, basis), close)


def _project_classwise() -> Iterator[Trial]:
    draw = _Draw(2)
    small = ((1, 1, 1, 2), (23, 18, 1, 3), (40, 1030, 3, 4), (9, 3073, 10, 2), (3, 12288, 2, 2), (6, 40, 32, 2))
    filling = ((ENOUGH, 3072, 1, 10), (ENOUGH, 784, 3, 4))
    for dtype in ROWS:
        for n, d, r, classes in small if dtype == F64 else small + filling:
            x, labels = draw.rows(n, d, dtype), draw.below(classes, n)
            bases = torch.stack([draw.basis(r, d, dtype) for _ in range(classes)])
            about, close = f"{n} x {d}, {classes} classes of {r}, {_short(dtype)}", ROWS[dtype]
            yield Trial("project_classwise", about, (x, bases, labels), close, strided=True)
            if n in (40, ENOUGH) and r == 3:
                out = torch.zeros(n, d, dtype=reference.projected_dtype(dtype), device=CPU)
                yield Trial("project_classwise_out", about, (x, bases, labels, out), close)


def _ingest() -> Iterator[Trial]:
    draw = _Draw(3)
    sizes: tuple[tuple[int, int, int, int, int, int], ...] = (  # images, height, width, channels, k, classes
        (1, 1, 1, 1, 1, 0),
        (5, 5, 7, 3, 16, 0),
        (11, 9, 8, 3, 32, 0),
        (7, 6, 4, 4, 3, 0),
        (5, 3, 5, 3, 0, 0),
        (9, 31, 33, 3, 3, 0),
        (11, 6, 10, 3, 3, 3),
        (3, 64, 64, 3, 10, 0),
        (ENOUGH, 32, 32, 3, 10, 0),
        (ENOUGH // 2, 48, 44, 3, 32, 0),
        (ENOUGH, 28, 28, 1, 1, 0),
        (ENOUGH // 2, 32, 32, 3, 0, 0),
        (ENOUGH, 32, 32, 3, 1, 10),
    )
    for n, h, w, c, k, classes in sizes:
        stored = min(n, 40)
        images, index = draw.bytes(stored, h, w, c), draw.below(stored, n)
        basis: Tensor | None = draw.basis(k, h * w * c) if k else None
        if classes:
            basis = torch.stack([draw.basis(k, h * w * c) for _ in range(classes)])
        labels = draw.below(classes, n) if classes else None
        mean, std = draw.uniforms(c), draw.uniforms(c) + 0.2
        shift = (draw.below(9, 2 * n) - 4).view(n, 2).to(torch.int32)
        if n > 4:  # a black image; not the first or the last, which are the most telling
            for row, to in ((2, (-h, w)), (n // 2, (2**31 - 1, -(2**31)))):
                shift[row, 0], shift[row, 1] = to
        flip = torch.arange(n, dtype=I64, device=CPU) % 3 != 1
        for dtype, close in BATCH.items():
            about = f"{n} x {h} x {w} x {c}, k {k}, {classes} classes, {_short(dtype)}"
            given = (images, basis, mean, std, dtype)
            yield Trial("ingest", f"{about}, moved", (*given, index, shift, flip, labels), close)
            if (labels is None and dtype == F32) or n == 1:
                yield Trial("ingest", about, given, close)


def _softmax() -> Iterator[Trial]:
    draw = _Draw(4)
    for n, d, classes in ((1, 1, 2), (9, 15, 3), (70, 17, 10), (6, 260, 33), (300, 3072, 10), (6, 12288, 17)):
        for dtype in (U8, F32):
            x, labels, weight = draw.rows(n, d, dtype), draw.below(classes, n), draw.normals(classes, d) / 30
            about, close = f"{n} x {d}, {classes} classes, {_short(dtype)}", Close(2e-5, 2e-5)
            yield Trial("softmax_regression_step", about, (x, labels, weight, 0.1), close)
            index = draw.below(n, n // 2 + 1)
            yield Trial("softmax_regression_step", f"{about}, index", (x, labels, weight, 0.1, index), close)


PICTURES = ((1, 1, 1, 1), (5, 4, 4, 3), (7, 5, 3, 1), (3, 33, 41, 3), (65, 32, 32, 3))


def _apply() -> Iterator[Trial]:
    draw = _Draw(5)
    for n, h, w, c in PICTURES:
        images, delta, index = draw.bytes(n, h, w, c), draw.normals(6, h, w, c) / 10, draw.below(6, n)
        for truncate in (False, True):
            about = f"{n} x {h} x {w} x {c}{', truncated' if truncate else ''}"
            yield Trial("apply_perturbation", about, (images, delta, index, truncate), LEVEL)
        yield Trial("apply_perturbation", f"{n} x {h} x {w} x {c}, own", (images, draw.normals(n, h, w, c) / 10), LEVEL)


def _pgd() -> Iterator[Trial]:
    draw = _Draw(6)
    for shape in ((1, 1), (3, 5), (4, 8), (2, 700), (33, 3072), (5, 3, 7, 9), (2, 12289)):
        start = draw.uniforms(*shape)
        for norm in ("linf", "l2"):
            for clamp in (True, False):
                given = ((start + 0.01), draw.normals(*shape), start, 0.1, 0.05, norm, clamp)
                yield Trial("pgd_step", f"{shape}, {norm}, clamp {clamp}", given, Close(2e-6, 2e-6))


def _philox(name: str) -> Iterator[Trial]:
    for n, d in ((1, 1), (9, 3), (300, 4), (7, 5), (3, 64), (33, 3073)):
        for seed, first in ((5, 7), (-(2**40), 2**33)):
            # The same bits are promised on every device.
            yield Trial(name, f"{n} x {d} from {first}, seed {seed}", (seed, 2, first, n, d), EQUAL, drawn=True)


def _moments() -> Iterator[Trial]:
    draw = _Draw(7)
    for n, d, classes in ((1, 1, 1), (9, 15, 3), (700, 768, 10), (65, 3073, 100), (33, 12288, 4)):
        given = (draw.bytes(n, d), draw.below(classes, n), classes)
        yield Trial("class_moments", f"{n} x {d}, {classes} classes", given, EQUAL)


def _lsp() -> Iterator[Trial]:
    draw = _Draw(8)
    for n, h, w, c, patch in (
        (1, 1, 1, 1, 1),
        (5, 8, 9, 3, 8),
        (65, 32, 32, 3, 8),
        (3, 33, 41, 3, 8),
        (4, 16, 16, 1, 5),
    ):
        m = math.ceil(h / patch) * math.ceil(w / patch) * c
        labels, centroids, mixing = draw.below(4, n), draw.normals(4, m) * 10, draw.normals(4, m, m) / m**0.5
        given, about = (labels, centroids, mixing, 3, 9, h, w, c, patch, 1.3), f"{n} x {h} x {w} x {c}, patch {patch}"
        yield Trial("perturb_lsp", about, given, Close(3e-5, 3e-5))
        yield Trial("perturb_lsp", f"{about}, added", (*given, draw.bytes(n, h, w, c), True), LEVEL)


def _ar() -> Iterator[Trial]:
    draw = _Draw(9)
    for n, h, w, c, kind in ((1, 1, 1, 1, "l2"), (5, 8, 9, 3, "linf"), (40, 16, 17, 3, "l2"), (3, 21, 12, 1, "none")):
        windows = draw.uniforms(4, c, 3, 3)
        windows[..., 2, 2] = 0
        windows /= windows.sum((2, 3), keepdim=True)
        given, about = (draw.below(4, n), windows, 3, 9, h, w, 1.0, kind), f"{n} x {h} x {w} x {c}, {kind}"
        yield Trial("perturb_ar", about, given, Close(3e-5, 3e-5))
        yield Trial("perturb_ar", f"{about}, added", (*given, draw.bytes(n, h, w, c)), LEVEL)


def _convolution() -> Iterator[Trial]:
    draw = _Draw(10)
    for (n, h, w, c), side in zip(PICTURES, (1, 3, 4, 9, 3), strict=True):
        given = (draw.bytes(n, h, w, c), draw.below(4, n), draw.uniforms(4, side, side))
        yield Trial("perturb_convolution", f"{n} x {h} x {w} x {c}, side {side}", given, LEVEL)


def _linear() -> Iterator[Trial]:
    """The sign of a slope that is zero up to rounding is arbitrary: a few values may go the other way."""
    draw = _Draw(11)
    close = Close(share=3e-3, most=16)
    for n, d, classes in ((1, 12, 2), (5, 301, 10), (64, 3072, 10), (3, 3073, 20)):
        images, labels, weight = draw.bytes(n, d), draw.below(classes, n), draw.normals(classes, d) / 10
        given = (images, labels, weight, 7, 2 / 255, 8 / 255, 0.9)
        yield Trial("perturb_linear", f"{n} x {d}, {classes} classes", given, close)


TRIALS: dict[str, Callable[[], Iterator[Trial]]] = {
    "apply_perturbation": _apply,
    "pgd_step": _pgd,
    "philox_uniform": lambda: _philox("philox_uniform"),
    "philox_normal": lambda: _philox("philox_normal"),
    "class_moments": _moments,
    "project": _project,
    "project_classwise": _project_classwise,
    "ingest": _ingest,
    "softmax_regression_step": _softmax,
    "perturb_lsp": _lsp,
    "perturb_ar": _ar,
    "perturb_convolution": _convolution,
    "perturb_linear": _linear,
}
