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
    """Scales the shorter side to `side` (bicubic, antialiased), then takes the centre `side` x `side`."""
    from PIL import Image

    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    if size[0] * size[1] > max_pixels():
        raise InputError(f"an image of {width} x {height} is too narrow for --resize {side}: leave it out")
    picture = Image.fromarray(image.squeeze(2) if image.shape[-1] == 1 else image).resize(
        size, Image.Resampling.BICUBIC
    )
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    out = np.asarray(picture.crop((left, top, left + side, top + side)))
    return out.reshape(side, side, -1)
