"""Augmentation: shifts, flips and random resized crops, drawn from (seed, epoch, image number)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import ops
from ...ops.state import exact

# Item numbers of one epoch's augmentation draws start at epoch << EPOCH_BITS: room for a trillion images.
EPOCH_BITS = 40
RATIO = (3 / 4, 4 / 3)  # width over height, as torchvision's RandomResizedCrop draws it


def draw_boxes(
    n: int, area: tuple[float, float], shape: tuple[int, int], seed: int, first: int
) -> Tensor:  # (n, 4): left, top, width, height as fractions of the image
    """Boxes whose share of the image's area lies between the two values of `area`, from (seed, first + i) alone.

    Shape and position are drawn as in torchvision's RandomResizedCrop; a box that would exceed the image is cut to it,
    where torchvision draws again.
    """
    u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, first, n, 4)
    height, width = shape
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    low, high = (math.log(r) for r in RATIO)
    ratio = (low + (high - low) * u[:, 1]).exp() * height / width  # of the fractions
    w, h = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    return torch.stack([u[:, 2] * (1 - w), u[:, 3] * (1 - h), w, h], dim=1)


@exact
def resized_crop(x: Tensor, boxes: Tensor) -> Tensor:
    """Bilinear, (b, C, H, W) float -> the same shape, channels_last. A box never has more pixels than the result, so no
    smoothing is needed first.

    Args:
        boxes: (b, 4) as returned by `draw_boxes`.
    """
    left, top, w, h = boxes.to(x.device, torch.float32).unbind(1)
    zero = torch.zeros_like(w)
    theta = torch.stack([w, zero, 2 * left + w - 1, zero, h, 2 * top + h - 1], dim=1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    wide = x.float().contiguous(memory_format=torch.channels_last)
    out = torch.nn.functional.grid_sample(wide, grid, padding_mode="border", align_corners=False)
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Augment:
    """The augmentation of a training image, redrawn every epoch from (seed, epoch, image number) alone.

    Attributes:
        crop_padding: pixels of black border before a random crop of the original size; 0 for none.
        flip: mirror left-right with probability 1/2.
        area: smallest and largest share of the image's area that a random crop keeps, with an aspect ratio between 3:4
            and 4:3, before it is resized to the full size (ImageNet's usual augmentation: (0.08, 1)); None for none.
    """

    crop_padding: int = 4
    flip: bool = True
    area: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area must be two shares above 0 and at most 1, the smaller one first, got {self.area}")

    def draw(self, n: int, seed: int, epoch: int) -> tuple[Tensor | None, Tensor | None]:
        """Shifts (n, 2) int32 and flips (n,) bool of all n images in one epoch."""
        u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, epoch << EPOCH_BITS, n, 4)
        span = 2 * self.crop_padding + 1
        shift = (u[:, :2] * span).to(torch.int32) - self.crop_padding if self.crop_padding else None
        return shift, u[:, 2] < 0.5 if self.flip else None

    def boxes(self, n: int, shape: tuple[int, int], seed: int, epoch: int) -> Tensor | None:
        """Boxes (n, 4) of all n images of shape (H, W) in one epoch, as `resized_crop` takes them."""
        first = (epoch << EPOCH_BITS) + (1 << EPOCH_BITS - 1)  # distinct from those of `draw`
        return None if self.area is None else draw_boxes(n, self.area, shape, seed, first)
