"""`file`: a given perturbation, one per image or one per class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..data.dataset import Dataset
from ..data.readers.published import OWN, ROUNDINGS, apply_entries, check_export, detect_layout, read_entries
from ..errors import InputError
from ..parameters import parameter
from ..runtime.made import expand
from .base import Perturb, Poison, Workplace


@dataclass(frozen=True)
class FilePoison(Poison):
    """Adds the perturbations for this data set from a .pt, .safetensors, .npy, .npz or .pkl file.

    Pixels are rounded to the nearest level. `ulfast data import` truncates, as the published programs do.
    """

    summary = "a perturbation from a file, one per image or one per class"
    source = "yours"

    path: str | None = parameter(None, "the file: floats in [-1, 1] or int8 levels, NCHW or NHWC")
    scale: float = parameter(1.0, "factor on the perturbation")
    rounding: str = parameter("nearest", "rounding of the sums to pixels: nearest or truncate", choices=ROUNDINGS)

    @property
    def by_class(self) -> bool:
        return False

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if not self.path:
            raise InputError("poison file needs a file: give --set path=FILE")
        path = expand(self.path)
        layout = detect_layout(path)
        if layout in ("png-index", "images-pt", *OWN):
            raise InputError(f"{path} holds images, not a perturbation: take `ulfast data import`")
        check_export(path, dataset)
        entries = read_entries(path, layout, dataset)
        if entries.kind != "perturbation":
            raise InputError(f"{path} holds images, not a perturbation: take `ulfast data import`")
        entries = replace(entries, values=entries.values * np.float32(self.scale))
        return lambda first, images, labels: apply_entries(entries, images, first, self.rounding)
