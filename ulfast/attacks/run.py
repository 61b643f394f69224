"""`attack`: learn from a data set by one method, measured on clean test images, with baselines where they are known."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..data.classes import matched, same_everywhere
from ..data.dataset import Dataset
from ..data.load import load_dataset, load_named
from ..data.loaders.removal import Removal
from ..data.objects import has_splits
from ..errors import InputError
from ..ops.state import ordinary
from ..parameters import with_parameters
from ..poisons import poison
from ..projection.basis import Basis
from ..runtime import environment
from ..runtime.devices import fast_half, resolve_device, same_generators
from ..runtime.files import atomic_folder, check_free, claimed, write_json, writing
from ..runtime.made import expand, read_json
from ..runtime.progress import Progress
from ..training import Recipe, TrainResult, build_model, default_model, get_recipe
from ..training.start import Start
from .base import FIT_FILE, Attack, Context, Plan
from .orthogonal import OrthogonalProjection
from .registry import get_attack
from .result import AttackResult
from .snapshots import examples
from .trainings import Runner

DEFAULT_DATA, DEFAULT_POISON = "sample", "lsp"
# What a resumed run's data must have in common with the first run's.
DATA_KEYS = ("images", "image_shape", "class_names", "training_fingerprint", "test_fingerprint", "clean_fingerprint")


@ordinary
@same_generators()
def attack(
    data: Any = None,
    *,
    test: Dataset | None = None,
    poisoned_test: Dataset | None = None,
    method: str = "orthogonal",
    model: str | None = None,
    recipe: str = "quick",
    seed: int = 0,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    compare: Dataset | bool = False,
    clean: Dataset | None = None,
    basis: Basis | None = None,
    materialize: bool = False,
    epochs: int | None = None,
    limit: int | None = None,
    keep_checkpoints: bool = False,
    evaluate_every: int | None = None,
    start: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **parameters: Any,
) -> AttackResult:
    """Train a network on poisoned images by `method` and measure it on clean test images.

    Args:
        data: a poisoned Dataset, or what `load_dataset` takes. None: the embedded sample, poisoned with `lsp` by
            `seed`; then both baselines are run.
        test: clean test images (default: the test split of `data`, when that is a path or a name).
        poisoned_test: perturbed test images (`Poisoning.unseen`), on which the network of the attack is measured too:
            `notes["poisoned_test_accuracy"]`.
        method: name of an attack, or several combined with "+".
        model: see `build_model` (default: "cnn", or "resnet18" with a recipe of the paper).
        recipe: see `ulfast.training.RECIPES`: "quick", "quick-noflip", "fast" (for a GPU; on a CPU it is
            "quick"), "paper", "paper-plain", "paper-dfr" or "imagenet".
        device: "auto", "cpu" or "cuda".
        out: folder for result, basis, history and checkpoints; None writes nothing.
        resume: continue an interrupted run in `out`.
        overwrite: replace what is in `out`.
        compare: also train on the data without an attack (True), and on these clean images (a Dataset).
        clean: clean training images for the methods that need some (default: those of `compare`).
        basis: a basis fitted before, instead of fitting one.
        materialize: write the projected training set (float16, in shards) to `out/projected` and train from there.
        epochs: number of epochs (default: the recipe's).
        limit: class-balanced subset of the training images.
        keep_checkpoints: keep every epoch's network in `out`, not only the last.
        evaluate_every: epochs between two evaluations on the test images (default: the recipe's, mostly 1); the last
            epoch always has one.
        start: weights that every training starts from instead of random ones: a run's folder, a checkpoint, a
            `state_dict` (.pt, .pth, .safetensors) or `timm:NAME`, pretrained weights of timm. The last layer stays
            random where theirs has another number of classes.
        progress: called as ``progress(stage, done, total, **numbers)``.
        parameters: parameters of the method, for example ``init="torch", fit_epochs=20, project_test=True``.

    In the processes of `distributed.joined` every batch of the fit and of the trainings is split between them; the
    first process writes `out`, and all get the result.

    Returns:
        AttackResult.

    Raises:
        InputError: an argument that cannot be used.

    Example:
        >>> ulfast.attack(ulfast.poison(train, "lsp"), test=test, method="orthogonal").test_accuracy
    """
    name, steps = get_attack(method)
    steps = configure(name, steps, parameters)
    where = resolve_device(device)
    train_set, test_set, baseline = _load(data, test, compare, limit, seed, progress)
    clean = clean or baseline
    test_set, clean = _check(name, steps, train_set, test_set, clean)
    if poisoned_test is not None:
        names = ("training images", "poisoned test images")
        poisoned_test = matched(train_set, poisoned_test, names=names, part=True)
    if baseline is not None:
        baseline = matched(train_set, baseline, names=("training images", "clean images"))
    if evaluate_every is not None and evaluate_every < 1:
        raise InputError(f"evaluate_every must be at least 1, got {evaluate_every}")
    model = model or default_model(recipe)
    chosen = get_recipe(recipe, model, len(train_set), where)
    steps = [_fit_of(chosen, step, parameters) for step in steps]
    if epochs is not None:
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, got {epochs}")
        chosen = replace(chosen, epochs=epochs)
    half = fast_half(where) if chosen.half else None
    folder = expand(out) if out is not None else None
    if materialize and folder is None:
        raise InputError("materialize needs a folder for the projected set: give --out")
    config = {
        "method": name,
        "parameters": {type(s).__name__: asdict(s) for s in steps if dataclasses.fields(s)},
        "model": model,
        "recipe": asdict(chosen),
        "seed": seed,
        "device": str(where),
        "limit": limit,
        **({"processes": distributed.size()} if distributed.size() > 1 else {}),
        "half": str(half).removeprefix("torch.") if half else None,
        "data": {
            "name": train_set.name,
            "images": len(train_set),
            "image_shape": list(train_set.image_shape),
            "classes": train_set.num_classes,
            "class_names": list(train_set.classes),
            "test_images": len(test_set),
            **_fingerprints(folder, train_set, test_set, clean),
            "manifest": train_set.manifest,
        },
    }
    begin = Start(start, train_set.image_shape) if start is not None else None
    config["start"] = {"source": begin.source, "checksum": begin.checksum} if begin is not None else None
    _rehearse(model, train_set, begin)
    with claimed(folder) if folder is not None and distributed.is_main() else contextlib.nullcontext():
        if folder is not None:
            if distributed.is_main():
                _open(folder, config, resume, overwrite)
            distributed.wait()
        runner = Runner(model, seed, where, folder, resume, keep_checkpoints, evaluate_every, progress, begin)

        baselines: dict[str, TrainResult] = {}
        if baseline is not None:
            baselines["clean"] = runner.run("clean", Plan(baseline, test_set, chosen))
        if name != "none" and (compare is not False or data is None):
            baselines["poisoned"] = runner.run("poisoned", Plan(train_set, test_set, chosen))

        context = Context(seed, where, progress, basis, clean, folder, resume)
        try:
            plan = _carried_out(steps, Plan(train_set, test_set, chosen, poisoned_test=poisoned_test), context)
        except torch.linalg.LinAlgError:
            raise InputError(
                f"{name}: the images are too few or too alike to fit anything to: give more of each class"
            ) from None
        result = runner.run("attack", plan, materialize)
        manifest = train_set.manifest
        done = AttackResult(
            method=name,
            poison=manifest.get("method", ""),
            model=model,
            recipe=recipe,
            seed=seed,
            train_accuracy=result.train_accuracy,
            test_accuracy=result.test_accuracy,
            baselines={key: value.test_accuracy for key, value in baselines.items()},
            history=result.history,
            baseline_history={key: value.history for key, value in baselines.items()},
            seconds={
                "fit": plan.seconds.get("fit", 0.0),
                "project": plan.seconds.get("project", 0.0),
                "train": result.seconds,
                "evaluate": result.evaluation,
            },
            images_per_second=result.images_per_second,
            config=config,
            environment=environment.describe(),
            notes=plan.notes,
            basis=plan.basis,
        )
        if folder is not None and distributed.is_main():
            with writing(folder):
                done.save(folder)
        return done


def _carried_out(steps: Sequence[Attack], plan: Plan, context: Context) -> Plan:
    """The plan after the attacks; the run's folder gets the basis and pictures. Takes the basis that an interrupted run
    has left there, if it is resumed.
    """
    given, folder = plan.train, context.folder
    fitted = folder / "basis.safetensors" if folder is not None else None
    if context.basis is None and fitted is not None and distributed.agreed(context.resume and fitted.is_file()):
        context = replace(context, basis=Basis.load(fitted))
    distributed.wait()  # until all have read it, as it is written again below
    _apply(steps, plan, context)
    plan.removal = _same(plan.removal).settled(given.image_shape)
    plan.test_removal = _same(plan.test_removal)
    if folder is not None and fitted is not None and distributed.is_main():
        with writing(folder):
            if plan.basis is not None:
                plan.basis.save(fitted)
                fitted.with_name(FIT_FILE).unlink(missing_ok=True)
            examples(given, context.clean, plan).save(folder / "examples.npz")
    return plan


def _apply(steps: Sequence[Attack], plan: Plan, context: Context) -> None:
    """The attacks one after the other, each followed by the one that it names."""
    for step in steps:
        named = step.apply(plan, context)
        if named is not None:
            _apply(get_attack(named)[1], plan, context)


def _same(removal: Removal) -> Removal:
    """A removal with the first process's rows, in all processes."""
    return removal if removal.rows is None else replace(removal, rows=distributed.same(removal.rows))


def configure(name: str, steps: Sequence[Attack], parameters: dict[str, Any]) -> list[Attack]:
    """Hands every parameter to the attacks of a combination that have it.

    Raises:
        InputError: a parameter that none of them has, or a value out of bounds.
    """
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


def _fit_of(recipe: Recipe, step: Attack, given: dict[str, Any]) -> Attack:
    """`orthogonal` with the recipe's fit, where the user chooses neither its start nor its length."""
    if type(step) is not OrthogonalProjection or recipe.fit_init is None:
        return step
    own: dict[str, Any] = {"init": recipe.fit_init}
    if given.get("fit_steps") is None:
        own["fit_epochs"] = recipe.fit_epochs
    return replace(step, **{key: value for key, value in own.items() if given.get(key) is None})


def _load(
    data: Any,
    test: Dataset | None,
    compare: Dataset | bool,
    limit: int | None,
    seed: int,
    progress: Progress | None,
) -> tuple[Dataset, Dataset, Dataset | None]:
    """Training set, test set, and the clean training set where it is known."""
    if data is None:
        clean = load_named(DEFAULT_DATA, limit=limit, seed=seed)
        return poison(clean, DEFAULT_POISON, seed=seed), test or load_named(DEFAULT_DATA, split="test"), clean
    if isinstance(data, Dataset):
        train_set = data if limit is None else data.balanced(limit, seed)
    else:
        train_set = load_dataset(data, limit=limit, seed=seed, progress=progress)
        if isinstance(data, (str, os.PathLike)) or has_splits(data):
            test = test or load_dataset(data, split="test", progress=progress)
    if test is None:
        raise InputError("give the clean test images: attack(data, test=...)")
    clean_set = compare if isinstance(compare, Dataset) else None
    if clean_set is not None and limit is not None:
        clean_set = clean_set.balanced(limit, seed)
    return train_set, test, clean_set


def _check(
    name: str, steps: Sequence[Attack], train: Dataset, test: Dataset, clean: Dataset | None
) -> tuple[Dataset, Dataset | None]:
    """Test and clean images with the training images' class numbers. Images that do not fit are refused before anything
    is written.
    """
    if clean is None and any(step.needs_clean for step in steps):
        raise InputError(f"{name} needs some clean training images: give --clean PATH|NAME")
    test = matched(train, test, names=("training images", "test images"), part=True)
    if clean is not None:
        clean = matched(train, clean, names=("training images", "clean images"))
    return test, clean


def _fingerprints(folder: Path | None, train: Dataset, test: Dataset, clean: Dataset | None) -> dict[str, str]:
    """What a resumed run must find again; nothing where nothing is written."""
    same_everywhere(train, test, clean)
    if folder is None:
        return {}
    sets = {"training": train, "test": test, "clean": clean}
    return {f"{key}_fingerprint": one.fingerprint() for key, one in sets.items() if one is not None}


def _rehearse(model: str, data: Dataset, start: Start | None) -> None:
    """Refuses a wrong model name, and weights that do not fit it, before anything is written; on the meta device this
    costs nothing.
    """
    with torch.device("meta"):
        network = build_model(model, num_classes=data.num_classes, image_shape=data.image_shape)
    if start is not None:
        start.into(network)


def _open(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Makes the run's folder and writes the configuration into it."""
    if resume:
        before = read_json(folder / "config.json").get("data", {})
        other = [key for key in DATA_KEYS if key in before and before[key] != config["data"].get(key)]
        if other:
            raise InputError(
                f"{folder} is a run on other data (another {', '.join(other)}): give the same images, or --overwrite"
            )
    else:
        check_free(folder, overwrite)
        if folder.is_dir() and any(folder.iterdir()):  # at any moment it is the old run or the new one
            with atomic_folder(folder, overwrite=True) as begun:
                write_json(begun / "config.json", config)
            return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config)
