"""`.npz` files and SVHN's `.mat` files, and the interpretation of arrays as images and labels."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.reading import need_memory, reading, regular
from ..classes import in_order
from ..dataset import Dataset
from .mat5 import read_mat
from .request import Request

MAX_CLASSES = 1 << 20  # a larger label is not a class number
# Names of arrays, in any case: torchvision's and AVATAR's `data` and `targets`, MedMNIST's `train_images`, ...
IMAGE_KEYS, LABEL_KEYS = ("images", "x", "data"), ("labels", "y", "targets")
INFLATION = 1032  # the most bytes that deflate can encode in one


def detect_npz(path: Path) -> bool:
    return path.is_file() and path.suffix == ".npz"


def detect_svhn(path: Path) -> bool:
    return any((path / f"{split}_32x32.mat").is_file() for split in ("train", "test"))


def read_npz(request: Request) -> Dataset:
    """Reads arrays `images` and `labels` (or `x` and `y`, `data` and `targets`), also with the suffix `_train` or
    `_test` or the prefix `train_` or `test_`; `val` where there is no `test`; or `arr_0` and `arr_1`. `classes` is
    optional.

    Images are (n, H, W, C), (n, C, H, W) or (n, H, W), uint8 or floats in [0, 1]; labels are (n,), (n, 1) or one-hot,
    or class names.
    """
    path = request.path
    images, labels, classes, (image_key, label_key) = npz_arrays(request)
    labels, classes = named_labels(labels, classes, f"{path}, {label_key}")
    return Dataset(pixels(images, f"{path}, {image_key}"), labels, classes, path.stem, request.split)


def npz_arrays(request: Request) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, str]]:
    """Images and labels as they are in the file, the class names, and the names of the two arrays.

    Raises:
        InputError: there are no such arrays or several candidates, the file is damaged, or an array holds objects.
    """
    path = request.path
    with reading(path, "save it with numpy.savez", "as arrays"), open_arrays(path) as file:
        keys = npz_keys(file.files, request)
        check_sizes(path, [*keys, "classes"])
        images, labels = file[keys[0]], file[keys[1]]
        if keys == ("arr_0", "arr_1") and images.ndim < 3 <= labels.ndim:
            images, labels, keys = labels, images, ("arr_1", "arr_0")
        classes = _names(file["classes"], f"{path}, classes") if "classes" in file.files else ()
    return images, labels, classes, keys


def npz_keys(files: list[str], request: Request) -> tuple[str, str]:
    """The names of the arrays with the images and the labels of a split.

    Raises:
        MissingSplit: there are none.
        InputError: there are several.
    """
    path, split, sole = request.path, request.split, request.sole
    levels = [split] + (["val", "valid"] if split == "test" else []) + ([""] if split == "train" or sole else [])
    levels += ["train"] if sole and split != "train" else []
    names = {name.casefold(): name for name in files}
    for level in levels:
        found = []
        for option, own, stems in (
            ("--input-key", request.input_key, IMAGE_KEYS),
            ("--target-key", request.target_key, LABEL_KEYS),
        ):
            wanted = (own.casefold(),) if own else stems
            marked = [f"{stem}_{level}" for stem in wanted] + [f"{level}_{stem}" for stem in wanted]
            mine = [names[name] for name in (marked if level else wanted) if name in names]
            if len(mine) > 1:
                raise InputError(f"{path} has {' and '.join(mine)}: say which is meant with {option}")
            found += mine
        if len(found) == 2:
            return found[0], found[1]
    if {"arr_0", "arr_1"} == set(files) - {"classes"} and (split == "train" or sole):
        return "arr_0", "arr_1"
    if "arr_2" in files:
        raise InputError(f"{path} has {len(files)} arrays without names (arr_0, ...): save them as numpy.savez(x=, y=)")
    want = f"`images` and `labels` (or `x` and `y`{'' if split == 'train' else ', with _test'})"
    raise MissingSplit(
        f"{path} has no {split} arrays {want}: it has {', '.join(files) or 'nothing'}; name them with --input-key and"
        " --target-key"
    )


def open_arrays(path: Path) -> np.lib.npyio.NpzFile:
    """Opens an .npz file without reading its arrays.

    Raises:
        InputError: it is an .npy file, or neither.
    """
    content = np.load(regular(path), allow_pickle=False, mmap_mode="r")
    if not isinstance(content, np.lib.npyio.NpzFile):
        raise InputError(f"{path} is one array, an .npy file, under another name: images and labels are needed")
    return content


def check_sizes(path: Path, names: Collection[str] | None = None) -> None:
    """Checks arrays of an .npz before they are read: unpacked they must fit into memory, and no header may declare more
    than its array unpacks to. A few bytes may well unpack to many, as in images of a single colour.
    """
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if names is None or one.filename.removesuffix(".npy") in names]
        need_memory(path, sum(one.file_size for one in members), "its arrays unpacked")
        for one in members:
            with archive.open(one) as member:
                version = np.lib.format.read_magic(member)
                if version not in ((1, 0), (2, 0)):  # numpy itself reports what is wrong
                    continue
                head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = head(member)
            if (
                math.prod(shape) * dtype.itemsize > one.file_size
                or one.file_size > INFLATION * one.compress_size + 1024
            ):
                raise ValueError(f"{one.filename} of shape {shape} is larger than its size in the file")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _names(values: np.ndarray, where: str) -> tuple[str, ...]:
    """Class names from an array of text or numbers."""
    if values.ndim != 1 or not len(values):
        raise InputError(f"{where} has shape {values.shape}: give the name of each class, in order")
    return tuple(_text(value) for value in values.tolist())


def named_labels(
    labels: np.ndarray | Sequence[Any], classes: tuple[str, ...], where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Converts numbers, one-hot rows or names to (n,) int64 labels and class names.

    Args:
        classes: the class names if known, otherwise (); they are then the sorted names in the labels, or numbers.

    Raises:
        InputError: the labels are neither class numbers nor names, or are not among the classes.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind in "SU":
        labels, classes = _text_labels(labels, classes, where)
    labels = class_numbers(labels, where)
    if not classes:
        if labels.max(initial=0) >= MAX_CLASSES:
            raise InputError(f"{where} reaches {labels.max()}: class numbers begin at 0: renumber them")
        classes = tuple(str(c) for c in range(int(labels.max(initial=0)) + 1))
    return labels, classes


def _text_labels(labels: np.ndarray, classes: tuple[str, ...], where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels given as names, converted to numbers, and the names in order."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(f"{where}: labels as text must be one per image, got shape {labels.shape}")
    words = [_text(value) for value in labels.tolist()]
    classes = classes or tuple(in_order(set(words)))
    if other := sorted(set(words) - set(classes)):
        raise InputError(
            f"{where}: {other[0]!r} is not among the classes {', '.join(classes[:5])}: add it to `classes`"
        )
    place = {name: c for c, name in enumerate(classes)}
    return np.array([place[word] for word in words], np.int64), classes


def nhwc(images: np.ndarray, where: str) -> np.ndarray:
    """Images of any accepted layout as (n, H, W, C), in their own dtype.

    Raises:
        InputError: the array does not have three or four dimensions.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise InputError(f"{where}: images must have 3 or 4 dimensions, got shape {images.shape}")
    if images.shape[3] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    return images


