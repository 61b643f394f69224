"""`attack`: learn from a data set by one method, measured on clean test images, with baselines where they are known."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import environment
from ..basis import Basis
from ..data.dataset import Dataset
from ..data.load import load_dataset
from ..data.loader import FilteredLoader, MemoryLoader, channel_statistics
from ..devices import fast_half, resolve_device
from ..errors import InputError
from ..files import check_free, write_json, writing
from ..parameters import with_parameters
from ..patches import PatchProjection
from ..poisons import poison
from ..training import Recipe, TrainResult, build_model, get_recipe, mixing, train
from .base import Attack, Context, Plan
from .registry import get_attack
from .result import AttackResult

Progress = Callable[..., None]
EVALUATION_BATCH = 500
DEFAULT_DATA, DEFAULT_POISON = "sample", "lsp"


def attack(
    data: Dataset | str | os.PathLike[str] | None = None,
    *,
    test: Dataset | None = None,
    method: str = "orthogonal",
    model: str = "cnn",
    recipe: str = "quick",
    seed: int = 0,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    compare: Dataset | bool = False,
    basis: Basis | None = None,
    materialize: bool = False,
    epochs: int | None = None,
    limit: int | None = None,
    keep_checkpoints: bool = False,
    progress: Progress | None = None,
    **parameters: Any,
) -> AttackResult:
    """Train a network on poisoned images by `method` and measure it on clean test images.

    Args:
        data: a poisoned Dataset, or what `load_dataset` takes. None: the embedded sample, poisoned with `lsp` by
            `seed`; then both baselines are run.
        test: clean test images (default: the test split of `data`, when that is a path or a name).
        method: name of an attack, or several joined with "+".
        model: see `build_model`.
        recipe: "quick", "paper" or "paper-plain".
        device: "auto", "cpu" or "cuda".
        out: folder for result, basis, history and checkpoints; None writes nothing.
        resume: go on with an interrupted run in `out`.
        overwrite: replace what is in `out`.
        compare: also train on the data without an attack (True), and on these clean images (a Dataset).
        basis: a basis fitted before, instead of fitting one.
        materialize: write the projected training set (float16) to `out/projected` and train from there.
        epochs: instead of the recipe's.
        limit: class-balanced subset of the training images.
        keep_checkpoints: keep every epoch's network in `out`, not only the last.
        progress: called as ``progress(stage, done, total, **numbers)``.
        parameters: of the method, for example ``init="torch", fit_epochs=20, project_test=True``.

    Returns:
        AttackResult.

    Raises:
        InputError: whatever of this cannot be used.

    Example:
        >>> ulfast.attack(ulfast.poison(train, "lsp"), test=test, method="orthogonal").test_accuracy
    """
    name, steps = get_attack(method)
    steps = _configure(name, steps, parameters)
    where = resolve_device(device)
    train_set, test_set, clean = _load(data, test, compare, limit, seed, progress)
    if test_set.image_shape != train_set.image_shape or test_set.num_classes != train_set.num_classes:
        raise InputError(
            f"training and test images differ: {train_set.image_shape} with {train_set.num_classes} classes,"
            f" {test_set.image_shape} with {test_set.num_classes}; say --resize, or give other --test-data"
        )
    chosen = get_recipe(recipe, model, len(train_set))
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, got {epochs}")
        chosen = replace(chosen, epochs=epochs)
    folder = Path(out) if out is not None else None
    if materialize and folder is None:
        raise InputError("materialize needs a folder for the projected set: give --out")
    config = {
        "method": name, "parameters": {type(s).__name__: asdict(s) for s in steps if dataclasses.fields(s)},
        "model": model, "recipe": asdict(chosen), "seed": seed, "device": str(where), "limit": limit,
        "half": str(fast_half(where)).removeprefix("torch.") if chosen.half else None,
        "data": {"name": train_set.name, "images": len(train_set), "image_shape": list(train_set.image_shape),
                 "classes": train_set.num_classes, "test_images": len(test_set), "manifest": train_set.manifest},
    }  # fmt: skip
    _rehearse(model, train_set, chosen)
    if folder is not None:
        _open(folder, config, resume, overwrite)
    runner = _Runner(model, seed, where, folder, resume, keep_checkpoints, progress)

    baselines: dict[str, TrainResult] = {}
    if clean is not None:
        baselines["clean"] = runner.run("clean", Plan(clean, test_set, chosen))
    if name != "none" and (compare is not False or data is None):
        baselines["poisoned"] = runner.run("poisoned", Plan(train_set, test_set, chosen))

    plan = Plan(train_set, test_set, chosen)
    fitted = folder / "basis.safetensors" if folder is not None else None
    if basis is None and resume and fitted is not None and fitted.is_file():
        basis = Basis.load(fitted)
    context = Context(seed, where, progress, basis)
    for step in steps:
        step.apply(plan, context)
    if fitted is not None and plan.basis is not None:
        plan.basis.save(fitted)
    result = runner.run("attack", plan, materialize)
    manifest = train_set.manifest
    done = AttackResult(
        method=name, poison=manifest.get("method", ""), model=model, recipe=recipe, seed=seed,
        train_accuracy=result.train_accuracy, test_accuracy=result.test_accuracy,
        baselines={key: value.test_accuracy for key, value in baselines.items()},
        history=result.history, baseline_history={key: value.history for key, value in baselines.items()},
        seconds={"fit": plan.seconds.get("fit", 0.0), "project": plan.seconds.get("project", 0.0),
                 "train": result.seconds},
        images_per_second=result.images_per_second, config=config, environment=environment.describe(),
        notes=plan.notes, basis=plan.basis,
    )  # fmt: skip
    if folder is not None:
        with writing(folder):
            done.save(folder)
    return done


def _configure(name: str, steps: Sequence[Attack], parameters: dict[str, Any]) -> list[Attack]:
    """Hands every parameter to the attacks of a combination that have it."""
    given = {key: value for key, value in parameters.items() if value is not None}
    known = {f.name for step in steps for f in dataclasses.fields(step)}
    for key in given:
        if key not in known:
            takes = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
            raise InputError(f"{name} has no parameter {key!r}: {takes}")
    configured = []
    for step in steps:
        own = {f.name for f in dataclasses.fields(step)}
        configured.append(with_parameters(step, name, {key: value for key, value in given.items() if key in own}))
    return configured


def _load(
    data: Dataset | str | os.PathLike[str] | None,
    test: Dataset | None,
    compare: Dataset | bool,
    limit: int | None,
    seed: int,
    progress: Progress | None,
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Training set, test set, and the clean training set where it is known."""
    if data is None:
        clean = load_dataset(DEFAULT_DATA, limit=limit, seed=seed)
        return poison(clean, DEFAULT_POISON, seed=seed), test or load_dataset(DEFAULT_DATA, split="test"), clean
    if isinstance(data, Dataset):
        if test is None:
            raise InputError("give the clean test images: attack(data, test=...)")
        train_set = data if limit is None else data.balanced(limit, seed)
    else:
        train_set = load_dataset(data, limit=limit, seed=seed, progress=progress)
        test = test or load_dataset(data, split="test", progress=progress)
    clean_set = compare if isinstance(compare, Dataset) else None
    if clean_set is not None and limit is not None:
        clean_set = clean_set.balanced(limit, seed)
    return train_set, test, clean_set


