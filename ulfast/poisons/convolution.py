"""`cuda`: every image of a class convolved with the class's own blurring filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import ops
from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Perturb, Poison, Workplace

LARGE = 96  # from this size on, the filters published for ImageNet are used


@dataclass(frozen=True)
class ConvolutionPoison(Poison):
    """Multiplicative and class-wise: a filter of U(0, blur) weights with one random entry 1, the same for all channels;
    the result is divided by its largest value and clipped.
    """

    summary = "class-wise convolution"
    source = "Sadasivan et al., CUDA: Convolution-based Unlearnable Datasets, CVPR 2023"
    aliases = ("convolution",)

    blur: float | None = parameter(None, "largest weight (default 0.3, from 96 px on 0.06)", at_least=0)
    size: int | None = parameter(None, "side of the filter (default 3, from 96 px on 9)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        large = min(dataset.image_shape[:2]) >= LARGE
        return {
            "blur": (0.06 if large else 0.3) if self.blur is None else self.blur,
            "size": (9 if large else 3) if self.size is None else self.size,
        }

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        values = self.resolved(dataset)
        side = values["size"]
        u = ops.philox_uniform(seed, ops.philox.STREAM_CUDA, 0, dataset.num_classes, side * side + 1)
        kernels = u[:, :-1] * values["blur"]
        one = (u[:, -1] * side * side).long().clamp_max(side * side - 1)
        kernels[torch.arange(len(kernels)), one] = 1.0
        kernels = work.place(kernels.view(-1, side, side))

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            return ops.perturb_convolution(work.place(images), work.place(labels), kernels).cpu().numpy()

        return perturb
