"""`diagnose` and the published detectors of unlearnable data on one table (docs/research/diagnosis.md).

    python experiments/detectors.py [--data sample] [--limit 5000] [--json benchmarks/results/detectors.json]

Set detectors say whether a set is poisoned: here sets of which all images are, and clean ones, some of few or easy
classes. Image detectors say which images are: here at the rates of --rates and on the clean set. Networks and trainings
are smaller than published, as the JSON file says. What that file has already is not measured again, so that an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from diagnosis import digits, some_classes

import ulfast
from ulfast.analysis.detectors import bias_shift, image_errors, iterative_filtering, simple_2nn, simple_linear
from ulfast.runtime import environment
from ulfast.training import get_recipe

POISONS = ("lsp", "ops", "ar", "regions-16", "cuda", "cwrandom")
RATES = (0.05, 0.1, 0.2, 0.5)
HALF = 0.5  # at this rate the cheapest set detector is measured too
SEEDS = (0, 1)
# Smaller than published (a hidden layer of 3,072, ResNet-18, 100 epochs; ResNet-18), to fit two cores.
SETTINGS: dict[str, dict[str, Any]] = {
    "diagnose": {},
    "simple-2NN": {"hidden": 256, "epochs": 100},
    "simple-linear": {"epochs": 100},
    "bias shift": {"model": "resnet18-8", "epochs": 10},
    "iterative filtering": {"model": "cnn", "recipe": "quick", "rounds": 2, "epochs": 14},
}
SET_DETECTORS = {"simple-2NN": simple_2nn, "simple-linear": simple_linear, "bias shift": bias_shift}
Make = Callable[[], ulfast.Dataset]


def clean_sets(data: ulfast.Dataset) -> Iterator[tuple[str, Make, int]]:
    """Name, set and seed of the detectors."""
    for seed in SEEDS:
        yield "clean", lambda: data, seed
    for seed in (1, 2):
        yield f"random half {seed}", partial(data.balanced, len(data) // 2, seed), 0
    if data.num_classes == 10:  # CIFAR-10's
        for name, classes in (("airplanes and frogs", (0, 6)), ("dog to truck", (5, 6, 7, 8, 9))):
            yield name, partial(some_classes, data, classes), 0
    yield "digits", digits, 0


def diagnosed(data: ulfast.Dataset, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """The verdict, and the images that stand out in fine detail or have a dark border."""
    found = ulfast.diagnose(data, seed=seed)
    return {"verdict": found.verdict}, np.union1d(found.detail.images, found.border.images)


def filtered(data: ulfast.Dataset, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    chosen = dict(SETTINGS["iterative filtering"])
    chosen["recipe"] = get_recipe(chosen["recipe"], chosen["model"], len(data))
    found = iterative_filtering(data, seed=seed, **chosen)
    return {"shares": found.shares}, found.images


def of_set(detector: str, data: ulfast.Dataset, seed: int) -> tuple[dict[str, Any], None]:
    found = SET_DETECTORS[detector](data, seed=seed, **SETTINGS[detector])
    return {"verdict": "poisoned" if found.poisoned else "clean", **found.to_dict()}, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sample")
    parser.add_argument("--limit", type=int, default=5000)
    parser.add_argument("--poisons", nargs="*", default=POISONS)
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--detectors", nargs="*", default=tuple(SETTINGS), choices=tuple(SETTINGS))
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/detectors.json"))
    options = parser.parse_args()
    data = ulfast.load_dataset(options.data, limit=options.limit)
    height, width, channels = data.image_shape
    content: dict[str, Any] = {
        "data": data.name,
        "images": len(data),
        "image_shape": [height, width, channels],
        "settings": {},
        "environments": [],
        "cells": [],
    }
    if options.json.is_file():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        if any(kept[key] != content[key] for key in ("data", "images", "image_shape")):
            parser.error(f"{options.json} holds other images: name another file")
        if any(kept["settings"].get(name, SETTINGS[name]) != SETTINGS[name] for name in options.detectors):
            parser.error(f"{options.json} holds other settings: name another file")
        content = kept
    content["settings"] |= {name: SETTINGS[name] for name in options.detectors}
    about = environment.describe()
    about.pop("platform")
    done = {(cell["detector"], cell["set"], cell["rate"], cell["seed"]) for cell in content["cells"]}

    def measure(detector: str, name: str, rate: float, seed: int, make: Make, whole: ulfast.Dataset | None) -> None:
        """Appends a cell; `whole` is the clean set that a poisoned one was made of."""
        if detector not in options.detectors or (detector, name, rate, seed) in done:
            return
        given = make()
        run = {"diagnose": diagnosed, "iterative filtering": filtered}.get(detector, partial(of_set, detector))
        start, processor = time.perf_counter(), time.process_time()
        found, images = run(given, seed=seed)
        spent = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
        poisoned = np.zeros(len(given), dtype=bool)
        if whole is not None:
            poisoned = (np.asarray(given.images) != np.asarray(whole.images)).any((1, 2, 3))
        cell = {"detector": detector, "set": name, "rate": rate, "seed": seed, "images": len(given), **found, **spent}
        if images is not None:
            errors = image_errors(images, poisoned)
            cell["false_alarms"] = errors.false_alarms if not poisoned.all() else None
            cell["misses"] = errors.misses if poisoned.any() else None
            cell["half_total"] = errors.half_total if poisoned.any() and not poisoned.all() else None
        content["cells"].append(cell)
        if about not in content["environments"]:
            content["environments"].append(about)
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(" ".join(f"{key}={value}" for key, value in cell.items()), flush=True)

    for name, make, seed in clean_sets(data):
        for detector in ("diagnose", *SET_DETECTORS):
            measure(detector, name, 0.0, seed, make, None)
    measure("iterative filtering", "clean", 0.0, 0, lambda: data, None)
    for method in options.poisons:
        for detector in ("diagnose", *SET_DETECTORS):
            measure(detector, method, 1.0, 0, partial(ulfast.poison, data, method), data)
    for rate in sorted(options.rates, reverse=True):
        for method in options.poisons:
            for detector in ("diagnose", *(("simple-linear",) if rate == HALF else ()), "iterative filtering"):
                measure(detector, method, rate, 0, partial(ulfast.poison, data, method, rate=rate), data)


if __name__ == "__main__":
    main()
