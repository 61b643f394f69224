"""Images to one size."""

from __future__ import annotations

import numpy as np


def centre_square(image: np.ndarray, side: int) -> np.ndarray:
    """The shorter side scaled to `side` (bicubic, antialiased), then the centre `side` x `side`."""
    from PIL import Image

    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    scale = side / min(height, width)
    size = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = Image.fromarray(image.squeeze(2) if image.shape[-1] == 1 else image).resize(
        size, Image.Resampling.BICUBIC
    )
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    out = np.asarray(picture.crop((left, top, left + side, top + side)))
    return out.reshape(side, side, -1)
