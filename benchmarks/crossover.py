"""The rank of the basis above which library products beat the fused kernels: the table behind ulfast/ops/crossover.py.

    python benchmarks/crossover.py [--op project ingest ...] [--rounds N] [--json FILE]

Both ways take turns on the same images, `project` into a given tensor. A number is the time of the library's way over
that of the fused kernel, the median over the rounds; above 1 the kernel wins. The crossover is the largest rank up to
which it wins for every shape.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from ulfast import ops
from ulfast.ops import crossover, reference
from ulfast.runtime import environment

RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHAPES = ((2048, 32), (64, 224))  # images, side
DTYPES = (torch.uint8, torch.bfloat16, torch.float32, torch.float64)
CLASSES = 10
OPS = ("project", "project_classwise", "ingest")


def task(op: str, dtype: torch.dtype, n: int, side: int, rank: int):
    """A function without arguments that runs the operator once."""
    shape, d = (n, side, side, 3), 3 * side * side
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    x = images if dtype == torch.uint8 else (images / 255).to(dtype)
    basis = torch.randn(rank, d) / d**0.5  # with the norm of orthonormal rows, which suffices for timing
    if op == "project":
        out = torch.empty(shape, dtype=reference.projected_dtype(dtype))
        return lambda: ops.project(x, basis, out=out)
    if op == "project_classwise":
        bases, labels = basis.repeat(CLASSES, 1, 1), torch.arange(n) % CLASSES
        return lambda: ops.project_classwise(x, bases, labels)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    shift, flip = torch.randint(-4, 5, (n, 2), dtype=torch.int32), torch.rand(n) < 0.5
    return lambda: ops.ingest(x, basis, mean, std, dtype=torch.bfloat16, shift=shift, flip=flip)


def ratio(work, rounds: int) -> float:
    """Time of library products over time of the fused kernel."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds + 1):
        for fused in (True, False):
            with mock.patch.object(crossover, "fused", lambda *_, fused=fused: fused):
                start = time.perf_counter()
                work()
            if number:  # the first warms up
                times[fused].append(time.perf_counter() - start)
    return statistics.median(times[False]) / statistics.median(times[True])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", choices=OPS, default=list(OPS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = environment.describe()
    print(f"{about['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| operator, images | " + " | ".join(f"k = {k}" for k in RANKS) + " | in use |")
    print("|---" * (len(RANKS) + 2) + "|")
    rows = []
    for op in options.op:
        for dtype in DTYPES:
            for n, side in SHAPES:
                torch.manual_seed(0)
                found = {k: ratio(task(op, dtype, n, side, k), options.rounds) for k in RANKS}
                rows.append({"op": op, "dtype": str(dtype), "images": n, "side": side, "ratio": found})
                name = f"`{op}`, {n} × {side} px {str(dtype).removeprefix('torch.')}"
                cells = " | ".join(f"{found[k]:.2f}" for k in RANKS)
                print(f"| {name} | {cells} | {crossover.FUSED_RANK['cpu'][op][dtype]} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