def pixels(images: np.ndarray, where: str) -> np.ndarray:
    """Images of any accepted layout as (n, H, W, C) uint8.

    Raises:
        InputError: the array does not hold images, is not finite, or has floats outside [0, 1].
    """
    images = nhwc(images, where)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{where}: images must be uint8, or floats in [0, 1], got {images.dtype}")
    out = np.empty(images.shape, np.uint8)
    for i in range(0, len(images), 1024):
        block = images[i : i + 1024]
        if not np.isfinite(block).all():
            bad = i + int(np.flatnonzero(~np.isfinite(block).all(axis=(1, 2, 3)))[0])
            raise InputError(f"{where}: image {bad} has NaN or infinite pixels: repair or leave it out")
        if block.min() < 0 or block.max() > 1:
            raise InputError(
                f"{where}: floats must lie in [0, 1], images {i} to {i + len(block) - 1} reach from"
                f" {block.min():.3g} to {block.max():.3g}: undo the normalisation, or save uint8"
            )
        out[i : i + 1024] = np.rint(block.astype(np.float32) * 255)
    return out


def class_numbers(labels: np.ndarray, where: str) -> np.ndarray:
    """(n,), (n, 1) or one-hot (n, c) as (n,) int64."""
    if labels.dtype.kind not in "biuf":
        raise InputError(f"{where}: {labels.dtype} values, not class numbers: give the number of each image's class")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2:
        if not ((labels == 0) | (labels == 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise InputError(f"{where}: two-dimensional labels must be one-hot")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or not (np.issubdtype(labels.dtype, np.integer) or (labels == np.rint(labels)).all()):
        raise InputError(f"{where}: labels must be whole numbers, one per image, got {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)


def read_svhn(request: Request) -> Dataset:
    """Reads `train_32x32.mat` and `test_32x32.mat` of SVHN's cropped digits; label 10 is the digit 0."""
    path, split = request.path, request.split
    file = path / f"{split}_32x32.mat"
    if not file.is_file():
        raise InputError(f"{file} is missing: get it with `ulfast data get svhn`")
    content = read_mat(file, ("X", "y"))
    if set(content) != {"X", "y"} or content["X"].ndim != 4:
        raise InputError(f"{file} has no images X (H, W, C, n) with labels y: get it again")
    images, labels = content["X"], class_numbers(content["y"], f"{file}, y")
    if labels.min(initial=0) < 0 or labels.max(initial=0) > 10:
        raise InputError(f"{file} has labels from {labels.min()} to {labels.max()}, not digits: get it again")
    labels = labels % 10
    return Dataset(
        pixels(np.moveaxis(images, 3, 0), str(file)), labels, tuple(str(c) for c in range(10)), path.name, split
    )
