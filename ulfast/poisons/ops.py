"""`ops`: the one-pixel shortcut, which sets the same pixel to the same corner colour in every image of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.class_moments import ClassMoments, class_moments
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .base import Perturb, Poison, Workplace


@dataclass(frozen=True)
class OnePixelShortcut(Poison):
    """Chooses for every class the position and colour that differ most and most consistently from the class's images:
    the largest mean of ``|colour - pixel|`` over its standard deviation, both over images and channels. A pair used by
    an earlier class is skipped.
    """

    summary = "one pixel per class, set to a corner colour"
    source = "Wu et al., One-Pixel Shortcut, ICLR 2023"
    aliases = ("one-pixel", "one-pixel-shortcut")

    sparsity: int = parameter(1, "pixels per class", at_least=1)

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        height, width, channels = dataset.image_shape
        if self.sparsity * dataset.num_classes > height * width * 2**channels:
            raise InputError(f"ops: {dataset.num_classes} classes have no {self.sparsity} pixels each in such images")
        places, colours = choose(class_moments(dataset, squares=True, device=work.noise_device), self.sparsity)

        # Always on the CPU: setting the pixels is faster than copying an image.
        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            out = images.copy().reshape(len(images), height * width, channels)
            for s in range(self.sparsity):
                out[np.arange(len(images)), places[labels, s]] = colours[labels, s]
            return out.reshape(images.shape)

        return perturb


def choose(moments: ClassMoments, sparsity: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (c, sparsity) and their colours (c, sparsity, channels) uint8; the squares are needed."""
    assert moments.squares is not None
    counts = moments.counts.numpy()
    sums, squares = (total.flatten(1, 2).double().numpy() for total in (moments.sums, moments.squares))
    classes, _, channels = sums.shape
    corners = np.array([[(t >> (channels - 1 - c)) & 1 for c in range(channels)] for t in range(2**channels)], bool)
    bright = corners.T.astype(np.float64)  # (channels, corners): 1 where the colour has 255
    places = np.zeros((classes, sparsity), np.int64)
    colours = np.zeros((classes, sparsity, channels), np.uint8)
    used: set[tuple[int, int]] = set()
    for c in range(classes):
        n, s, q = counts[c], sums[c], squares[c]  # (pixels, channels)
        # |0 - x| is x and |255 - x| is 255 - x, so the sums follow from those of x. Integers below 2^53, so exact.
        total = s @ (1 - 2 * bright) + 255.0 * n * bright.sum(0)
        square = q.sum(1)[:, None] - 510.0 * (s @ bright) + 255.0**2 * n * bright.sum(0)
        mean = total / (n * channels)
        variance = np.maximum(square / (n * channels) - mean**2, 0)
        score = mean / np.maximum(np.sqrt(variance), 1e-12)  # (pixels, corners)
        taken = 0
        while taken < sparsity:
            flat = int(score.argmax())  # the first of equals
            score.flat[flat] = -np.inf
            pair = (flat // len(corners), flat % len(corners))
            if pair in used or pair[0] in places[c, :taken]:
                continue
            used.add(pair)
            places[c, taken], colours[c, taken] = pair[0], 255 * corners[pair[1]]
            taken += 1
    return places, colours
