"""Describes a data set, for `ulfast data info`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..data.classes import aligned, matched
from ..data.dataset import Dataset
from ..data.load import load_dataset
from ..data.mapped import decoded
from ..data.tensors import level_counts, statistics_of
from ..errors import InputError, MissingSplit
from ..runtime.progress import Progress
from .distinct import distinct_perturbations

# Limits of the search for poison: images, their bytes, and the side of the central square of large images for fits.
LOOKED_AT, LOOKED_BYTES, CENTRE = 10_000, 512 << 20, 64
FIRST, FIRST_OF_CLASS = 1_000, 10  # images of the first look, or so many of each class


def describe(
    source: str | os.PathLike[str],
    *,
    format: str | None = None,
    resize: int | None = None,
    base: Dataset | None = None,
    look_for_poison: bool = True,
    seed: int = 0,
    first: Callable[[str], None] | None = None,
    progress: Progress | None = None,
    **reading: Any,
) -> dict[str, Any]:
    """Images per class, size, checksum, channel statistics, manifest and warnings, as JSON-able values.

    Every image is read once. Whether the training images are poisoned is judged on a class-balanced sample of at most
    10,000 images and 512 MiB; models are fitted to the centres of large images.

    Args:
        first: called with a sentence before all images are read: what 1,000 images of a larger set look like.
        base: the clean training images; if given, the distinct perturbations in each class are counted.

    Returns:
        `splits` (by name: images, image_shape, dtype, classes with their counts, mean, std, sha256, manifest,
        notes) and `warnings`, sentences.

    Raises:
        InputError: the data set cannot be read; floats outside [0, 1] are reported as already normalised.
    """
    splits: dict[str, Any] = {}
    warnings: list[str] = []
    train: Dataset | None = None
    for split in ("train", "test"):
        try:
            options = {"format": format, "resize": resize, "progress": progress, **reading, "verify": True}
            dataset = load_dataset(source, split=split, **options)
            if train is not None:
                dataset = matched(train, dataset, names=("training images", "test images"), part=True)
        except InputError as error:
            if train is None:
                raise
            missing = isinstance(error, MissingSplit)
            warnings.append(f"{'there are no test images' if missing else 'the test images do not fit'}: {error}")
            continue
        if train is None:
            train = dataset
            if first is not None and look_for_poison and not train.manifest.get("method"):
                _first_look(train, seed, first)
        splits[split] = _split(dataset, progress)
        empty = [name for name, count in splits[split]["classes"].items() if count == 0]
        if empty:
            warnings.append(f"{split}: no image of class {', '.join(empty[:5])}")
    assert train is not None
    if train.manifest.get("method"):
        warnings.append(f"the training images are poisoned with {train.manifest['method']}, says the manifest")
    elif look_for_poison:
        from . import diagnose

        try:
            found = diagnose(_sample(train, LOOKED_AT, seed, progress), seed=seed, centre=CENTRE, progress=progress)
        except InputError as error:  # too few images
            warnings.append(f"whether they are poisoned cannot be told: {error}")
        else:
            if found.suggested_attack != "none":
                what = "look poisoned" if found.verdict == "poisoned" else "may be poisoned"
                warnings.append(f"the training images {what}: `ulfast diagnose {source}` says why")
    counted: dict[str, Any] = {}
    if base is not None:
        counted = {"distinct_perturbations": _distinct(train, base, warnings)}
    return {"data": str(source), "splits": splits, "warnings": warnings, **counted}


def _distinct(train: Dataset, base: Dataset, warnings: list[str]) -> dict[str, int]:
    """Reports the most frequent mistake with published noise: sample-wise noise that was added by label."""
    train = aligned(base, train, names=("the clean images", "the training images"))
    counts = distinct_perturbations(base, train)
    parameters = train.manifest.get("parameters") or {}
    claimed = parameters.get("wise") == "sample" or parameters.get("per") == "image"
    if counts and all(count == 1 for count in counts.values()):
        what = "the perturbation is class-wise: every image of a class has the same"
        warnings.append(f"{what}, though the manifest says sample-wise" if claimed else what)
    return counts


def _first_look(train: Dataset, seed: int, first: Callable[[str], None]) -> None:
    """Reports what a small sample looks like, if it is small beside the set and can tell anything."""
    from . import diagnose

    count = max(FIRST, FIRST_OF_CLASS * train.num_classes)
    if count > min(LOOKED_AT, len(train)) // 2:
        return
    with contextlib.suppress(InputError):  # of a class with too few images
        some = _sample(train, count, seed, None)
        found = diagnose(some, seed=seed, centre=CENTRE)
        first(f"a first look at {len(some):,} of {len(train):,} training images: {found.verdict}")


def _sample(train: Dataset, count: int, seed: int, progress: Progress | None) -> Dataset:
    """`count` images to search for poison, decoded once."""
    most = min(count, len(train), LOOKED_BYTES // int(np.prod(train.image_shape)))
    return decoded(train.balanced(max(train.num_classes, most), seed), progress)


def _split(dataset: Dataset, progress: Progress | None) -> dict[str, Any]:
    counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
    levels, done, cpu = np.zeros((dataset.image_shape[2], 256)), 0, torch.device("cpu")

    def count(images: np.ndarray) -> None:
        nonlocal levels, done
        levels += level_counts(images.reshape(-1, images.shape[3]), cpu)
        done += len(images)
        if progress:
            progress("measure", done, len(dataset))

    sha256 = dataset.checksum(count)
    mean, std = statistics_of(levels)
    return {
        "images": len(dataset),
        "image_shape": list(dataset.image_shape),
        "dtype": str(dataset.images.dtype),
        "classes": {name: int(count) for name, count in zip(dataset.classes, counts, strict=True)},
        "mean": list(mean),
        "std": list(std),
        "sha256": sha256,
        "manifest": dataset.manifest,
        "notes": dataset.notes,
    }
