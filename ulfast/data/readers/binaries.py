"""The idx files of MNIST, EMNIST, Fashion-MNIST and others of that form, and STL-10's binary files."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError, MissingSplit
from ..dataset import Dataset
from .arrays import INFLATION
from .request import Request

IDX = re.compile(r"(?P<set>[\w-]*?)-?(?P<split>train|test|t10k)-images[-.]idx3-ubyte(?:\.gz)?")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
STL_SIDE, STL_CLASSES = 96, ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@dataclass(frozen=True)
class _Pair:
    images: Path
    labels: Path
    name: str  # "emnist-letters", or "" where the file names have only MNIST's usual words
    split: str


def _pairs(path: Path) -> list[_Pair]:
    if path.is_file():
        files = [path]
    elif path.is_dir():  # torchvision keeps them in MNIST/raw
        files = [file for pattern in ("*", "raw/*", "*/raw/*") for file in sorted(path.glob(pattern))]
    else:
        files = []
    found: dict[tuple[str, str], _Pair] = {}
    for file in files:
        match = IDX.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        labels = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
        other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(f"{labels.name}.gz")
        labels = labels if labels.is_file() or not other.is_file() else other
        key = match["set"], "train" if match["split"] == "train" else "test"
        found.setdefault(key, _Pair(file, labels, *key))  # sorted, so the unpacked file precedes its .gz
    return list(found.values())


def detect_idx(path: Path) -> bool:
    return bool(_pairs(path))


def read_idx(request: Request) -> Dataset:
    """`train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, `t10k-` or `test-` for the test images, also as `.gz`.

    EMNIST stores its images by columns: they are turned upright, which is counted. Its letters are named by
    `emnist-*-mapping.txt`, or A to Z. Fashion-MNIST is recognised, and its classes named, by the name of a folder.

    Raises:
        InputError: a folder has several sets, labels are missing, or sizes do not match.
    """
    path, split, sole = request.path, request.split, request.sole
    pairs = _pairs(path)
    names = sorted({pair.name for pair in pairs})
    if len(names) > 1:
        raise InputError(
            f"{path} has the sets {', '.join(name or 'of no name' for name in names)}: point --data at the images of"
            f" one ({pairs[0].images.name})"
        )
    if path.is_file() and pairs[0].split == "train" and split == "test" and not sole:
        pairs = [pair for pair in _pairs(path.parent) if pair.name == names[0]]
    pair = next((pair for pair in pairs if pair.split == split or sole), None)
    if pair is None:
        raise MissingSplit(f"{path} has no {split} images beside the others: give them with --test-data")
    images, labels = _idx(pair.images, 3), _idx(pair.labels, 1).astype(np.int64)
    if len(images) != len(labels):
        raise InputError(f"{pair.labels} has {len(labels):,} labels for {len(images):,} images: get both again")
    notes = {}
    classes: tuple[str, ...] = ()
    if pair.name.startswith("emnist"):
        images = images.transpose(0, 2, 1)
        notes = {"images turned upright, which EMNIST stores by columns": len(images)}
        labels, classes = _letters(pair, labels)
    elif any("fashion" in part.casefold() for part in (*pair.images.parts[-4:], path.name)):
        classes = FASHION
    classes = classes or tuple(map(str, range(max(10, int(labels.max(initial=0)) + 1))))
    name = pair.name or next((part for part in (path.name, path.parent.name) if part not in ("raw", "")), "mnist")
    return Dataset(np.ascontiguousarray(images[..., None]), labels, classes, name, split, notes=notes)


def _idx(file: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, checked against its header before memory is allocated."""
    if not file.is_file():
        raise InputError(f"there is no {file}: put it beside the images")
    size = file.stat().st_size
    packed = file.suffix == ".gz"
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            head = stream.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise InputError(f"{file} is not an idx file of bytes in {dimensions} dimensions: get it again")
            shape = struct.unpack(f">{dimensions}I", head[4:])
            need = math.prod(shape)
            if need > (INFLATION * size if packed else size - len(head)):
                raise InputError(f"{file} is cut short, its header says {shape}: get it again")
            content = stream.read(need + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{file} cannot be read ({error}): get it again") from None
    if len(content) != need:
        raise InputError(f"{file} does not hold the {need:,} bytes that its header declares: get it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _letters(pair: _Pair, labels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """EMNIST's labels counted from 0, and the first character of each class."""
    mapping = pair.images.with_name(f"{pair.name}-mapping.txt")
    if mapping.is_file():
        try:
            rows = [[int(word) for word in line.split()] for line in mapping.read_text().splitlines() if line.strip()]
            known = {row[0]: chr(row[1]) for row in rows}
        except (ValueError, IndexError, OverflowError):
            raise InputError(f"{mapping} is not a list of classes and their characters: get it again") from None
    elif pair.name.endswith("letters"):
        known = {c: chr(ord("A") + c - 1) for c in range(1, 27)}
    else:
        return labels, ()
    numbers = sorted(known)
    if other := sorted(set(labels.tolist()) - set(numbers)):
        raise InputError(f"{pair.labels} has the label {other[0]}, which {mapping.name} does not name: get both again")
    return np.searchsorted(numbers, labels), tuple(known[number] for number in numbers)


def _stl(path: Path) -> Path | None:
    for folder in (path, path / "stl10_binary"):
        if any((folder / f"{split}_X.bin").is_file() for split in ("train", "test")):
            return folder
    return None


def detect_stl(path: Path) -> bool:
    return path.is_dir() and _stl(path) is not None


def read_stl(request: Request) -> Dataset:
    """`train_X.bin` and `train_y.bin`, `test_X.bin` and `test_y.bin`: planes of 96 x 96 stored by columns, labels
    counted from 1.

    Raises:
        InputError: sizes do not match, or images have no label.
    """
    path, split = request.path, request.split
    folder = _stl(path) or path
    images_file, labels_file = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
    if not images_file.is_file():
        raise MissingSplit(f"{folder} has no {images_file.name}: give the {split} images with --test-data")
    if not labels_file.is_file():
        raise InputError(f"there is no {labels_file}: put it beside the images")
    raw = np.fromfile(images_file, np.uint8)
    pixels = 3 * STL_SIDE * STL_SIDE
    if not raw.size or raw.size % pixels:
        raise InputError(f"{images_file} has {raw.size:,} bytes, not a multiple of {pixels:,}: get it again")
    images = raw.reshape(-1, 3, STL_SIDE, STL_SIDE).transpose(0, 3, 2, 1)
    labels = np.fromfile(labels_file, np.uint8).astype(np.int64) - 1
    names = folder / "class_names.txt"
    classes = tuple(names.read_text(encoding="utf-8").split()) if names.is_file() else STL_CLASSES
    if len(labels) != len(images):
        raise InputError(f"{labels_file} has {len(labels):,} labels for {len(images):,} images: get both again")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(f"{labels_file} has labels outside 1 to {len(classes)}: get it again")
    return Dataset(np.ascontiguousarray(images), labels, classes, path.name, split)