def _rehearse(model: str, data: Dataset, recipe: Recipe) -> None:
    """Meets a wrong model name or a missing package before anything is written; on the meta device it costs nothing."""
    with torch.device("meta"):
        build_model(model, num_classes=data.num_classes, image_shape=data.image_shape)
    if recipe.strong:
        mixing.strong_augmentation(data.image_shape, (0.5,) * data.image_shape[2], (0.5,) * data.image_shape[2])


def _open(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes the run's folder and writes the configuration into it."""
    if not resume:
        check_free(folder, overwrite)
        if overwrite and folder.exists():
            import shutil

            if not (folder / "config.json").is_file() and any(folder.iterdir()):
                raise InputError(f"{folder} is no run of ulfast, --overwrite does not touch it: choose another --out")
            shutil.rmtree(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)


class _Runner:
    """Carries out the trainings of one attack: the same network, start and order each time."""

    def __init__(
        self, model: str, seed: int, device: Any, folder: Path | None, resume: bool, keep: bool,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.seed, self.device, self.folder = model, seed, device, folder
        self.resume, self.keep, self.progress = resume, keep, progress

    def run(self, stage: str, plan: Plan, materialize: bool = False) -> TrainResult:
        recipe, data = plan.recipe, plan.train
        mean, std = channel_statistics(data)
        hooks = list(plan.hooks)
        if recipe.cutmix:
            hooks.append(mixing.cutmix(data.num_classes, recipe.cutmix))
        shown_mean, shown_std = mean, std
        if recipe.strong:
            hooks.insert(0, mixing.strong_augmentation(data.image_shape, mean, std))
            shown_mean, shown_std = (0.0,) * len(mean), (1.0,) * len(std)
        dtype = (fast_half(self.device) if recipe.half and not recipe.strong else None) or torch.float32
        patches = PatchProjection(plan.patches).to(self.device) if plan.patches and plan.patches.rank else None
        if materialize and (plan.project is not None or patches) and self.folder is not None:
            from ..data.projected import ProjectedLoader, write_projected

            start = time.perf_counter()
            target = self.folder / "projected"
            write_projected(target, data, plan.project, transform=patches and patches.cpu(), progress=self.progress)
            plan.seconds["project"] = time.perf_counter() - start
            loader: MemoryLoader = ProjectedLoader(
                target, data, recipe.batch_size, mean=shown_mean, std=shown_std, dtype=dtype, augment=recipe.augment,
                shuffle=True, seed=self.seed, drop_last=len(data) >= recipe.batch_size, device=self.device,
            )  # fmt: skip
        elif patches:
            loader = FilteredLoader(
                data, recipe.batch_size, transform=patches, basis=plan.project,
                mean=shown_mean, std=shown_std, dtype=dtype, augment=recipe.augment, shuffle=True, seed=self.seed,
                drop_last=len(data) >= recipe.batch_size, device=self.device,
            )  # fmt: skip
        else:
            loader = MemoryLoader(
                data, recipe.batch_size, basis=plan.project, mean=shown_mean, std=shown_std, dtype=dtype,
                augment=recipe.augment, shuffle=True, seed=self.seed, drop_last=len(data) >= recipe.batch_size,
                device=self.device,
            )  # fmt: skip
        test_loader = MemoryLoader(
            plan.test, EVALUATION_BATCH, basis=plan.project if plan.project_test else None, mean=mean, std=std,
            dtype=dtype, device=self.device,
        )  # fmt: skip
        network = build_model(self.model, num_classes=data.num_classes, image_shape=data.image_shape, seed=self.seed)
        identity = {"model": self.model, "stage": stage, "images": len(data), "method": data.manifest.get("method", "")}
        return train(
            network, loader, test_loader, recipe, hooks=hooks, seed=self.seed,
            folder=self.folder / "checkpoints" / stage if self.folder else None, resume=self.resume, identity=identity,
            keep_checkpoints=self.keep and stage == "attack", stage=stage, progress=self.progress,
        )  # fmt: skip
