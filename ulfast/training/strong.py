"""The strong augmentation of the paper's recipe: rotation, shear and scale, colour jitter, crop and flip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from .mixing import BatchHook, Step

DEGREES, SCALE, JITTER, PADDING = 10.0, (0.8, 1.2), 0.2, 4
LUMA = (0.2989, 0.587, 0.114)


def rotation(degrees: Tensor) -> Tensor:
    """(b, 2, 2): the source positions of the pixels of an image rotated anticlockwise by `degrees` (b,), as (x, y)
    about the centre, y down.
    """
    angle = torch.deg2rad(degrees)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)


def shear_and_scale(degrees: Tensor, scale: Tensor) -> Tensor:
    """(b, 2, 2), as `rotation`, for an image sheared along x by `degrees` (b,) and magnified by `scale` (b,)."""
    one, zero = torch.ones_like(scale), torch.zeros_like(scale)
    sheared = torch.stack([one, torch.deg2rad(degrees).tan(), zero, one], dim=1).view(-1, 2, 2)
    return sheared / scale[:, None, None]


def resample(x: Tensor, source: Tensor, mode: str = "nearest") -> Tensor:
    """Resamples images (b, C, H, W): a pixel is read at `source` (b, 2, 2) times its position about the centre; black
    outside the image.

    Args:
        mode: "nearest" or "bilinear".
    """
    height, width = x.shape[2:]
    # For coordinates from -1 to 1 along both sides.
    theta = source * torch.tensor([[1.0, height / width], [width / height, 1.0]])
    theta = pad(theta, (0, 1)).to(x)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x, grid, mode=mode, padding_mode="zeros", align_corners=False)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Changes brightness, contrast and saturation of images (b, C, H, W), clamped to [0, 1] after each.

    Args:
        factors: (b, 3) for brightness, contrast, saturation; 1 leaves an image unchanged.
        order: (b, 3) int64: the order of the three for each image.
    """
    luma = torch.tensor(LUMA if x.shape[1] == 3 else (1 / x.shape[1],) * x.shape[1]).to(x)[:, None, None]
    for which in order.to(x.device).unbind(1):
        gray = (x * luma).sum(1, keepdim=True)
        mean = gray.mean((2, 3), keepdim=True)
        each = which[:, None, None, None]
        far = torch.where(each == 0, torch.zeros_like(gray), torch.where(each == 1, mean, gray))
        factor = factors.to(x).gather(1, which[:, None])[:, :, None, None]
        x = (factor * x + (1 - factor) * far).clamp(0, 1)
    return x


def crop_and_flip(x: Tensor, corner: Tensor, flip: Tensor) -> Tensor:
    """Crops images (b, C, H, W) to their own size after padding by `PADDING` black pixels, then mirrors them.

    Args:
        corner: (b, 2) int64: upper and left edge of the crop, 0 to 2 * `PADDING`.
        flip: (b,) bool.
    """
    b, channels, height, width = x.shape
    rows = corner[:, :1] + torch.arange(height)
    columns = corner[:, 1:] + torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    rows, columns = rows.to(x.device)[:, None, :, None], columns.to(x.device)[:, None, None, :]
    each, of = torch.arange(b, device=x.device)[:, None, None, None], torch.arange(channels, device=x.device)
    return pad(x, (PADDING,) * 4)[each, of[:, None, None], rows, columns]


def strong_augmentation(mean: Sequence[float], std: Sequence[float]) -> BatchHook:
    """Rotation by up to 10 degrees; shear along x by up to 10 degrees and scale 0.8 to 1.2; colour jitter 0.2 in an
    order drawn for each image; crop with padding 4; flip; normalisation. Every number is drawn for each image from
    torch's CPU generator.

    Rotation and shear are two resamplings, both to the nearest pixel.

    Args:
        mean, std: of each channel, in units of [0, 1].

    Returns:
        A hook that takes pixels (b, C, H, W) float32 in units of [0, 1], which may exceed this range before the jitter.

    Source: the official code of Sandoval-Segura et al., NeurIPS 2023.
    """
    low, high = SCALE

    @torch.no_grad()
    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        draw = torch.rand(len(x), 12)
        x = resample(x, rotation(DEGREES * (2 * draw[:, 0] - 1)))
        x = resample(x, shear_and_scale(DEGREES * (2 * draw[:, 1] - 1), low + (high - low) * draw[:, 2]))
        x = jitter(x, 1 + JITTER * (2 * draw[:, 3:6] - 1), draw[:, 6:9].argsort(1))
        x = crop_and_flip(x, (draw[:, 9:11] * (2 * PADDING + 1)).long(), draw[:, 11] < 0.5)
        center, spread = (torch.tensor(tuple(v)).to(x)[:, None, None] for v in (mean, std))
        return ((x - center) / spread).contiguous(memory_format=torch.channels_last), y

    return hook
