"""Medians of contestants that take turns, and the machine's roofline, measured in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .cases import Case


def timed(run: Callable[[], Any], device: torch.device | None = None) -> float:
    """Seconds of one call: by events on a GPU, by the clock otherwise. The attribute `times` of a function says for how
    many calls it stands.

    The GPU pauses for half a millisecond before the first event, so that work that is issued faster than that is queued
    by then, and only the device's time is measured.
    """
    factor: float = getattr(run, "times", 1.0)
    if device is not None and device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(1_000_000)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 * factor
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * factor


def roof(device: torch.device | None = None) -> dict[str, float]:
    """Copy bandwidth (bytes read plus written per second) and sgemm rate (flops per second) of this machine, now."""
    where = device or torch.device("cpu")
    count, side = (12 << 20, 1024) if where.type == "cpu" else (256 << 20, 8192)
    a, b = torch.rand(count, device=where), torch.zeros(count, device=where)
    x, y = torch.rand(side, 3072, device=where), torch.rand(3072, side, device=where)
    z = torch.zeros(side, side, device=where)
    copy = statistics.median(timed(lambda: b.copy_(a), where) for _ in range(15))
    product = statistics.median(timed(lambda: torch.mm(x, y, out=z), where) for _ in range(9))
    return {"copy_bytes_per_s": 8 * a.numel() / copy, "sgemm_flops_per_s": 2 * side * side * 3072 / product}


@dataclass(frozen=True)
class Timing:
    """A measured case.

    Attributes:
        seconds: median of every contestant; `spread` its minimum and maximum.
        ours, best_peer: the fastest of each side.
        x_best, x_plain: how many times faster ours is than the best peer and than the first.
        x_roof: our time over the minimum that bytes and flops allow here; None if neither is known.
        bound: "memory" or "arithmetic", whichever sets that minimum.
        gb_per_s, gflop_per_s: rates of ours, counting the minimal bytes and flops.
        error: largest deviation from float64, of ours and of the plain expression.
        goals: those of the case.
    """

    case: str
    seconds: dict[str, float]
    spread: dict[str, tuple[float, float]]
    ours: str
    best_peer: str
    x_best: float
    x_plain: float
    x_roof: float | None
    bound: str
    gb_per_s: float
    gflop_per_s: float
    error: tuple[float, float] | None
    goals: dict[str, float]
    repeats: int
    bytes: float
    flops: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure(
    case: Case, top: dict[str, float], device: torch.device | None = None, repeats: int | None = None
) -> Timing:
    """Runs every contestant once per round, so that a slow moment affects all; medians are compared."""
    runs = {**case.ours, **case.peers}
    for name, run in runs.items():
        if device is not None and device.type == "cuda":
            with torch.cuda.nvtx.range(f"{case.name}: {name}"):
                run()
        else:
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    rounds = repeats or case.repeats
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(run, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ours, best = min(case.ours, key=medians.__getitem__), min(case.peers, key=medians.__getitem__)
    memory, arithmetic = case.bytes / top["copy_bytes_per_s"], case.flops / top["sgemm_flops_per_s"]
    least = max(memory, arithmetic)
    return Timing(
        case.name,
        medians,
        {name: (min(v), max(v)) for name, v in times.items()},
        ours,
        best,
        medians[best] / medians[ours],
        medians[next(iter(case.peers))] / medians[ours],
        medians[ours] / least if least else None,
        "memory" if memory >= arithmetic else "arithmetic",
        case.bytes / medians[ours] / 1e9,
        case.flops / medians[ours] / 1e9,
        case.error,
        case.goals,
        rounds,
        case.bytes,
        case.flops,
    )
