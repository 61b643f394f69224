""".beton files, FFCV's format; FFCV itself is not needed. `FILE.beton` holds training images, `FILE.test.beton` test
images; a folder holds `train.beton` and `test.beton` or `val.beton`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import MissingSplit
from ...runtime.progress import Progress
from ..beton.format import open_beton
from ..beton.images import as_dataset
from ..dataset import Dataset
from ..lazy import streams
from .request import Request

TEST_NAMES = ("test", "val")


def test_file(path: Path) -> Path:
    """`FILE.test.beton` of FILE.beton."""
    return path.with_suffix(".test.beton")


def detect(path: Path) -> bool:
    return (path.is_file() and path.suffix == ".beton") or (path / "train.beton").is_file()


def read(request: Request) -> Dataset:
    """Decodes and checks every image; large sets on demand."""
    path, split, resize = request.path, request.split, request.resize
    if path.is_dir():
        names = ("train",) if split == "train" else TEST_NAMES
        file = next((path / f"{name}.beton" for name in names if (path / f"{name}.beton").is_file()), None)
        if file is None:
            raise MissingSplit(f"{path} has no {split} images ({' or '.join(names)}.beton): give them with --test-data")
    else:
        file = path if split == "train" or request.sole else test_file(path)
        if not file.is_file():
            raise MissingSplit(f"{path} has no {split} images beside it ({file.name}): give them with --test-data")
    beton = open_beton(file, label_field=request.label_field)
    for i in range(len(beton)) if request.verify else ():
        beton.check(i)
    dataset = as_dataset(beton, split=split, resize=resize)
    if (rows := request.chosen(dataset.labels)) is not None:
        dataset = dataset.subset(rows)
    if streams(len(dataset), dataset.image_shape, request.stream):
        return dataset
    return replace(dataset, images=decoded(dataset.images, request.progress))


def decoded(images: np.ndarray, progress: Progress | None) -> np.ndarray:
    """All images, in memory."""
    out = np.empty(images.shape, np.uint8)
    for begin in range(0, len(images), 4096):
        stop = min(begin + 4096, len(images))
        out[begin:stop] = images[begin:stop]
        if progress:
            progress("read", stop, len(images))
    return out
