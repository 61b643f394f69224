"""Finds the folders of the training images and of the test images, whatever their names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, MissingSplit
from .mapping import label_files, labels_of
from .walk import SUFFIXES, Walk

NAME = re.compile(
    r"(?:seg[ _-]?)?(train|training|test|testing|val|valid|validation|dev|development|eval|evaluation)"
    r"(?:[ _-]?(?:set|data|dataset|images|imgs|folder))?"
)
KINDS = {"tra": "train", "tes": "test", "val": "val", "dev": "val", "eva": "val"}
WORDS = {"train": "train, training, training_set, ...", "test": "test, val, valid, eval, dev, ..."}
# A single subfolder with such a name holds images of all classes and is not itself a class.
PLAIN = {"image", "images", "img", "imgs", "jpegimages", "pictures", "photos", "data", "all"}


def kind_of(folder: Path) -> str | None:
    """ "train", "test" or "val" from a folder's name, in any case; None for any other name."""
    found = NAME.fullmatch(folder.name.casefold())
    return KINDS[found[1][:3]] if found else None


def kind_of_file(name: str) -> str | None:
    """ "train", "test" or "val" from a word in a file's name (`train-000000.tar`, `cifar10-validation-00.tar`)."""
    words = [word for word in re.split(r"[^a-z]+", name.casefold()) if word]
    found = [KINDS[match[1][:3]] for word in words if (match := NAME.fullmatch(word))]
    return found[-1] if found else None


