"""Carrying out the trainings of one attack: the same network, start and order each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import distributed, ops
from ..data.dataset import Dataset
from ..data.loaders.augment import Augment
from ..data.loaders.memory import FilteredLoader, MemoryLoader
from ..data.tensors import channel_statistics
from ..projection.patches import PatchProjection
from ..runtime.devices import fast_half
from ..training import TrainResult, build_model, mixing, train
from ..training.refit import Trained
from .base import Plan

EVALUATION_BATCH = 500


class Runner:
    """Trains a network by a plan, as often as it is asked.

    Args:
        model, seed, device: of every training.
        folder: of the run, or None to write nothing.
        resume: go on from checkpoints in it.
        keep: keep every epoch's network of the attack itself.
        evaluate_every: epochs between two looks at the test images.
    """

    def __init__(
        self, model: str, seed: int, device: torch.device, folder: Path | None, resume: bool, keep: bool,
        evaluate_every: int, progress: Callable[..., None] | None,
    ) -> None:  # fmt: skip
        self.model, self.seed, self.device, self.folder = model, seed, device, folder
        self.resume, self.keep, self.evaluate_every, self.progress = resume, keep, evaluate_every, progress

    def run(self, stage: str, plan: Plan, materialize: bool = False) -> TrainResult:
        """Trains, then refits what the plan says; `plan.notes` gets what the refits report."""
        recipe, data = plan.recipe, plan.train
        mean, std = channel_statistics(data, shared=True)
        plan.notes |= {"mean": list(mean), "std": list(std)}
        hooks = [mixing.cutmix(data.num_classes, recipe.cutmix)] if recipe.cutmix else []
        hooks += plan.hooks
        if recipe.strong:
            hooks.insert(0, mixing.strong_augmentation(data.image_shape, mean, std))
        half = fast_half(self.device) if recipe.half else None
        dtype = (None if recipe.strong else half) or torch.float32

        def test_like(
            dataset: Dataset, batch_size: int, *, augment: Augment | None = None, shuffle: bool = False,
            part: tuple[int, int] = (0, 1),
        ) -> MemoryLoader:  # fmt: skip
            return MemoryLoader(
                dataset, batch_size, basis=plan.project if plan.project_test else None, mean=mean, std=std,
                dtype=dtype, augment=augment, shuffle=shuffle, seed=self.seed, device=self.device, part=part,
            )  # fmt: skip

        part = (distributed.rank(), distributed.size())
        test_loader = test_like(plan.test, EVALUATION_BATCH, part=part)
        network = build_model(self.model, num_classes=data.num_classes, image_shape=data.image_shape, seed=self.seed)
        identity = {"model": self.model, "stage": stage, "images": len(data), "method": data.manifest.get("method", "")}
        result = train(
            network, self._loader(plan, mean, std, dtype, materialize), test_loader, recipe, hooks=hooks,
            select=test_like(plan.select, EVALUATION_BATCH, part=part) if plan.select is not None else None,
            normalisation=(mean, std), seed=self.seed,
            folder=self.folder / "checkpoints" / stage if self.folder else None,
            resume=self.resume, identity=identity, keep_checkpoints=self.keep and stage == "attack",
            evaluate_every=self.evaluate_every, stage=stage,
            progress=self.progress,
        )  # fmt: skip
        if plan.select is not None:
            plan.notes["early-stop"] = {"epoch": result.chosen["epoch"], "images": len(plan.select)}
        for refit in plan.refits:  # on a few images: every process does the same
            note = refit(Trained(network, test_like, test_loader, half, self.seed, self.progress))
            plan.notes[note["refit"]] = note
            result = replace(result, refitted=note["test_accuracy"])
        return result

    def _loader(
        self, plan: Plan, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, materialize: bool
    ) -> MemoryLoader:
        """Training batches: projected on the way, or written projected first."""
        recipe, data = plan.recipe, plan.train
        if recipe.strong:  # its hook normalises
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        options: dict[str, Any] = {
            "mean": mean, "std": std, "dtype": dtype, "augment": recipe.augment, "shuffle": True, "seed": self.seed,
            "drop_last": len(data) >= recipe.batch_size, "device": self.device,
            "part": (distributed.rank(), distributed.size()), "noise": noise_rows(plan),
        }  # fmt: skip
        transform = filters(plan, self.device)
        if materialize and (plan.project is not None or transform) and self.folder is not None:
            from ..data.loaders.projected import ProjectedLoader, write_projected

            target = self.folder / "projected"
            on_cpu = filters(plan, torch.device("cpu"))
            with plan.timed("project"):
                write_projected(target, data, plan.project, transform=on_cpu, progress=self.progress)
            return ProjectedLoader(target, data, recipe.batch_size, **options)
        if transform:
            return FilteredLoader(data, recipe.batch_size, transform=transform, basis=plan.project, **options)
        return MemoryLoader(data, recipe.batch_size, basis=plan.project, **options)


def noise_rows(plan: Plan) -> Tensor | None:
    """A plan's noise as images without what they lose have it, or None."""
    if plan.noise is None:
        return None
    rows = plan.noise
    if plan.project is not None and plan.project.dim() == 2:
        rows = ops.project(rows, plan.project.to(rows))
    if plan.patches is not None and plan.patches.rank and len(rows):
        height, width, channels = plan.train.image_shape
        with torch.no_grad():
            images = PatchProjection(plan.patches)(rows.view(-1, height, width, channels).permute(0, 3, 1, 2))
        rows = images.permute(0, 2, 3, 1).reshape(len(rows), -1)
    return rows


def filters(plan: Plan, device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """What happens to float images (b, C, H, W) after the projection, or None."""
    steps = [] if plan.transform is None else [plan.transform]
    if plan.patches is not None and plan.patches.rank:
        steps.append(PatchProjection(plan.patches).to(device))
    if not steps:
        return None

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run
