""".beton files, FFCV's format; FFCV itself is not needed. `FILE.beton` holds training images, `FILE.test.beton` test
images; a folder holds `train.beton` and `test.beton` or `val.beton`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..beton.checked import Checked
from ..beton.format import open_beton
from ..dataset import Dataset
from ..lazy import LazyImages, streams
from .imagefolder import centre_square

TEST_NAMES = ("test", "val")


def test_file(path: Path) -> Path:
    """`FILE.test.beton` of FILE.beton."""
    return path.with_suffix(".test.beton")


def detect(path: Path) -> bool:
    return (path.is_file() and path.suffix == ".beton") or (path / "train.beton").is_file()


def read(
    path: Path, split: str, *, sole: bool, resize: int | None, progress: Callable[..., None] | None,
    stream: bool | None = None,
) -> Dataset:  # fmt: skip
    """Decodes the images, each checked; large sets on demand."""
    if path.is_dir():
        names = ("train",) if split == "train" else TEST_NAMES
        file = next((path / f"{name}.beton" for name in names if (path / f"{name}.beton").is_file()), None)
        if file is None:
            raise InputError(f"{path} has no {split} images ({' or '.join(names)}.beton): give them with --test-data")
    else:
        file = path if split == "train" or sole else test_file(path)
        if not file.is_file():
            raise InputError(f"{path} has no {split} images beside it ({file.name}): give them with --test-data")
    beton = open_beton(file)
    shape = beton.image_shape if resize is None else (resize, resize, 3)
    if shape is None:
        raise InputError(f"{file} has images of several sizes: say --resize S")
    checked = Checked(beton)

    def decode(i: int, out: np.ndarray) -> None:
        if beton.crc is not None:  # without one, decoding is the check
            checked.need(np.array([i]))
        image = beton.decode(i)
        out[:] = image if resize is None else centre_square(image, resize)

    images = LazyImages((len(beton), *shape), decode)
    classes = tuple(beton.about.get("classes") or map(str, range(int(beton.labels.max()) + 1)))
    name, manifest = beton.about.get("name") or file.stem, beton.about.get("manifest", {})
    held = images if streams(len(beton), shape, stream) else decoded(images, progress)
    return Dataset(held, beton.labels, classes, name, split, manifest)  # type: ignore[arg-type]


def decoded(images: LazyImages, progress: Callable[..., None] | None) -> np.ndarray:
    """All of them in memory."""
    out = np.empty(images.shape, np.uint8)
    for begin in range(0, len(images), 4096):
        stop = min(begin + 4096, len(images))
        out[begin:stop] = images[begin:stop]
        if progress:
            progress("read", stop, len(images))
    return out
