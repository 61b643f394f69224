"""The poisons that train a network, in every process of a test: `searching.py DATA OUT SIZE...`; the first of each
group of SIZE writes the results, and leaves an interrupted run in OUT/interrupted."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forking import fork

import ulfast
from ulfast import distributed
from ulfast.poisons import surrogate as engine
from ulfast.poisons.store import PerturbationStore
from ulfast.runtime import devices

CNN = {"surrogate": "cnn", "batch_size": 25}
# 70 images in batches of 25: of the last batch but one on, a second process has none to search.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "em": ("em", {**CNN, "lr": 0.01, "rounds": 2, "steps": 3, "train_steps": 3, "stop": 0.0}),
    "em float16": ("em", {**CNN, "lr": 0.01, "rounds": 1, "steps": 3, "train_steps": 2, "store": "float16"}),
    "em resnet18-4": (
        "em",
        {"surrogate": "resnet18-4", "batch_size": 32, "lr": 0.001, "rounds": 2, "steps": 1, "train_steps": 2},
    ),
    "em-classwise": (
        "em-classwise",
        {"surrogate": "cnn", "batch_size": 9, "lr": 0.01, "rounds": 4, "train_steps": 3, "subset": 0.5, "stop": 0.0},
    ),
    "tap": ("tap", {"preset": "quick", **CNN, "epochs": 2, "steps": 6, "restarts": 2}),
    "adaptive": ("adaptive", {**CNN, "epochs": 2, "steps": 6}),
    "tap published": ("tap", {"preset": "published", **CNN, "epochs": 2, "steps": 6, "restarts": 2}),
    "hypo": ("hypo", {**CNN, "epochs": 2, "steps": 6}),
    "sep": ("sep", {**CNN, "epochs": 3, "checkpoints": 2, "steps": 4}),
    "rem": ("rem", {**CNN, "lr": 0.01, "iterations": 5, "steps": 2, "steps_a": 2, "samples": 2}),
    "aue": ("aue", {**CNN, "lr": 0.01, "rounds": 2, "steps": 3, "train_steps": 3}),
    "aap": ("aap", {**CNN, "lr": 0.01, "epochs": 2, "steps": 6}),
    "sem": ("sem", {**CNN, "lr": 0.01, "iterations": 5, "steps": 2, "samples": 2}),
    "dune": ("dune", {**CNN, "epochs": 3, "checkpoints": 2, "steps": 4, "offset": 1, "flights": 2, "spread": 0.0}),
    "ntga": ("ntga", {"block_size": 20}),
    "tue": ("tue", {"batch_size": 20}),
    "pil": ("pil", {"epochs": 3, "batch_size": 25}),
    "pil published": ("pil", {"preset": "published", "epochs": 3, "batch_size": 25}),
}
LONG = {**METHODS["em"][1], "rounds": 5}


# In half precision a network's gradients depend in their third digit on how a batch is cut.
devices.fast_half = lambda device: None


class Killed(Exception):
    pass


def main(folder: str, out: Path) -> None:
    data = ulfast.load_dataset(folder)
    found: dict[str, Any] = {}
    values: list[torch.Tensor] = []
    apply = PerturbationStore.apply

    def watched(store: PerturbationStore, *arguments: Any) -> Any:
        values.append(store._values.clone())
        return apply(store, *arguments)

    PerturbationStore.apply = watched  # type: ignore[method-assign]
    for name, (method, options) in METHODS.items():
        values.clear()
        made = ulfast.poison(data, method, seed=1, device="cpu", **options)
        found[name] = {"images": made.images, "making": made.manifest["making"], "values": values[-1:]}
        found[name]["everybody"] = distributed.gathered((made.checksum(), made.manifest))
    if distributed.size() > 1:
        # As if on machines of their own.
        distributed._machine = lambda: str(distributed.rank())
        apart = ulfast.poison(data, "em", seed=1, device="cpu", **METHODS["em"][1])
        found["apart"] = distributed.gathered(apart.checksum())
        few = data.subset(np.arange(65))  # 32, 32 and one
        found["few"] = [few.images, ulfast.poison(few, "hypo", device="cpu", **METHODS["hypo"][1]).images]
        found["long"] = LONG
        found["resumed"], found["whole"] = interrupt(data, out / "interrupted")
    if distributed.is_main():
        torch.save(found, out / f"found-{distributed.size()}.pt")


def interrupt(data: ulfast.Dataset, work: Path) -> list[tuple[str, Any]]:
    """A run that ends in its third round, after the second was kept, is left in `work`. What comes out when a copy of
    it is resumed, and when nothing interrupts it."""
    engine.COMMIT_SECONDS = 0.0
    commit, rounds = engine.Search.commit, []

    def stop(run: engine.Search, state: dict[str, Any], *, last: bool = False) -> None:
        if len(rounds) == 2:
            raise Killed
        rounds.append(state)
        commit(run, state, last=last)

    engine.Search.commit = stop  # type: ignore[method-assign]
    with contextlib.suppress(Killed):
        ulfast.poison(data, "em", seed=1, device="cpu", folder=work, **LONG)
    engine.Search.commit = commit  # type: ignore[method-assign]
    distributed.wait()
    copy = work.with_name("copy")
    if distributed.is_main():
        shutil.copytree(work, copy)
    made = [
        ulfast.poison(data, "em", seed=1, device="cpu", folder=copy, resume=True, **LONG),
        ulfast.poison(data, "em", seed=1, device="cpu", **LONG),
    ]
    return [(one.checksum(), one.manifest) for one in made]


def joined(folder: str, out: str) -> None:
    with distributed.joined("cpu"):
        main(folder, Path(out))


if __name__ == "__main__":
    for size in sys.argv[3:]:
        fork(int(size), joined, *sys.argv[1:3])
