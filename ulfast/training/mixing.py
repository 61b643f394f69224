"""Augmentations of a whole batch in a training step: Cutout, MixUp, CutMix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """The state of the training that hooks may use.

    Attributes:
        model: the network at this step.
        epoch: counted from 0.
        mean, std: (C,) float32, the normalisation applied to the batch.
        half: dtype of autocast, or None.
    """

    model: nn.Module
    epoch: int
    mean: Tensor
    std: Tensor
    half: torch.dtype | None = None

    def pixels(self, x: Tensor) -> Tensor:
        """Converts a normalised batch to float32 in units of [0, 1]."""
        return x.float() * self.std[:, None, None] + self.mean[:, None, None]

    def normalised(self, x: Tensor) -> Tensor:
        """Normalises pixels in [0, 1] for the network, channels_last."""
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)


# (x (b, C, H, W) normalised, y (b,) or (b, c), step) -> the same, y as class probabilities if images were mixed. Random
# numbers come from torch's global generators, which the loop seeds at the start of every epoch.
BatchHook = Callable[[Tensor, Tensor, Step], tuple[Tensor, Tensor]]


def _soft(y: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(y, classes).float() if y.dim() == 1 else y


def _beta(a: float) -> float:
    return float(torch.distributions.Beta(a, a).sample()) if a > 0 else 1.0


def cutmix(classes: int, probability: float = 0.5, beta: float = 1.0) -> BatchHook:
    """Replaces a rectangle of every image by that of another in the batch; labels are mixed by area (Yun et al., ICCV
    2019).

    The rectangle is symmetric about its centre, so its sides are even, as published, unless the border clips them.
    """

    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        if float(torch.rand(())) >= probability:
            return x, y
        keep = _beta(beta)
        height, width = x.shape[2:]
        cut = (1 - keep) ** 0.5
        cy, cx = int(torch.randint(height, ())), int(torch.randint(width, ()))
        reach = int(height * cut) // 2, int(width * cut) // 2
        top, bottom = max(0, cy - reach[0]), min(height, cy + reach[0])
        left, right = max(0, cx - reach[1]), min(width, cx + reach[1])
        order = torch.randperm(len(x)).to(x.device)
        mixed = x.clone()
        mixed[:, :, top:bottom, left:right] = x[order, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
        target = _soft(y, classes)
        return mixed, share * target + (1 - share) * target[order]

    return hook


def cutout(length: int) -> BatchHook:
    """Blackens a square of side `length` at a position drawn for each image; it may extend over the border (DeVries and
    Taylor, 2017).
    """

    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        n, _, height, width = x.shape
        top = (torch.randint(height, (n, 1)) - length // 2).to(x.device)
        left = (torch.randint(width, (n, 1)) - length // 2).to(x.device)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        inside = ((rows >= top) & (rows < top + length))[:, None, :, None]
        inside = inside & ((columns >= left) & (columns < left + length))[:, None, None, :]
        black = (-step.mean / step.std).to(x.dtype)[:, None, None]
        return torch.where(inside, black, x), y

    return hook


def mixup(classes: int, alpha: float = 1.0) -> BatchHook:
    """Blends every image and its label with another (Zhang et al., ICLR 2018)."""

    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        keep = _beta(alpha)
        order = torch.randperm(len(x)).to(x.device)
        target = _soft(y, classes)
        return keep * x + (1 - keep) * x[order], keep * target + (1 - keep) * target[order]

    return hook
