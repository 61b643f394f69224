"""Whole attacks on a GPU: accuracy and seconds by part, `resnet18`, CIFAR-10 as 32 px JPEG files.

    python benchmarks/gpu_train.py --out FOLDER --data FOLDER [--seconds 300] [--probe]
    python benchmarks/gpu_train.py --out FOLDER --dry     the same on the CPU, tiny: tests this file, measures nothing

The data folder holds cifar10-jpeg.tar.xz, with train/CLASS/*.jpg and test/CLASS/*.jpg in it. Writes train.json after
every cell: one that is cut off loses only itself. First come the cells of the recipe `fast`, then those of the paper's
table by `paper-plain`, in bfloat16 and with the step in a CUDA graph. With --probe, two epochs each in processes of
their own tell first what the graph is worth, and whether cuDNN's trying out pays; the cells then train the better way.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import lzma
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ulfast
from ulfast.data import Dataset, load_dataset
from ulfast.runtime import environment
from ulfast.training import RECIPES, Recipe, get_recipe, update

ARCHIVE, JPEGS = "cifar10-jpeg.tar.xz", "CIFAR-10 as 32 px JPEG files of quality 75: not the original pixels"
GOAL_ACCURACY, GOAL_SECONDS = 0.85, 60
PROBES = ("graph", "graph, convolutions tried", "no graph")
# The published schedule, batch and augmentation; the speed comes from lower arithmetic precision.
PAPER = "paper-plain, bfloat16 and graph"
SLOWER = "fast at half its rate"


@dataclass(frozen=True)
class Cell:
    poison: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    recipe: str = "fast"
    seed: int = 0
    epochs: int | None = None

    @property
    def name(self) -> str:
        start = {"zero": " from zero", "torch": " from torch's start"}.get(self.parameters.get("init", ""), "")
        seed = f", seed {self.seed}" if self.seed else ""
        epochs = f", {self.epochs} epochs" if self.epochs else ""
        return f"{self.poison}, {self.method}{start}, {self.recipe}{epochs}{seed}"


ZERO, TORCH = {"init": "zero", "fit_steps": 1000}, {"init": "torch", "fit_epochs": 20}


def plan() -> list[Cell]:
    """The most telling first, as time may run out at any point."""
    fast = [
        Cell("lsp", "orthogonal", ZERO),
        Cell("lsp", "none"),
        Cell("clean", "none"),
        Cell("lsp", "orthogonal", TORCH),
        Cell("lsp", "orthogonal-full"),
        Cell("lsp", "iss-jpeg"),
        Cell("lsp", "orthogonal", ZERO, epochs=10),
        Cell("lsp", "orthogonal", ZERO, epochs=24),
        Cell("lsp", "orthogonal", ZERO, SLOWER),
        Cell("lsp", "orthogonal", ZERO, seed=1),
        Cell("lsp", "orthogonal", ZERO, seed=2),
        Cell("clean", "orthogonal", ZERO),
        Cell("clean", "orthogonal", TORCH),
        Cell("clean", "orthogonal-full"),
        Cell("clean", "iss-jpeg"),
    ]
    order = [("lsp", "orthogonal", TORCH), ("lsp", "none", {}), ("clean", "none", {}), ("lsp", "orthogonal", ZERO)]
    order += [("clean", "orthogonal", TORCH), ("lsp", "orthogonal-full", {}), ("lsp", "iss-jpeg", {})]
    order += [(poison, method, {}) for poison in ("ar", "regions-4") for method in ("none", "orthogonal-full")]
    return fast + [Cell(*what, recipe=PAPER) for what in order]


def decoded(files: list[bytes]) -> np.ndarray:
    """(n, 32, 32, 3) uint8."""
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def read(archive: Path) -> tuple[Dataset, Dataset]:
    """Training and test images, decoded by all cores."""
    content = lzma.decompress(archive.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = sorted((m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isfile())
    splits = []
    # By forking, before this process has touched the GPU.
    with multiprocessing.get_context("fork").Pool() as pool:
        for split in ("train", "test"):
            found = [
                (name.split("/")[1], content[at : at + size])
                for name, at, size in members
                if name.startswith(f"{split}/")
            ]
            files = [file for _, file in found]
            images = np.concatenate(pool.map(decoded, [files[i : i + 500] for i in range(0, len(files), 500)]))
            classes, labels = np.unique([name for name, _ in found], return_inverse=True)
            splits.append(Dataset(images, labels.astype(np.int64), tuple(map(str, classes)), "cifar10-jpeg", split))
    return splits[0], splits[1]


def paper_plain(model: str, n: int) -> Recipe:
    recipe = get_recipe("paper-plain", model, n)
    return replace(recipe, name=PAPER, half=True, graph=True, evaluate_every=10)


def half_the_rate(model: str, n: int) -> Recipe:
    recipe = get_recipe("fast", model, n, torch.device("cuda"))
    return replace(recipe, name=SLOWER, lr=recipe.lr / 2)


class Over(Exception):
    """The time is over."""


def measure(cell: Cell, data: Dataset, test: Dataset, dry: bool, poisoning: float, until: float) -> dict[str, Any]:
    """Accuracy and seconds of an attack, as a user calls it.

    Raises:
        Over: it had not ended in time.
    """

    def progress(stage: str, done: float, total: float, **numbers: float) -> None:
        if time.monotonic() > until:
            raise Over(f"cut off at {done:.1f} of {total} ({stage})")

    options: dict[str, Any] = {"model": "resnet18", "epochs": cell.epochs, "device": "cuda"}
    if dry:
        options = {"model": "resnet18-2", "epochs": 1, "device": "cpu"}
    if not dry:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        result = ulfast.attack(
            data,
            test=test,
            method=cell.method,
            recipe=cell.recipe,
            seed=cell.seed,
            progress=progress,
            **options,
            **cell.parameters,
        )
        whole = time.perf_counter() - start
    parts = dict(result.seconds)
    return {
        "name": cell.name,
        **asdict(cell),
        "test_accuracy": result.test_accuracy,
        "train_accuracy": result.train_accuracy,
        "seconds": {
            "poison": poisoning,
            **parts,
            "rest": whole - sum(parts.values()),
            "attack": whole,
        },
        "images_per_second": result.images_per_second,
        "goal": bool(result.test_accuracy >= GOAL_ACCURACY and whole < GOAL_SECONDS),
        "peak_bytes": None if dry else torch.cuda.max_memory_allocated(),
        "warnings": [str(w.message) for w in said],
        "notes": {key: value for key, value in result.notes.items() if isinstance(value, (int, float, str, list))},
        "config": result.config["recipe"],
        "history": result.history,
    }


def probe(name: str, dry: bool) -> dict[str, Any]:
    """Seconds of two epochs on noise, in a new process."""
    update.TRY_CONVOLUTIONS = "tried" in name
    if name == "no graph":
        update.GraphUpdate = update.Update  # type: ignore[misc]
    n = 600 if dry else 50_000
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    data = Dataset(images, np.arange(n) % 10, tuple("0123456789"), "noise")
    test = Dataset(images[:500], np.arange(500) % 10, data.classes, "noise", "test")
    model, device = ("resnet18-2", "cpu") if dry else ("resnet18", "cuda")
    result = ulfast.attack(data, test=test, method="none", model=model, recipe="fast", epochs=2, device=device)
    first, second = (row["seconds"] for row in result.history)
    return {"name": name, "first_epoch": first, "second_epoch": second, "fifteen_epochs": first + 14 * second}


def probes(dry: bool, left: float) -> list[dict[str, Any]]:
    found = []
    for name in PROBES:
        command = [sys.executable, __file__, "--only-probe", name, *(["--dry"] if dry else [])]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=min(60, max(1, left)))
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                found.append({"name": name, "failed": reason})
            else:
                found.append(json.loads(done.stdout.splitlines()[-1]))
        except subprocess.TimeoutExpired:
            found.append({"name": name, "failed": "took over a minute"})
        print(json.dumps(found[-1]), flush=True)
    return found


def line(cell: dict[str, Any]) -> str:
    s = cell["seconds"]
    return (
        f"| {cell['name']} | {100 * cell['test_accuracy']:.2f} | {s['attack']:.1f} | {s['fit']:.1f}"
        f" | {s['project']:.1f} | {s['train']:.1f} | {s['evaluate']:.1f} | {s['rest']:.1f}"
        f" | {cell['images_per_second']:,.0f} |"
    )


HEADER = "| cell | test % | attack s | fit | project | train | evaluate | rest | images/s |\n" + "|---" * 9 + "|"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, default=Path(".gpu-data"), metavar="FOLDER", help=f"with {ARCHIVE} in it")
    parser.add_argument("--seconds", type=float, default=300, help="all ends after this many (default 300)")
    parser.add_argument("--probe", action="store_true", help="measure first what the graph is worth")
    parser.add_argument("--only-probe", choices=PROBES, help=argparse.SUPPRESS)
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny")
    options = parser.parse_args()
    begun = time.monotonic()
    until = begun + options.seconds
    if options.only_probe:
        print(json.dumps(probe(options.only_probe, options.dry)))
        return 0
    if options.out is None:
        parser.error("--out is required")
    if not options.dry:
        if not torch.cuda.is_available():
            sys.exit("gpu_train.py: torch sees no NVIDIA GPU here: nothing was trained.")
        if not (options.data / ARCHIVE).is_file():
            sys.exit(f"gpu_train.py: there is no {options.data / ARCHIVE}: copy it there, or say --data FOLDER.")
    start = time.perf_counter()
    if options.dry:
        train = load_dataset("sample", limit=60)
        test = load_dataset("sample", split="test", limit=40)
    else:
        train, test = read(options.data / ARCHIVE)
    reading = time.perf_counter() - start
    result: dict[str, Any] = {
        "dry": options.dry,
        "data": "the embedded sample" if options.dry else JPEGS,
        "images": [len(train), len(test)],
        "seconds_to_read": reading,
        "cells": [],
        "left_out": [],
    }
    print(f"{len(train)} + {len(test)} images read in {reading:.1f} s", flush=True)
    if options.probe:
        result["probes"] = found = probes(options.dry, until - time.monotonic())
        with_graph = [one for one in found[:2] if "fifteen_epochs" in one]
        if with_graph:
            update.TRY_CONVOLUTIONS = "tried" in min(with_graph, key=lambda one: one["fifteen_epochs"])["name"]
    result["convolutions_tried"] = update.TRY_CONVOLUTIONS
    start = time.perf_counter()
    importlib.import_module("torch._dynamo")  # as the first optimizer of a process does
    if not options.dry:
        torch.zeros(1, device="cuda").sum().item()
    result["seconds_to_start"] = time.perf_counter() - start
    about = environment.describe()
    about["commit"] = os.environ.get("ULFAST_COMMIT") or about["commit"]
    about["cudnn"] = torch.backends.cudnn.version()
    result["environment"] = about
    RECIPES.update({PAPER: (paper_plain, "of this benchmark"), SLOWER: (half_the_rate, "of this benchmark")})
    options.out.mkdir(parents=True, exist_ok=True)
    sets: dict[str, tuple[Dataset, float]] = {"clean": (train, 0.0)}
    failed = 0
    print(f"{about['gpu'] or about['cpu']}, torch {about['torch']}, ulfast {about['commit']}\n{HEADER}", flush=True)
    for cell in plan():
        reason = ""
        try:
            if time.monotonic() > until - (0 if options.dry else 5):
                raise Over("not begun")
            if cell.poison not in sets:
                start = time.perf_counter()
                poisoned = ulfast.poison(train, cell.poison, seed=0)
                sets[cell.poison] = (poisoned, time.perf_counter() - start)
            data, poisoning = sets[cell.poison]
            result["cells"].append(measure(cell, data, test, options.dry, poisoning, until))
            print(line(result["cells"][-1]), flush=True)
            for text in result["cells"][-1]["warnings"]:
                print(f"  warning: {text}", flush=True)
        except Over as error:
            reason = f"{options.seconds:g} s had passed: {error}"
        except Exception as error:  # one cell's fault is said, and the others are measured
            text = str(error).splitlines() or [""]
            reason, failed = f"failed: {type(error).__name__}: {text[0]}", failed + 1
        if reason:
            result["left_out"].append({"name": cell.name, "reason": reason})
            print(f"left out: {cell.name}: {reason}", file=sys.stderr, flush=True)
        if not options.dry and not failed:
            torch.cuda.empty_cache()
        result["seconds"] = time.monotonic() - begun
        partial = options.out / "train.json.part"
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(options.out / "train.json")
    return 1 if failed or not result["cells"] else 0


if __name__ == "__main__":
    sys.exit(main())
