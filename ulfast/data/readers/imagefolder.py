"""Folders of images, a folder a class: `train/CLASS/*.jpg` with `test/` or `val/` beside it, or CLASS folders alone."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.machine import cores
from ...runtime.made import EXPORT, MARKER, read_json
from ...runtime.progress import Progress
from ..classes import in_order
from ..dataset import Dataset
from ..lazy import LazyImages, streams
from .image import decode
from .request import Request
from .splits import WORDS, Split, check_classes, find_splits, labelled_alone
from .walk import Walk

BLOCK = 256  # images decoded between two reports of progress


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
    """Decodes every image to RGB, large sets on demand.

    Classes are the folder names: sorted, by number where all are numbers, or in the order that `ulfast.json` says,
    which an export has. A test split whose classes are some of the training split's has that one's order.
    """
    path, split, resize = request.path, request.split, request.resize
    walk = Walk(path)
    found = _list(path, split, request.sole, walk)
    notes: Counter[str] = Counter()
    files, labels = found.files, found.labels
    if request.skip_damaged:
        good = _readable(files, found.channels, request.progress)
        if not good.all():
            notes["damaged images, left out"] = int((~good).sum())
            files, labels = [file for file, ok in zip(files, good, strict=True) if ok], labels[good]
        if not files:
            raise InputError(f"{path} has no {split} image that can be read: get it again")
    shape = decode(files[0], resize, channels=found.channels).shape
    images: np.ndarray | LazyImages
    if streams(len(files), shape, request.stream):
        images = LazyImages((len(files), *shape), lambda i, out: _decode_into(files, i, resize, out))
    else:
        images = decode_all(files, resize, request.progress, channels=found.channels, notes=notes)
    return Dataset(images, labels, found.classes, path.name, split, notes=dict(walk.left + notes))  # type: ignore[arg-type]


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
        raise InputError(f"{root / other[0]} is no class of {MARKER}, which was written with the set: remove either")
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
    """The class folders of the training images, in their order."""
    if about:
        return list(about["folders"])
    train = splits.get("train")
    if train is None:
        return None
    if train.labels:
        return in_order(set(train.labels))
    return in_order(folder.name for folder in Walk(train.folder).entries(train.folder)[0])


def _export(path: Path, root: Path) -> dict[str, Any]:
    """What `ulfast data export` wrote of the classes, {} where it did not; `root` may be a split of it."""
    for place in dict.fromkeys((path, root, root.parent)):
        about = read_json(place / MARKER)
        if about.get("format") == EXPORT and about.get("layout") == "imagefolder":
            names, folders = about.get("classes"), about.get("folders")
            whole = _texts(names) and _texts(folders) and len(list(names or ())) == len(list(folders or ()))
            if not whole or about.get("channels") not in (1, 3):
                raise InputError(f"{place / MARKER} is damaged: remove it to read the folders in their own order")
            return about
    return {}


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _text(name: str) -> str:
    """A folder's name as text: bytes that are no UTF-8 are read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("latin-1")
    return name


def _decode_into(
    files: list[Path], i: int, resize: int | None, out: np.ndarray, notes: Counter[str] | None = None
) -> None:
    image = decode(files[i], resize, channels=out.shape[2], notes=notes)
    if image.shape != out.shape:
        sizes = f"{out.shape[1]} x {out.shape[0]} and {image.shape[1]} x {image.shape[0]}"
        raise InputError(f"images differ in size: {sizes} ({files[0]}, {files[i]}): say --resize S")
    out[:] = image


def _readable(files: list[Path], channels: int, progress: Progress | None) -> np.ndarray:
    """(n,) bool: which of the files can be decoded."""

    def good(i: int) -> bool:
        try:
            decode(files[i], channels=channels)
        except InputError:
            return False
        return True

    out = np.zeros(len(files), bool)
    with ThreadPoolExecutor(cores()) as pool:
        for i, ok in enumerate(pool.map(good, range(len(files)))):
            out[i] = ok
            if progress and ((i + 1) % BLOCK == 0 or i + 1 == len(files)):
                progress("check", i + 1, len(files))
    return out


def decode_all(
    files: list[Path],
    resize: int | None,
    progress: Progress | None,
    *,
    channels: int = 3,
    notes: Counter[str] | None = None,
) -> np.ndarray:
    """All files as one (n, H, W, channels) uint8 array, on a pool of threads; the decoders release the GIL.

    Raises:
        InputError: an unreadable image, or images of different sizes and no `resize`.
    """
    first = decode(files[0], resize, channels=channels)
    out = np.empty((len(files), *first.shape), np.uint8)

    def work(i: int) -> Counter[str]:
        own: Counter[str] = Counter()
        _decode_into(files, i, resize, out[i], own)
        return own

    with ThreadPoolExecutor(cores()) as pool:
        try:
            for begin in range(0, len(files), BLOCK):
                stop = min(begin + BLOCK, len(files))
                for own in pool.map(work, range(begin, stop)):
                    if notes is not None:
                        notes += own
                if progress:
                    progress("read", stop, len(files))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return out
