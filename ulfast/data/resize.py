"""Resizing images to one size, and the largest size that is decoded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import InputError

MAX_PIXELS = 89_478_485  # Pillow's bound against decompression bombs: 268 MB of RGB


def max_pixels() -> int:
    """The most pixels of an image that is decoded; ULFAST_MAX_PIXELS sets another number.

    Raises:
        InputError: it is not a number.
    """
    text = os.environ.get("ULFAST_MAX_PIXELS", str(MAX_PIXELS))
    if not (text.isascii() and text.isdecimal()):
        raise InputError(f"ULFAST_MAX_PIXELS is {text!r}: give a number of pixels")
    return int(text)


def check_size(file: Path | str, width: int, height: int) -> None:
    """Raises InputError for an image declared larger than `max_pixels`, before memory is allocated."""
    if width * height > (most := max_pixels()):
        raise InputError(
            f"{file} declares {width} x {height} pixels, more than {most:,}: make it smaller, or set ULFAST_MAX_PIXELS"
        )


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """Scales the shorter side to `side` (bicubic, antialiased), then takes the centre `side` x `side`.

    torch's kernel gives the same bytes at every CPU level, and those of torchvision's `Resize` for a uint8 tensor.
    Pillow's differs in one value of 250 and takes four times as long, which is twice as long as decoding a JPEG.

    Args:
        image: (H, W, C) uint8.

    Returns:
        (side, side, C) uint8.
    """
    import torch
    from torch.nn import functional as F

    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    tall, wide = max(side, round(height * scale)), max(side, round(width * scale))
    if tall * wide > max_pixels():
        raise InputError(f"an image of {width} x {height} is too narrow for --resize {side}: leave it out")
    x = torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)[None]
    x = F.interpolate(x, (tall, wide), mode="bicubic", antialias=True, align_corners=False)[0]
    top, left = (tall - side) // 2, (wide - side) // 2
    return np.ascontiguousarray(x[:, top : top + side, left : left + side].permute(1, 2, 0).numpy())
