"""The sample of CIFAR-10 in the package."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from ..dataset import Dataset

SIDE = 32


@lru_cache(maxsize=2)
def read(split: str) -> Dataset:
    """The embedded training split (5,000 images) or test split (1,000)."""
    folder = files("ulfast.data") / "sample"
    about = json.loads((folder / "labels.json").read_text())
    with (folder / f"{split}.webp").open("rb") as file, Image.open(file) as picture:
        mosaic = np.asarray(picture.convert("RGB"))
    columns = about[split]["columns"]
    grid = mosaic.reshape(-1, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
    images = np.ascontiguousarray(grid.reshape(-1, SIDE, SIDE, 3))
    images.setflags(write=False)  # shared by every caller
    return Dataset(images, np.array(about[split]["labels"]), tuple(about["classes"]), "sample", split)
