"""Image folders, one per class: `train/CLASS/*.jpg` with `test/` or `val/` beside it, or CLASS folders alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.made import EXPORT, MARKER, read_json
from ..classes import in_order
from ..dataset import Dataset
from .encoded import Encoded, read_images
from .request import Request
from .splits import WORDS, Split, check_classes, find_splits, labelled_alone
from .walk import Walk


def detect(path: Path) -> bool:
    return path.is_dir() and bool(Walk(path).entries(path)[0])


@dataclass(frozen=True)
class _Listing:
    """The files of a split with their labels, and how they are read."""

    files: list[Path]
    labels: np.ndarray
    classes: tuple[str, ...]
    channels: int = 3


def read(request: Request) -> Dataset:
    """Decodes every image to RGB; large sets on demand.

    Classes are the folder names: sorted, numerically if all are numbers, or in the order given by the `ulfast.json` of
    an export. A test split whose classes are a subset of the training split's keeps the order of the latter.
    """
    path, split = request.path, request.split
    walk = Walk(path)
    found = _list(path, split, request.sole, walk)
    notes: Counter[str] = Counter()
    files = found.files
    encoded = Encoded(len(files), files.__getitem__, lambda i: files[i].read_bytes(), found.channels)
    images, labels = read_images(encoded, found.labels, request, notes)
    return Dataset(images, labels, found.classes, path.name, split, notes=dict(walk.left + notes))


def _list(path: Path, split: str, sole: bool, walk: Walk) -> _Listing:
    splits = find_splits(path, split, walk)
    mine = splits.get(split)
    if mine is None and splits:
        if not sole:
            raise MissingSplit(f"{path} has no {split} images ({WORDS[split]} folder): give them with --test-data")
        mine = next(iter(splits.values()))
    elif mine is None and split == "test" and not sole:
        raise MissingSplit(f"{path} has no {split} images ({WORDS[split]} folder): give them with --test-data")
    if mine is None:
        mine = labelled_alone(path, whole=split == "train" and not sole)
    root = mine.folder if mine else path
    about = _export(path, root)
    if mine is not None and mine.images:
        known = _folder_names(splits, about) or []
        names, files = list(mine.labels), list(mine.images)
        classes = known if set(names) <= set(known) else in_order(set(names))
        return _Listing(files, np.array([classes.index(name) for name in names]), tuple(map(_text, classes)))
    folders, beside = walk.entries(root)
    walk.left["images beside the class folders"] += len(beside)
    if not folders:
        raise InputError(f"{root} has no class folders: expected {root}/CLASS/*.jpg")
    present = {folder.name: folder for folder in folders}
    if mine is None:
        check_classes(root, folders)
    classes = list(about["folders"]) if about else in_order(present)
    if about and (other := sorted(set(present) - set(classes))):
        raise InputError(f"{root / other[0]} is not a class in {MARKER}, which was written with the set: remove either")
    if not about and classes != sorted(classes):
        walk.left["classes sorted by number, where torchvision sorts 10 before 2"] += len(classes)
    test_folders = split == "test" or sole
    if not about and test_folders and "train" in splits and mine is splits.get("test"):
        known = _folder_names(splits, about) or []
        classes = known if set(classes) <= set(known) else classes
    members = [walk.below(present[name]) if name in present else [] for name in classes]
    for name, images in zip(classes, members, strict=True):
        if not images and not (test_folders and (about or name not in present)):
            seen = ", ".join(f"{count} {kind}" for kind, count in walk.left.items() if count)
            what = f" (left out: {seen})" if seen else ""
            raise InputError(f"class {root / name} has no image{what}: add some or remove the folder")
    files = [file for group in members for file in group]
    if not files:
        raise InputError(f"{root} has no image: get it again")
    labels = np.repeat(np.arange(len(classes)), [len(group) for group in members])
    names = list(about["classes"]) if about else [_text(name) for name in classes]
    return _Listing(files, labels, tuple(names), int(about["channels"]) if about else 3)


def _folder_names(splits: dict[str, Split], about: dict[str, Any]) -> list[str] | None:
    """The class folders of the training images, in order."""
    if about:
        return list(about["folders"])
    train = splits.get("train")
    if train is None:
        return None
    if train.labels:
        return in_order(set(train.labels))
    return in_order(folder.name for folder in Walk(train.folder).entries(train.folder)[0])


def _export(path: Path, root: Path) -> dict[str, Any]:
    """What `ulfast data export` wrote about the classes, {} if it wrote nothing; `root` may be one of its splits."""
    for place in dict.fromkeys((path, root, root.parent)):
        about = read_json(place / MARKER)
        if about.get("format") == EXPORT and about.get("layout") == "imagefolder":
            names, folders = about.get("classes"), about.get("folders")
            whole = _texts(names) and _texts(folders) and len(list(names or ())) == len(list(folders or ()))
            if not whole or about.get("channels") not in (1, 3):
                raise InputError(f"{place / MARKER} is damaged: remove it to read the folders in sorted order")
            return about
    return {}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _text(name: str) -> str:
    """A folder's name as text: bytes that are not UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name