def file_splits(root: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of each split of a set stored in numbered files: "train", "test", "val", and "" for no known name.

    They are in `root`, in a folder in it, or in a split folder within that. The split comes from the file's own name,
    or else from its folders' names. Hidden files and folders of images are left out.
    """
    files = [file for file in sorted(root.glob(f"*{suffix}")) if file.is_file()]
    for folder in _folders(root):
        files += _numbered(folder, suffix)
        for inner in _folders(folder) if _no_images(folder) else []:
            files += _numbered(inner, suffix) if kind_of(inner) else []
    found: dict[str, list[Path]] = {}
    for file in files:
        if file.name.startswith("."):
            continue
        kind = kind_of_file(file.name.removesuffix(suffix))
        for parent in file.relative_to(root).parents[:-1]:
            kind = kind or kind_of(parent)
        found.setdefault(kind or "", []).append(file)
    return found


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [folder / name for name in names]


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """The files with a suffix; none in a folder of images, so that a million of these need not be scanned."""
    return sorted(file for file in folder.glob(f"*{suffix}") if file.is_file()) if _no_images(folder) else []


def _no_images(folder: Path) -> bool:
    """Whether the first file of a folder is not an image; an unreadable folder counts as a folder of images."""
    try:
        with os.scandir(folder) as entries:
            first = next((entry.name for entry in entries if "." in entry.name[1:] and not entry.is_dir()), "")
    except OSError:
        return False
    return Path(first).suffix.lower() not in SUFFIXES


def files_of(root: Path, splits: dict[str, list[Path]], split: str, sole: bool, left: Counter[str]) -> list[Path]:
    """The files of one split from `file_splits`; all files if no name indicates a split.

    Raises:
        MissingSplit: there are none.
    """
    named = {kind: files for kind, files in splits.items() if kind}
    if not named:
        if split == "train" or sole:
            return splits.get("", [])
        raise MissingSplit(f"{root} has no file named as {WORDS['test']}: give the test images with --test-data")
    kinds = ("train",) if split == "train" else ("test", "val")
    kinds = (*kinds, "train", "test", "val") if sole else kinds
    mine = next((kind for kind in kinds if kind in named), None)
    if mine is None:
        raise MissingSplit(f"{root} has no file named as {WORDS[split]}: give the {split} images with --test-data")
    if beside := splits.get(""):
        left["files of no split"] += len(beside)
    return named[mine]


@dataclass(frozen=True)
class Split:
    """A folder with one folder per class, or a flat folder of images with the class of each."""

    folder: Path
    images: Sequence[Path] = ()
    labels: Sequence[str] = ()


def find_splits(root: Path, split: str, walk: Walk) -> dict[str, Split]:
    """The split folders below `root`, {} if it holds the class folders itself.

    Args:
        split: the requested split; nothing about the other one raises an error.

    Raises:
        InputError: the folders are ambiguous, or images have neither class folders nor labels.
    """
    entries, _ = walk.entries(root)
    named = [(folder, kind) for folder in entries if (kind := kind_of(folder))]
    looked = Walk(root)  # what is left out is counted when the split is read
    inside = {folder: looked.entries(folder) for folder, _ in named}
    with_classes = [(folder, kind) for folder, kind in named if inside[folder][0]]
    flat = [folder for folder, _ in named if inside[folder][1] and not inside[folder][0]]
    if not with_classes:
        if not flat or len(flat) < len(entries):
            walk.left.clear()  # it is read again, as the folder with the classes
            return {}
        labelled = _labelled([(folder, kind_of(folder) or "") for folder in flat], root, [])
        if not labelled:
            raise InputError(
                f"{root} has {', '.join(folder.name for folder in flat)} with images but no class folders in them, nor"
                " a table of their classes: sort them into CLASS folders"
            )
        return labelled
    found: dict[str, Split] = {}
    trains = [folder for folder, kind in with_classes if kind == "train"]
    if len(trains) > 1:
        raise InputError(
            f"{root} has {trains[0].name} and {trains[1].name}: which holds the training images? Point --data at it,"
            " and --test-data at the test images"
        )
    others = [folder for folder in entries if kind_of(folder) is None]
    if trains:
        found["train"] = Split(_unwrapped(trains[0], looked))
        classes = [folder for folder in others if looked.entries(folder)[1]]
        if len(named) == 1 and classes:
            raise InputError(
                f"{root} has the folder {trains[0].name} beside {classes[0].name}: is it a class or the training"
                f" images? Point --data at {trains[0]}, or rename it"
            )
    known = [folder.name for folder in looked.entries(found["train"].folder)[0]] if trains else []
    candidates = [(folder, kind) for kind in ("test", "val") for folder, k in named if k == kind]
    usable: list[tuple[str, Split]] = []
    for folder, kind in candidates:
        folders = inside[folder][0]
        if folders and not (len(folders) == 1 and folders[0].name.lower() in PLAIN and folders[0].name not in known):
            usable.append((kind, Split(_unwrapped(folder, looked))))
        else:
            usable += [(kind, s) for s in _labelled([(folder, kind)], root, known).values()]
    kinds = [kind for kind, _ in usable]
    if usable:
        if split == "test" and kinds.count(kinds[0]) > 1:
            raise InputError(
                f"{root} has {usable[0][1].folder.name} and {usable[1][1].folder.name}: which holds the test images?"
                " Name it with --test-data"
            )
        found["test"] = usable[0][1]
    elif candidates and split == "test":
        raise MissingSplit(
            f"{candidates[0][0]} has no class folders, and neither it nor {root} has a table of the classes: sort"
            " them into CLASS folders, or give other images with --test-data"
        )
    used = {one.folder for one in found.values()}
    for folder in entries:
        if not any(folder == one or folder in one.parents for one in used):
            walk.left["folders beside the splits"] += 1
    return found


def check_classes(root: Path, folders: list[Path]) -> None:
    """Raises InputError if apparent class folders hold the splits or the real classes."""
    walk = Walk(root)
    inside = []
    for folder in folders:
        subfolders, images = walk.entries(folder)
        kinds = {kind_of(sub) for sub in subfolders} - {None}
        if len(kinds) > 1 and not images and len(folders) == 1:
            raise InputError(f"{root} holds only {folder.name}, which has the splits: point --data at {folder}")
        if len(kinds) > 1 and not images:
            raise InputError(
                f"{folder} holds {' and '.join(sub.name for sub in subfolders if kind_of(sub))}: splits within a class"
                f" folder; sort them into train/{folder.name} and test/{folder.name}"
            )
        inside.append(set() if images else {sub.name for sub in subfolders})
    if len(folders) > 1 and all(inside) and len(shared := sorted(set.intersection(*inside))) > 1:
        raise InputError(
            f"{', '.join(folder.name for folder in folders[:3])} in {root} all hold folders {', '.join(shared[:3])}:"
            " which are the classes? Point --data at the training images and --test-data at the test images"
        )


def labelled_alone(root: Path, *, whole: bool) -> Split | None:
    """A flat folder of images with a table of their classes, such as Tiny ImageNet's `val`; None for class folders.

    Args:
        whole: whether it is a whole data set, so that a folder of any name is a class.

    Raises:
        InputError: there are images but neither class folders nor a table.
    """
    folders, images = Walk(root).entries(root)
    plain = len(folders) == 1 and folders[0].name.lower() in PLAIN and not whole
    if folders and not plain:
        return None
    found = next(iter(_labelled([(root, "test")], root, []).values()), None)
    if found is None and (images or plain):
        raise InputError(
            f"{root} has no class folders, nor a table of its images' classes: sort them into CLASS folders"
        )
    return found


def _unwrapped(folder: Path, walk: Walk) -> Path:
    """Handles `seg_train/seg_train/CLASS`: archives unpacked into a folder of their own name."""
    folders, images = walk.entries(folder)
    if len(folders) == 1 and not images and kind_of(folders[0]) == kind_of(folder) and walk.entries(folders[0])[0]:
        return folders[0]
    return folder


def _labelled(folders: list[tuple[Path, str]], root: Path, known: list[str]) -> dict[str, Split]:
    """The flat folders whose images a table lists with their classes."""
    found: dict[str, Split] = {}
    for folder, kind in folders:
        walk = Walk(folder)
        subfolders, images = walk.entries(folder)
        where = folder
        if not images and len(subfolders) == 1:
            where, images = subfolders[0], walk.entries(subfolders[0])[1]
        if not images:
            continue
        files = label_files([place for place in dict.fromkeys((where, folder, root)) if place.is_dir()])
        got = labels_of(images, files, known)
        if got is not None:
            found.setdefault("train" if kind == "train" else "test", Split(where, images, got[0]))
    return found
