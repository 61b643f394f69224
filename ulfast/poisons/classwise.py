"""`regions-4`, `regions-16`, `cwrandom` and `swrandom`: noise from a single random draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Perturb, Poison, Workplace

EPS = 8 / 255


def add_by_class(delta: Tensor, work: Workplace) -> Perturb:
    """Adds row `label` of delta (c, H, W, C), rounding to nearest."""
    delta = work.place(delta)

    def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return ops.apply_perturbation(work.place(images), delta, index=work.place(labels)).cpu().numpy()

    return perturb


@dataclass(frozen=True)
class Regions(Poison):
    """Class-wise blocks of constant colour; every channel is moved by + eps or - eps."""

    summary = "class-wise blocks of constant colour"
    source = "Sandoval-Segura et al., Poisons that are Learned Faster are More Effective, CVPR workshops 2022"

    blocks: int = parameter(4, "blocks along a side: 2 gives regions-4, 4 gives regions-16", at_least=1)
    eps: float = parameter(EPS, "L-infinity bound, pixels in [0, 1]", at_least=0)

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        height, width, channels = dataset.image_shape
        b = self.blocks
        u = ops.philox_uniform(seed, ops.philox.STREAM_REGIONS, 0, dataset.num_classes, b * b * channels)
        signs = torch.where(u < 0.5, -1.0, 1.0).view(-1, b, b, channels)
        rows, columns = torch.arange(height) * b // height, torch.arange(width) * b // width
        return add_by_class((self.eps * signs)[:, rows][:, :, columns].contiguous(), work)


@dataclass(frozen=True)
class ClassWiseRandom(Poison):
    """One draw of uniform noise in [-eps, eps] for each class."""

    summary = "class-wise uniform noise"
    source = "Huang et al., Unlearnable Examples, ICLR 2021 (baseline)"
    aliases = ("cw-random", "random-classwise")

    eps: float = parameter(EPS, "L-infinity bound, pixels in [0, 1]", at_least=0)

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        d = int(np.prod(dataset.image_shape))
        u = ops.philox_uniform(seed, ops.philox.STREAM_CWRANDOM, 0, dataset.num_classes, d)
        return add_by_class(((u * 2 - 1) * self.eps).view(-1, *dataset.image_shape), work)


@dataclass(frozen=True)
class SampleWiseRandom(Poison):
    """One draw of uniform noise in [-eps, eps] for each image: a control that does not poison."""

    summary = "sample-wise uniform noise (control: does not poison)"
    source = "Huang et al., Unlearnable Examples, ICLR 2021 (baseline)"
    aliases = ("sw-random", "random-samplewise")

    eps: float = parameter(EPS, "L-infinity bound, pixels in [0, 1]", at_least=0)

    @property
    def by_class(self) -> bool:
        return False

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        def draw(first: int, n: int, d: int) -> Tensor:
            u = ops.philox_uniform(seed, ops.philox.STREAM_SWRANDOM, first, n, d, device=work.noise_device)
            return (u * 2 - 1) * self.eps

        return add_by_image(draw, work)


def add_by_image(draw: Callable[[int, int, int], Tensor], work: Workplace) -> Perturb:
    """Adds row i of draw(first, n, d) to image first + i, rounding to nearest."""

    def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        delta = draw(first, len(images), int(np.prod(images.shape[1:]))).view(images.shape)
        return ops.apply_perturbation(work.place(images), delta).cpu().numpy()

    return perturb
