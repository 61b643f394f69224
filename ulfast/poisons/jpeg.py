"""JPEG as a function of tensors, with a gradient that knows where rounding moves."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

# Quantisation tables of the standard (Annex K) at quality 50.
LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
COLOUR = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99),
    *(99,) * 32,
)
# JFIF's luma and colour differences.
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
EVERYWHERE = 0.3


def through_jpeg(x: Tensor, quality: int, everywhere: float = EVERYWHERE) -> Tensor:
    """What is left of images after JPEG at a quality, with colour at half the resolution; libjpeg's tables and scaling.

    Coefficients are rounded. The derivative of rounding c to r is taken as a + (1 - a) 12 (c - r)²: 1 on average, and
    largest halfway between two steps, where a small change moves the coefficient by a whole one.
    docs/research/adaptive.md compares it with a derivative of 1 everywhere.

    Args:
        x: (b, C, H, W) float32, pixels in [0, 1]; 3 channels are RGB, others are compressed each by itself.
        quality: 1 to 100.
        everywhere: a, in [0, 1]; 1 is the straight-through estimator.

    Returns:
        The like of x, without the last rounding to levels. Pillow's bytes, with libjpeg's integer arithmetic, differ by
        less than a level on average.
    """
    if x.shape[1] != 3:
        return (_plane(x * 255 - 128, LUMA, quality, everywhere) + 128).clamp(0, 255) / 255
    height, width = x.shape[2:]
    to = torch.tensor(YCC, dtype=x.dtype, device=x.device)
    ycc = torch.einsum("ck,bkhw->bchw", to, x * 255)
    ycc = ycc + (ycc.round() - ycc).detach()
    ycc = nn.functional.pad(ycc, (0, width % 2, 0, height % 2), mode="replicate")
    light = _plane(ycc[:, :1] - 128, LUMA, quality, everywhere) + 128
    colour = _plane(nn.functional.avg_pool2d(ycc[:, 1:], 2), COLOUR, quality, everywhere)
    colour = nn.functional.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ck,bkhw->bchw", torch.linalg.inv(to), torch.cat([light, colour], 1))
    return rgb[..., :height, :width].clamp(0, 255) / 255


def _plane(x: Tensor, table: tuple[int, ...], quality: int, everywhere: float) -> Tensor:
    """(b, C, H, W) levels around zero, quantised in blocks of 8 x 8."""
    b, channels, height, width = x.shape
    x = nn.functional.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    down, across = x.shape[2] // 8, x.shape[3] // 8
    blocks = x.view(b, channels, down, 8, across, 8).transpose(3, 4)
    dct, steps = _cosines().to(x), _steps(table, quality).to(x)
    blocks = dct.T @ (_rounded(dct @ blocks @ dct.T / steps, everywhere) * steps) @ dct
    return blocks.transpose(3, 4).reshape(x.shape)[..., :height, :width]


def _rounded(c: Tensor, everywhere: float) -> Tensor:
    with torch.no_grad():
        r = c.round()
        slope = everywhere + (1 - everywhere) * 12 * (c - r) ** 2
    return r + (c - c.detach()) * slope


@functools.cache
def _steps(table: tuple[int, ...], quality: int) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(table).view(8, 8) * scale + 50) // 100).clamp(1, 255)


@functools.cache
def _cosines() -> Tensor:
    """(8, 8) float64: the orthonormal DCT, one frequency per row."""
    k = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos(math.pi * (2 * k + 1) * k[:, None] / 16) / 2
    cosines[0] /= math.sqrt(2)
    return cosines
