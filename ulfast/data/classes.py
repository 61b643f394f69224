"""The one place that compares two data sets: image shape, classes, order and labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .. import distributed
from ..errors import InputError
from .dataset import Dataset


@dataclass(frozen=True)
class Outline:
    """What is compared of a data set that is itself not at hand."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def in_order(names: Iterable[str]) -> list[str]:
    """Class names sorted, numerically where all are whole numbers: 2 before 10."""
    names = list(names)
    numbers = _numbers(names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _numbers(names: Iterable[str]) -> bool:
    return all(name.isascii() and name.isdecimal() for name in names)


def unnamed(classes: tuple[str, ...]) -> bool:
    """Whether the classes are just the numbers 0 to n - 1."""
    return classes == tuple(map(str, range(len(classes))))


def matched(reference: Dataset | Outline, other: Dataset, *, names: tuple[str, str], part: bool = False) -> Dataset:
    """`other` with the classes and label numbers of `reference`, matched by name.

    Args:
        names: what the two are called in an error: ("training images", "test images").
        part: whether `other` may lack some of the classes, as test images may.

    Raises:
        InputError: the image shapes differ, or one set has classes that the other lacks.
    """
    first, second = names
    if reference.image_shape != other.image_shape:
        raise InputError(
            f"{first} and {second} differ: {_size(reference)} and {_size(other)}; say --resize, or give others"
        )
    if reference.classes == other.classes:
        return other
    if _numbers(reference.classes) and _numbers(other.classes):  # "01" is class "1"
        known = {int(name): name for name in reference.classes}
        if len(known) == reference.num_classes:
            other = replace(other, classes=tuple(known.get(int(name), name) for name in other.classes))
    new, missing = _less(other.classes, reference.classes), _less(reference.classes, other.classes)
    if new or (missing and not part):
        what = f"{second} have {_some(new)}" if new else ""
        what += " and " if new and missing else ""
        what += f"{first} have {_some(missing)}" if missing else ""
        hint = "rename the classes, or give other data"
        if unnamed(reference.classes) != unnamed(other.classes):
            hint = "numbers are not matched with names: save the names with both (`classes`), or give others"
        raise InputError(
            f"{first} and {second} differ in their classes ({reference.num_classes} and {other.num_classes} classes):"
            f" {what}; {hint}"
        )
    place = {name: c for c, name in enumerate(reference.classes)}
    order = np.array([place[name] for name in other.classes], np.int64)
    return replace(other, labels=order[other.labels], classes=reference.classes)


def aligned(reference: Dataset, other: Dataset, *, names: tuple[str, str]) -> Dataset:
    """`other`, which must be the same set as `reference` image by image: as `matched`, with equal number and labels.

    Raises:
        InputError: as for `matched`; or the number of images or the order of the labels differs.
    """
    first, second = names
    other = matched(reference, other, names=names)
    if len(other) != len(reference):
        raise InputError(
            f"{first} and {second} differ: {len(reference):,} and {len(other):,} images; give those it was made from"
        )
    if differ := int((reference.labels != other.labels).sum()):
        raise InputError(
            f"{first} and {second} differ in the labels of {differ:,} images: give those it was made from, in order"
        )
    return other


def _size(dataset: Dataset | Outline) -> str:
    height, width, channels = dataset.image_shape
    return f"images of {height} x {width} x {channels}"


def _less(names: tuple[str, ...], others: tuple[str, ...]) -> list[str]:
    have = set(others)
    return [name for name in names if name not in have]


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def same_everywhere(*datasets: Dataset | None) -> None:
    """Raises InputError where the processes have read different images."""
    if distributed.size() > 1:
        own = [dataset.fingerprint() if dataset is not None else "" for dataset in datasets]
        distributed.check_same({"images": own})
