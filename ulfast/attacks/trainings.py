"""Carries out the trainings of one attack with the same network, initialisation and order each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..data.loaders.memory import MemoryLoader
from ..runtime.devices import fast_half
from ..runtime.progress import Progress
from ..training import TrainResult, build_model, evaluate, mixing, train
from ..training.refit import MakeLoader, Trained
from ..training.start import Start
from ..training.strong import strong_augmentation
from .base import Plan


class Runner:
    """Trains a network by a plan, any number of times.

    Args:
        model, seed, device: used by every training.
        folder: the run's folder, or None to write nothing.
        resume: continue from checkpoints in the folder.
        keep: keep the network of every epoch of the attack itself.
        evaluate_every: epochs between two evaluations on the test images; None: the recipe's.
        start: weights to start from, instead of random ones.
    """

    def __init__(
        self,
        model: str,
        seed: int,
        device: torch.device,
        folder: Path | None,
        resume: bool,
        keep: bool,
        evaluate_every: int | None,
        progress: Progress | None,
        start: Start | None = None,
    ) -> None:
        self.start = start
        self.model, self.seed, self.device, self.folder = model, seed, device, folder
        self.resume, self.keep, self.evaluate_every, self.progress = resume, keep, evaluate_every, progress

    def run(self, stage: str, plan: Plan, materialize: bool = False) -> TrainResult:
        """Trains, then applies the refits of the plan, whose reports are added to `plan.notes`."""
        recipe, data = plan.recipe, plan.train
        mean, std = recipe.statistics(data, self.device)
        plan.notes |= {"mean": list(mean), "std": list(std)}
        hooks = [mixing.cutmix(data.num_classes, recipe.cutmix)] if recipe.cutmix else []
        hooks += plan.hooks
        if recipe.strong:
            hooks.insert(0, strong_augmentation(mean, std))
        half = fast_half(self.device) if recipe.half else None
        dtype = (None if recipe.strong else half) or torch.float32

        make_loader = MakeLoader(mean, std, dtype, self.seed, self.device, plan.test_removal)
        part = (distributed.rank(), distributed.size())
        test_loader = make_loader(plan.test, part=part)
        network = build_model(self.model, num_classes=data.num_classes, image_shape=data.image_shape, seed=self.seed)
        identity = {"model": self.model, "stage": stage, "images": len(data), "method": data.manifest.get("method", "")}
        identity["start"] = self.start.checksum if self.start is not None else None
        if self.start is not None:
            plan.notes["start"] = {"source": self.start.source, "last_layer": self.start.into(network)}
        result = train(
            network,
            self._loader(plan, mean, std, dtype, materialize),
            test_loader,
            recipe,
            hooks=hooks,
            select=make_loader(plan.select, part=part) if plan.select is not None else None,
            normalisation=(mean, std),
            seed=self.seed,
            folder=self.folder / "checkpoints" / stage if self.folder else None,
            resume=self.resume,
            identity=identity,
            keep_checkpoints=self.keep and stage == "attack",
            evaluate_every=recipe.evaluate_every if self.evaluate_every is None else self.evaluate_every,
            stage=stage,
            progress=self.progress,
        )
        if plan.select is not None:
            plan.notes["early-stop"] = {"epoch": result.chosen["epoch"], "images": len(plan.select)}
        for refit in plan.refits:  # on few images, so every process does the same
            note = refit(Trained(network, make_loader, test_loader, half, self.seed, self.progress))
            plan.notes[note["refit"]] = note
            result = replace(result, refitted=note["test_accuracy"])
        if plan.poisoned_test is not None:
            loader = make_loader(plan.poisoned_test, part=part)
            plan.notes["poisoned_test_accuracy"] = evaluate(network, loader, half)[1]
        return result

    def _loader(
        self, plan: Plan, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, materialize: bool
    ) -> MemoryLoader:
        """Training batches, projected on the fly or written to disk projected first."""
        recipe, data, removal = plan.recipe, plan.train, plan.removal
        if recipe.strong:  # its hook normalises
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        options: dict[str, Any] = {
            "mean": mean,
            "std": std,
            "dtype": dtype,
            "augment": recipe.augment,
            "shuffle": True,
            "seed": self.seed,
            "drop_last": recipe.drop_last and len(data) >= recipe.batch_size,
            "device": self.device,
            "removal": removal,
            "part": (distributed.rank(), distributed.size()),
        }
        if materialize and removal.lasts and self.folder is not None:
            from ..data.loaders.projected import ProjectedLoader, write_projected

            target = self.folder / "projected"
            with plan.timed("project"):
                write_projected(target, data, removal, progress=self.progress)
            return ProjectedLoader(target, data, recipe.batch_size, **options)
        return MemoryLoader(data, recipe.batch_size, **options)
