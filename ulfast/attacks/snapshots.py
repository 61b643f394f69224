"""A few images of a run as the network saw them, for reports."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.dataset import Dataset
from ..data.readers.arrays import check_sizes, open_arrays
from ..data.tensors import as_tensor
from ..runtime.files import atomic_file
from ..runtime.reading import reading
from .base import Plan

COUNT = 10  # one image of each of the first classes


@dataclass(frozen=True)
class Examples:
    """Versions (k, H, W, C) uint8 of the same k training images.

    Attributes:
        given: as the attacker received them.
        learned: as the attack left them, with one draw of its noise (values are clipped at black and white).
        clean: the clean images, or None if unknown.
        classes: names of their classes.
    """

    given: np.ndarray
    learned: np.ndarray
    clean: np.ndarray | None
    classes: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes an .npz file, atomically."""
        clean = {} if self.clean is None else {"clean": self.clean}
        with atomic_file(path) as part, part.open("wb") as file:
            np.savez_compressed(
                file,
                given=self.given,
                learned=self.learned,
                classes=np.array(self.classes),
                **clean,  # type: ignore[arg-type]
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Examples:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is damaged.
        """
        path = Path(path)
        with reading(path, "delete it"), open_arrays(path) as file:
            check_sizes(path)
            given, learned = file["given"], file["learned"]
            clean = file.get("clean")
            for images in (given, learned, given if clean is None else clean):
                if images.dtype != np.uint8 or images.ndim != 4 or images.shape != given.shape:
                    raise ValueError(f"images of shape {images.shape} and type {images.dtype}")
            return cls(given, learned, clean, tuple(str(name) for name in file["classes"]))


def examples(given: Dataset, clean: Dataset | None, plan: Plan) -> Examples:
    """The first image of each of the first classes, before and after a plan's changes.

    Args:
        given: training images before the plan changed them.
        clean: the same images before they were poisoned, in the same order; others are left out.
    """
    rows = [int(np.flatnonzero(given.labels == c)[0]) for c in np.unique(given.labels)[:COUNT]]
    same = clean is not None and clean.images.shape == given.images.shape and np.array_equal(clean.labels, given.labels)
    labels = as_tensor(plan.train.labels[rows])
    removal = plan.removal.to(torch.device("cpu"))
    x = removal.apply(as_tensor(plan.train.images[rows]), labels, seed=0)
    learned = (x.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Examples(
        np.ascontiguousarray(given.images[rows]),
        learned,
        np.ascontiguousarray(clean.images[rows]) if same and clean is not None else None,
        tuple(given.classes[int(given.labels[i])] for i in rows),
    )
