"""The operators on a GPU: medians by CUDA events, ratios to what PyTorch does, the share of the copy bandwidth.

    python benchmarks/gpu.py --out FOLDER [--seconds 150]
    python benchmarks/gpu.py --out FOLDER --dry     the same on the CPU, tiny: tests this file, measures nothing

Writes gpu.json and gpu.md. Inputs rotate through sets that together outgrow the second-level cache twice. What time or
memory does not allow is named in the JSON's "left_out". gpu_cases.py says what is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Job, jobs

from ulfast.profiling.measure import roof, timed
from ulfast.runtime import environment

REPEATS = 15


def medians(runs: dict[str, Callable[[int], Any]], sets: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Seconds of every contestant; they take turns, each on another set than the last."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    turn = 0
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            spent = timed(lambda run=run, at=turn % sets: run(at), device)
            turn += 1
            if round_:  # the first round warms up
                times[name].append(spent)
        if sets % len(runs) == 0:
            turn += 1  # or every contestant would keep its own sets
    return {name: statistics.median(values) for name, values in times.items()}


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """Copy bandwidth (read plus written) and rates of products in float32, TF32 and bfloat16, now."""
    top = roof(device)
    side = 256 if dry else 8192
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    for name, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
        x, y = a.to(dtype), b.to(dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        spent = medians({name: lambda _, x=x, y=y: x @ y}, 1, device, 5)[name]
        top[f"{name}_flops_per_s"] = 2 * side**3 / spent
    torch.backends.cuda.matmul.allow_tf32 = False
    return top


def measure(job: Job, device: torch.device, top: dict[str, float], dry: bool) -> dict[str, Any]:
    """A row of the table."""
    cache = 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size
    sets = 2 if dry else min(64, max(2, -(-2 * cache // max(1, job.input_bytes))))
    race = job.make(sets)
    repeats = 1 if dry else job.repeats or REPEATS
    seconds = medians({"ulfast": race.ours, **race.peers}, sets, device, repeats)
    mine, peers = seconds["ulfast"], {name: seconds[name] for name in race.peers}
    return {
        "case": job.name,
        "op": job.op,
        "n": job.n,
        "d": job.d,
        "k": job.k,
        "dtype": job.dtype,
        "sets": sets,
        "repeats": repeats,
        "seconds": seconds,
        "ratio": {name: spent / mine for name, spent in peers.items()},
        "gb_per_s": job.bytes / mine / 1e9,
        "of_copy": job.bytes / mine / top["copy_bytes_per_s"],
        "gflop_per_s": job.flops / mine / 1e9,
        "error": race.error,
        "plain_error": race.plain_error,
    }


def table(rows: list[dict[str, Any]], top: dict[str, float], about: dict[str, Any], dry: bool) -> str:
    """The short table: markdown."""
    title = "DRY RUN on the CPU: no figure here means anything. " if dry else ""
    lines = [
        f"{title}{about['gpu'] or about['cpu']}, torch {about['torch']}, ulfast {about['commit']};"
        f" copy {top['copy_bytes_per_s'] / 1e9:,.0f} GB/s; products in TFLOP/s: fp32"
        f" {top['sgemm_flops_per_s'] / 1e12:.1f}, TF32 {top['tf32_flops_per_s'] / 1e12:.1f}, bf16"
        f" {top['bf16_flops_per_s'] / 1e12:.1f}",
        "",
        "| case | ms | of copy | times slower than ulfast | error | plain's |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = ", ".join(f"{name} {ratio:.1f}" for name, ratio in row["ratio"].items())
        lines.append(
            f"| {row['case']} | {1e3 * row['seconds']['ulfast']:.3f} | {row['of_copy']:.2f} | {ratios} |"
            f" {row['error']:.1e} | {row['plain_error']:.1e} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=150, help="no case begins after this many (default 150)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    begun = time.monotonic()
    if not options.dry:
        if not torch.cuda.is_available():
            sys.exit("gpu.py: torch sees no NVIDIA GPU here: nothing was measured.")
        from ulfast.ops import cuda

        if not cuda.enabled("project", torch.device("cuda")):
            sys.exit("gpu.py: the kernels are off: build with nvcc and set ULFAST_CUDA_KERNELS=1, then repeat.")
    device = torch.device("cpu" if options.dry else "cuda")
    options.out.mkdir(parents=True, exist_ok=True)
    about, top = environment.describe(), ceilings(device, options.dry)
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, str]] = []
    failed, text = 0, ""
    for job in jobs(device, options.dry):
        free = 1 << 62 if options.dry else torch.cuda.mem_get_info()[0]
        reason = ""
        if time.monotonic() - begun > options.seconds:
            reason = f"{options.seconds:g} s were over"
        elif job.memory > 0.8 * free:
            reason = f"needs {job.memory / 1e9:.0f} GB, {free / 1e9:.0f} are free"
        elif job.missing:
            reason = "has no CUDA kernel in this build"
        else:
            torch.manual_seed(0)
            try:
                rows.append(measure(job, device, top, options.dry))
            except RuntimeError as error:  # one case's fault is said, and the others are measured
                reason, failed = f"failed: {str(error).splitlines()[0]}", failed + 1
        if reason:
            left_out.append({"case": job.name, "reason": reason})
            print(f"left out: {job.name}: {reason}", file=sys.stderr, flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        # After every case: one that is cut off loses only itself.
        text = table(rows, top, about, options.dry)
        result = {"dry": options.dry, "environment": about, "ceilings": top, "rows": rows, "left_out": left_out}
        (options.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.out / "gpu.md").write_text(text)
    print(text, end="")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
