"""Random resized crops: a part of the image, blown up to the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops

RATIO = (3 / 4, 4 / 3)  # width over height, as torchvision's RandomResizedCrop draws it


def draw_boxes(
    n: int, area: tuple[float, float], shape: tuple[int, int], seed: int, first: int
) -> Tensor:  # (n, 4): left, top, width, height as shares of the image
    """Boxes of a share of the image's area between the two of `area`, from (seed, first + i) alone.

    Shape and place are drawn as torchvision's RandomResizedCrop does; a box that would be longer than the image is cut
    to it, where torchvision draws once more.
    """
    u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, first, n, 4)
    height, width = shape
    share = area[0] + (area[1] - area[0]) * u[:, 0]
    low, high = (math.log(r) for r in RATIO)
    ratio = (low + (high - low) * u[:, 1]).exp() * height / width  # of the shares
    w, h = (share * ratio).sqrt().clamp(max=1), (share / ratio).sqrt().clamp(max=1)
    return torch.stack([u[:, 2] * (1 - w), u[:, 3] * (1 - h), w, h], dim=1)


def resized_crop(x: Tensor, boxes: Tensor) -> Tensor:
    """Bilinear, (b, C, H, W) float -> the same shape, channels_last. A box never has more pixels than the result, so
    nothing has to be smoothed before.

    Args:
        boxes: (b, 4) as `draw_boxes` gives them.
    """
    left, top, w, h = boxes.to(x.device, torch.float32).unbind(1)
    zero = torch.zeros_like(w)
    theta = torch.stack([w, zero, 2 * left + w - 1, zero, h, 2 * top + h - 1], dim=1).view(-1, 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    wide = x.float().contiguous(memory_format=torch.channels_last)
    out = torch.nn.functional.grid_sample(wide, grid, padding_mode="border", align_corners=False)
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)
