"""CIFAR-10 and CIFAR-100 as their authors distribute them: python pickles and binary records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ..dataset import Dataset
from .request import Request
from .restricted import load_pickle

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
# Subfolder, training files, test files, label field; for binaries, the number of label bytes before the pixels.
PYTHON = [
    ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], b"labels"),
    ("cifar-100-python", ["train"], ["test"], b"fine_labels"),
]
BINARY = [
    ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"], 1),
    ("cifar-100-binary", ["train.bin"], ["test.bin"], 2),
]


def _find(path: Path, layouts: list[tuple[str, list[str], list[str], Any]]) -> tuple[Path, tuple[Any, ...]] | None:
    for layout in layouts:
        for folder in (path, path / layout[0]):
            if all((folder / name).is_file() for name in layout[1]) and (folder / layout[2][0]).is_file():
                return folder, layout
    return None


def detect_python(path: Path) -> bool:
    return _find(path, PYTHON) is not None


def detect_binary(path: Path) -> bool:
    return _find(path, BINARY) is not None


def _missing(path: Path) -> InputError:
    return InputError(f"{path} does not hold all CIFAR batches: unpack the official archive again")


def _planes(data: np.ndarray) -> np.ndarray:
    """(n, 3072) channel planes to (n, 32, 32, 3)."""
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read_python(request: Request) -> Dataset:
    """Reads batches of `data` (n, 3072) uint8 and `labels` or `fine_labels`."""
    path, split = request.path, request.split
    found = _find(path, PYTHON)
    if found is None:
        raise _missing(path)
    folder, (_, train, test, field) = found
    images, labels = [], []
    for name in train if split == "train" else test:
        batch = _bytes_keys(load_pickle(folder / name))
        data = batch.get(b"data")
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS:
            raise InputError(f"{folder / name} has no uint8 array `data` of {PIXELS} columns: get the file again")
        if field not in batch or len(batch[field]) != len(data):
            raise InputError(f"{folder / name} has no label for each image in `{field.decode()}`: get the file again")
        images.append(_planes(data))
        labels.append(np.asarray(batch[field], dtype=np.int64))
    return Dataset(np.concatenate(images), np.concatenate(labels), _names(folder, field), path.name, split)


def _bytes_keys(content: Any) -> dict[Any, Any]:
    """Restores the keys of the official files: in files saved again by Python 3 they are text."""
    if not isinstance(content, dict):
        return {}
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def _names(folder: Path, field: bytes) -> tuple[str, ...]:
    if field == b"labels":
        return CIFAR10_CLASSES
    meta = _bytes_keys(load_pickle(folder / "meta")) if (folder / "meta").is_file() else {}
    names = meta.get(b"fine_label_names", [str(i).encode() for i in range(100)])
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def read_binary(request: Request) -> Dataset:
    """Reads records of one or two label bytes (the last one is the class) and 3,072 pixels."""
    path, split = request.path, request.split
    found = _find(path, BINARY)
    if found is None:
        raise _missing(path)
    folder, (_, train, test, label_bytes) = found
    records = []
    for name in train if split == "train" else test:
        raw = np.fromfile(folder / name, np.uint8)
        if not raw.size or raw.size % (label_bytes + PIXELS):
            raise InputError(
                f"{folder / name} has {raw.size} bytes, not a multiple of {label_bytes + PIXELS}: get the file again"
            )
        records.append(raw.reshape(-1, label_bytes + PIXELS))
    table = np.concatenate(records)
    classes: tuple[str, ...] = CIFAR10_CLASSES
    if label_bytes == 2:
        text = folder / "fine_label_names.txt"
        classes = tuple(text.read_text().split()) if text.is_file() else tuple(map(str, range(100)))
    labels = table[:, label_bytes - 1].astype(np.int64)
    return Dataset(_planes(table[:, label_bytes:]), labels, classes, path.name, split)
