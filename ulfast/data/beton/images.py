"""A .beton file as a `Dataset`, its images checked and decoded on demand."""

from __future__ import annotations

from typing import cast

import numpy as np

from ...errors import InputError
from ..dataset import Dataset
from ..lazy import LazyImages
from ..resize import centre_square
from .checked import Checked
from .format import Beton


def as_dataset(beton: Beton, *, split: str = "train", resize: int | None = None) -> Dataset:
    """All images of an open file.

    Args:
        resize: side in pixels: the shorter side is scaled to it and the centre square taken.

    Raises:
        InputError: images of several sizes and no `resize`; a damaged image, when it is decoded.
    """
    shape: tuple[int, int, int] | None = beton.image_shape if resize is None else (resize, resize, 3)
    if shape is None:
        raise InputError(f"{beton.path} has images of several sizes: say --resize S")
    gray = list(beton.about.get("image_shape", ()))[2:] == [1]  # stored as three equal channels
    shape = (*shape[:2], 1) if gray else shape
    checked = Checked(beton)

    def decode(i: int, out: np.ndarray) -> None:
        if beton.crc is not None:  # without one, decoding is the check
            checked.need(np.array([i]))
        image = beton.decode(i)
        if gray and (image != image[..., :1]).any():
            raise InputError(f"{beton.path}: image {i} has colours and its manifest says that none has: write it again")
        out[:] = (image if resize is None else centre_square(image, resize))[..., : out.shape[2]]

    images = cast(np.ndarray, LazyImages((len(beton), *shape), decode))
    classes = tuple(beton.about.get("classes") or map(str, range(int(beton.labels.max()) + 1)))
    name, manifest = beton.about.get("name") or beton.path.stem, beton.about.get("manifest", {})
    return Dataset(images, beton.labels, classes, name, split, manifest)
