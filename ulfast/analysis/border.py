"""Detects the trace of a convolution at an image's border: every side is darker than the pixels next to it.

A zero-padded convolution with positive weights gives border pixels less light than all others, by the weights that fall
outside. Photographs do not show this on all four sides at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset, balanced_indices
from ..projection.deconvolution import LEVEL, brightness

# A side counts as darker below the first ratio to the pixels next to it; a frame of black pixels, which is not a
# shadow, is below the second.
DARKER, FRAME = 0.95, 0.05
# A set counts as clean below the first share of images and as poisoned from the second on: photographs reach 0.031.
BORDER = (0.05, 0.08)
MOST = 20_000  # images examined
CHUNK_BYTES = 16 << 20
WIDEST = 8  # the shorter side is at least this many times the border


@dataclass(frozen=True)
class Border:
    """Images with a dark border.

    Attributes:
        share: share of the examined images.
        images: their indices, in ascending order.
        width: width of the border in pixels, 0 if no image has one.
    """

    share: float
    images: np.ndarray
    width: int


def dark_border(dataset: Dataset, seed: int = 0) -> Border:
    """Looks for images whose four sides are each darker than the pixels next to them.

    Args:
        dataset: images with labels, of which at most `MOST` are examined, the same share of each class. Images with a
            side below 2 `WIDEST` pixels count as having none.
        seed: draws them.
    """
    count = max(dataset.num_classes, min(len(dataset), MOST))
    rows = balanced_indices(dataset.labels, dataset.num_classes, count, seed)
    widest = min(dataset.image_shape[:2]) // WIDEST
    if widest < 2:
        return Border(0.0, rows[:0], 0)
    steps = np.empty((len(rows), widest + 1), np.float32)
    at_once = max(1, CHUNK_BYTES // int(np.prod(dataset.image_shape)))
    for begin in range(0, len(rows), at_once):
        light = brightness(dataset.images[rows[begin : begin + at_once]])
        for k in range(widest + 1):
            steps[begin : begin + at_once, k] = _step(light, k)
    # A shadow ends: an image that grows lighter all the way in is a bright object on a dark ground, such as a digit.
    widths = np.cumprod((steps < DARKER) & (steps > FRAME), axis=1).sum(1)
    marked = (widths > 0) & (widths <= widest)
    return Border(float(marked.mean()), rows[marked], int(np.median(widths[marked])) if marked.any() else 0)


def _step(light: np.ndarray, k: int) -> np.ndarray:
    """For each image (n, H, W), the largest of four ratios: the mean of a side, k pixels in, over that of the pixels
    next to it.
    """
    inner = light[:, k : light.shape[1] - k, k : light.shape[2] - k]
    sides = [(inner[:, i], inner[:, j]) for i, j in ((0, 1), (-1, -2))]
    sides += [(inner[:, :, i], inner[:, :, j]) for i, j in ((0, 1), (-1, -2))]
    return np.max([(outer.mean(1) + LEVEL) / (next_.mean(1) + LEVEL) for outer, next_ in sides], axis=0)
