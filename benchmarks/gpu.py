"""The operators on a GPU: times without the host's part, ratios to what PyTorch does, the share of the copy bandwidth.

    python benchmarks/gpu.py --out FOLDER [--name gpu] [--seconds 150] [--only REGEX]
    python benchmarks/gpu.py --out FOLDER --part steps      shares of training steps, into the same files
    python benchmarks/gpu.py --out FOLDER --dry             on the CPU, tiny: tests this file, measures nothing

Writes NAME.json and NAME.md. Inputs go through sets that together outgrow the second-level cache twice. What time or
memory does not allow is named in the JSON's "left_out"; after an error that the GPU does not recover from, the case is
in "broken_off" and the exit code is 3. gpu_cases.py says what is measured, gpu_time.py how.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Job, jobs
from gpu_time import Broken, Thunk, alive, answer, ask, first_line, nvcc, race, warm

from ulfast.profiling.measure import roof
from ulfast.profiling.step import step_share
from ulfast.runtime import environment

ROUNDS = 9
STEPS = (("resnet18", 128, 32), ("resnet18", 512, 32), ("resnet50", 128, 224))


def machine() -> dict[str, Any]:
    """Versions, commit, and the current state of the GPU."""
    about = environment.describe()
    about["commit"] = os.environ.get("ULFAST_COMMIT") or about["commit"]
    about |= {"nvcc": nvcc(), "cuda": torch.version.cuda, "nvidia_smi": answer(ask())}
    about["driver"] = about["nvidia_smi"].get("driver_version")
    return about


def ceilings(device: torch.device, dry: bool) -> dict[str, float]:
    """Copy bandwidth (read plus written) and rates of products in float32, TF32 and bfloat16, now."""
    warm(device)
    top = roof(device)
    side = 256 if dry else 8192
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    for name, dtype in (("tf32", torch.float32), ("bf16", torch.bfloat16)):
        x, y = a.to(dtype), b.to(dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        spent = race({name: lambda _, x=x, y=y: x @ y}, 1, device, 5)[name]
        top[f"{name}_flops_per_s"] = 2 * side**3 / spent.seconds
    torch.backends.cuda.matmul.allow_tf32 = False
    return top


def copies(size: int, sets: int, device: torch.device) -> dict[str, Thunk]:
    """Reading and writing `size` bytes in all, by the driver and by a kernel of torch."""
    count = max(1, size // 8)
    sources = [torch.rand(count, device=device) for _ in range(sets)]
    results = [torch.empty(count, device=device) for _ in range(sets)]
    return {
        "copy": lambda i: results[i].copy_(sources[i]),
        "copy by a kernel": lambda i: torch.neg(sources[i], out=results[i]),
    }


def measure(job: Job, device: torch.device, top: dict[str, float], dry: bool) -> dict[str, Any]:
    """A row of the table."""
    cache = 0 if device.type == "cpu" else torch.cuda.get_device_properties(device).L2_cache_size
    sets = 2 if dry else min(512, max(2, -(-2 * cache // max(1, job.input_bytes))))
    made = job.make(sets)
    clocks = warm(device)
    forms = {f"ulfast {name}": run for name, run in made.forms.items()}
    runs = {"ulfast": made.ours, **forms, **made.peers, **copies(int(job.bytes), sets, device)}
    times = race(runs, sets, device, 1 if dry else ROUNDS)
    seconds = {name: spent.seconds for name, spent in times.items()}
    mine, copy = seconds["ulfast"], min(seconds["copy"], seconds["copy by a kernel"])
    return {
        "case": job.name,
        "op": job.op,
        "n": job.n,
        "d": job.d,
        "k": job.k,
        "dtype": job.dtype,
        "note": job.note,
        "sets": sets,
        "clocks": clocks,
        "times": {name: asdict(spent) for name, spent in times.items()},
        "seconds": seconds,
        "host_seconds": times["ulfast"].host,
        "ratio": {name: seconds[name] / mine for name in made.peers},
        "forms": {name: seconds[name] / mine for name in forms},
        "gb_per_s": job.bytes / mine / 1e9,
        "of_copy": copy / mine,
        "of_peak_copy": job.bytes / mine / top["copy_bytes_per_s"],
        "gflop_per_s": job.flops / mine / 1e9,
        "error": made.error,
        "suspect": not made.error <= 4 * made.plain_error + 1e-5,
        "plain_error": made.plain_error,
    }


def micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e6 * seconds:,.1f}"


def table(result: dict[str, Any]) -> str:
    """The short table: markdown."""
    about, top, rows = result["environment"], result["ceilings"], result["rows"]
    title = "DRY RUN on the CPU: no figure here means anything. " if result["dry"] else ""
    lines = [
        f"{title}{about['gpu'] or about['cpu']}, driver {about['driver']}, torch {about['torch']}, ulfast"
        f" {about['commit']};"
    ]
    if top:
        lines[0] += (
            f" copy {top['copy_bytes_per_s'] / 1e9:,.0f} GB/s; products in TFLOP/s: fp32"
            f" {top['sgemm_flops_per_s'] / 1e12:.1f}, TF32 {top['tf32_flops_per_s'] / 1e12:.1f}, bf16"
            f" {top['bf16_flops_per_s'] / 1e12:.1f}"
        )
    if rows:
        lines += [
            "",
            "| case | µs | host µs | of a copy of its size | of the largest copy | times slower than ulfast | error |"
            " plain's |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for row in rows:
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in {**row["ratio"], **row["forms"]}.items())
        name = ("WRONG? " if row["suspect"] else "") + row["case"]
        way = "" if row["times"]["ulfast"]["way"] in ("graph", "clock") else f" ({row['times']['ulfast']['way']})"
        lines.append(
            f"| {name} | {micro(row['seconds']['ulfast'])}{way} | {micro(row['host_seconds'])} |"
            f" {row['of_copy']:.2f} | {row['of_peak_copy']:.2f} | {ratios} | {row['error']:.1e} |"
            f" {row['plain_error']:.1e} |"
        )
    crossing = [row for row in rows if row["note"] == "crossover"]
    if crossing:
        lines += ["", "Library products over the fused kernel (above 1 the kernel wins):", ""]
        groups: dict[str, list[str]] = {}
        for row in crossing:
            groups.setdefault(f"{row['op']} {row['n']} x {row['d']}, {row['dtype']}", []).append(
                f"k {row['k']}: {row['ratio']['library']:.2f}"
            )
        lines += [f"- {name}: {', '.join(found)}" for name, found in groups.items()]
    if result["steps"]:
        lines += [
            "",
            "| training step | batch | side | step ms | ingest ms | without projection | projection's share |"
            " ingest's share |",
            "|---|---|---|---|---|---|---|---|",
        ]
    for step in result["steps"]:
        spent = step["seconds"]
        lines.append(
            f"| {step['model']} | {step['batch']} | {step['size']} | {1e3 * spent['training step']:.2f} |"
            f" {1e3 * spent['ingest']:.4f} | {1e3 * spent['ingest without projection']:.4f} |"
            f" {100 * step['share']:.2f} % | {100 * step['ingest_share']:.2f} % |"
        )
    if result["broken_off"]:
        lines += ["", f"BROKEN OFF: {result['broken_off']['case']}: {result['broken_off']['reason']}"]
    return "\n".join(lines) + "\n"


def steps_of(dry: bool) -> list[tuple[str, int, int, Callable[[], Any]]]:
    """Name, batch, side, and a function that returns the network for step_share."""

    def resnet50() -> Any:
        if importlib.util.find_spec("timm") is not None:
            return "timm:resnet50"
        from torchvision.models import resnet50 as build

        return build(num_classes=10)

    if dry:
        return [("cnn", 8, 12, lambda: "cnn")]
    return [(name, *rest, resnet50 if name == "resnet50" else lambda: "resnet18") for name, *rest in STEPS]  # type: ignore[misc]


class Report:
    """The output so far, written after every case, so that an interruption loses only one case."""

    def __init__(self, folder: Path, name: str, dry: bool, fresh: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.markdown = folder / f"{name}.json", folder / f"{name}.md"
        self.result: dict[str, Any] = {
            "dry": dry,
            "environment": machine(),
            "ceilings": {},
            "rows": [],
            "steps": [],
            "left_out": [],
            "broken_off": None,
        }
        if not fresh and self.json.exists():
            self.result = json.loads(self.json.read_text())

    def leave_out(self, case: str, reason: str) -> None:
        self.result["left_out"].append({"case": case, "reason": reason})
        print(f"left out: {case}: {reason}", file=sys.stderr, flush=True)

    def break_off(self, case: str, reason: str) -> int:
        self.result["broken_off"] = {"case": case, "reason": reason}
        print(f"gpu.py: broken off at {case}: {reason}", file=sys.stderr, flush=True)
        self.write()
        print(self.text, end="")
        return 3

    def write(self) -> None:
        self.text = table(self.result)
        self.json.write_text(json.dumps(self.result, indent=2) + "\n")
        self.markdown.write_text(self.text)


def run_table(report: Report, device: torch.device, seconds: float, only: str, dry: bool) -> int:
    begun, failed = time.monotonic(), 0
    try:
        top = report.result["ceilings"] = ceilings(device, dry)
    except (RuntimeError, Broken) as error:
        return report.break_off("ceilings", first_line(error))
    for job in jobs(device, dry):
        if only and not re.search(only, job.name):
            continue
        case_begun, reason = time.monotonic(), ""
        try:
            free = 1 << 62 if dry else torch.cuda.mem_get_info()[0]
            if time.monotonic() - begun > seconds:
                reason = f"{seconds:g} s had passed"
            elif 2 * job.memory > 0.8 * free:
                reason = f"needs {2 * job.memory / 1e9:.0f} GB, {free / 1e9:.0f} are free"
            elif job.missing:
                reason = "has no CUDA kernel in this build"
            else:
                torch.manual_seed(0)
                row = measure(job, device, top, dry)
                report.result["rows"].append({**row, "spent": time.monotonic() - case_begun})
                line = f"{row['case']}: {micro(row['seconds']['ulfast'])} us, {row['of_copy']:.2f} of copy"
                print(f"{line}; took {time.monotonic() - case_begun:.1f} s", file=sys.stderr, flush=True)
        except Broken as error:
            return report.break_off(job.name, str(error))
        except Exception as error:  # one case's fault is said, and the others are measured
            reason, failed = f"failed: {first_line(error)}", failed + 1
            if device.type == "cuda" and not alive():
                return report.break_off(job.name, first_line(error))
        if reason:
            report.leave_out(job.name, reason)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report.write()
    if not dry:
        report.result["environment"]["nvidia_smi_after"] = warm(device, always=True)
    report.write()
    print(report.text, end="")
    return 1 if failed or not report.result["rows"] else 0


def run_steps(report: Report, device: torch.device, seconds: float, dry: bool) -> int:
    begun, failed = time.monotonic(), 0
    torch.backends.cudnn.benchmark = True
    for name, batch, side, network in steps_of(dry):
        case = f"step of {name}, {batch} x {side} px"
        if time.monotonic() - begun > seconds:
            report.leave_out(case, f"{seconds:g} s had passed")
            continue
        try:
            warm(device)
            share = step_share(network(), batch=batch, size=side, repeats=1 if dry else 9, device=device)
            report.result["steps"].append({**share, "model": name})
        except Exception as error:  # torchvision and timm may both be missing
            failed += 1
            if device.type == "cuda" and not alive():
                return report.break_off(case, first_line(error))
            report.leave_out(case, f"failed: {first_line(error)}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
        report.write()
    report.write()
    print(report.text, end="")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--name", default="gpu", help="of the two files (default gpu)")
    parser.add_argument("--part", choices=("table", "steps"), default="table")
    parser.add_argument("--seconds", type=float, default=150, help="no case begins after this many (default 150)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only the cases in whose name it is found")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    if not options.dry:
        if not torch.cuda.is_available():
            sys.exit("gpu.py: torch sees no NVIDIA GPU here: nothing was measured.")
        from ulfast.ops import cuda

        if not cuda.enabled("project", torch.device("cuda")):
            sys.exit("gpu.py: the kernels are off: build with nvcc and set ULFAST_CUDA_KERNELS=1, then repeat.")
    device = torch.device("cpu" if options.dry else "cuda")
    report = Report(options.out, options.name, options.dry, fresh=options.part == "table")
    if options.part == "steps":
        return run_steps(report, device, options.seconds, options.dry)
    return run_table(report, device, options.seconds, options.only, options.dry)


if __name__ == "__main__":
    sys.exit(main())
