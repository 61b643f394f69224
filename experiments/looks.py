"""The time to examine a data set of photographs: `data info`, and `diagnose` at 64 px, compared with decoding alone.

    python experiments/looks.py DATA [--base FOLDER] [--repeats 3] [--json FILE]

DATA is a folder of JPEGs with train/ and val/. The peer is simplejpeg alone, over the same files on as many threads,
in the same run. `--base` is a checkout of an earlier version with its extension built, whose `diagnose` takes its turn.
Each command is a process of its own; medians are taken over the repeats. The first look is what `data info` says of a
sample before it has read all images, on a terminal. Seconds by the clock depend on what else runs on the machine,
processor seconds much less.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import simplejpeg

import ulfast
from ulfast.runtime import environment
from ulfast.runtime.machine import cores

ROOT = Path(ulfast.__file__).resolve().parent.parent


def decoded(data: Path) -> tuple[float, float, int]:
    """Seconds and processor seconds of simplejpeg alone, and the number of files."""
    files = sorted(data.rglob("*.JPEG")) + sorted(data.rglob("*.jpg"))
    start, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(cores()) as pool:
        count = sum(1 for _ in pool.map(lambda file: simplejpeg.decode_jpeg(file.read_bytes()).shape, files))
    return time.perf_counter() - start, time.process_time() - processor, count


def run(code: Path, *words: str) -> tuple[float, float, float, Any]:
    """Seconds, processor seconds, peak megabytes, and what a command of the ulfast in `code` printed as JSON."""
    command = [sys.executable, "-m", "ulfast", *words, "--json", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(code)}, cwd=code)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - start
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, json.loads(output)


def first_look(data: Path) -> tuple[float, float, int]:
    """Seconds and processor seconds until `data info` says what a sample looks like, and the images in the sample."""
    start, terminal = time.perf_counter(), pty.openpty()
    command = [sys.executable, "-m", "ulfast", "data", "info", str(data)]
    there = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=terminal[1], stderr=terminal[1], env=there)
    os.close(terminal[1])
    said = b""
    try:
        while not (found := re.search(rb"a first look at ([\d,]+) of", said)):
            more = os.read(terminal[0], 1 << 16)
            if not more:
                sys.exit("data info ended without a first look")
            said += more
        seconds = time.perf_counter() - start
        spent = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return seconds, sum(map(int, spent[11:13])) / os.sysconf("SC_CLK_TCK"), int(found[1].replace(b",", b""))
    finally:
        process.kill()
        process.wait()
        os.close(terminal[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--base", type=Path, metavar="FOLDER")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = options.data.resolve()
    stages = [("data info", ROOT, ["data", "info"]), ("diagnose", ROOT, ["diagnose", "--resize", "64"])]
    if options.base:
        stages.append(("diagnose, before", options.base.resolve(), ["diagnose", "--resize", "64"]))
    times: dict[str, list[tuple[float, float, float]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for repeat in range(options.repeats):
        seconds, processor, files = decoded(data)
        times.setdefault("simplejpeg alone", []).append((seconds, processor, 0.0))
        found["simplejpeg alone"] = {"images": files}
        seconds, processor, files = first_look(data)
        times.setdefault("data info, the first look", []).append((seconds, processor, 0.0))
        found["data info, the first look"] = {"command": "ulfast data info DATA", "images": files}
        for stage, code, words in stages:
            seconds, processor, peak, told = run(code, words[0], *words[1:], str(data))
            times.setdefault(stage, []).append((seconds, processor, peak))
            images = told["images"] if "images" in told else sum(s["images"] for s in told["splits"].values())
            facts = {key: told[key] for key in ("verdict", "evidence", "warnings") if key in told}
            found[stage] = {"command": " ".join(["ulfast", *words, "DATA"]), "images": images, **facts}
        rows = []
        for stage, taken in times.items():
            row = dict(
                zip(
                    ("seconds", "processor_seconds", "peak_mb"),
                    map(statistics.median, zip(*taken, strict=True)),
                    strict=True,
                )
            )
            rows.append({"stage": stage, "repeats": repeat + 1, **row, **found[stage]})
            print(
                f"| {stage} | {rows[-1]['images']:,} | {row['seconds']:.1f} | {row['processor_seconds']:.1f} |",
                flush=True,
            )
        if options.json:
            about = {"environment": environment.describe(), "data": data.name, "stages": rows}
            text = json.dumps(about, indent=1).replace(str(data), "DATA")
            options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
