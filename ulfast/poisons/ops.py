"""`ops`: the one-pixel shortcut, the same pixel of the same corner colour in every image of a class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.dataset import Dataset, chunks
from ..errors import InputError
from ..parameters import parameter
from .base import Perturb, Poison


@dataclass(frozen=True)
class OnePixelShortcut(Poison):
    """For every class the position and colour whose difference to the class's images is largest and steadiest: the mean
    of ``|colour - pixel|`` over its standard deviation, both over images and channels. A pair that an earlier class
    has used is skipped.
    """

    summary = "one pixel a class, set to a corner colour"
    source = "Wu et al., One-Pixel Shortcut, ICLR 2023"
    aliases = ("one-pixel", "one-pixel-shortcut")

    sparsity: int = parameter(1, "pixels a class", at_least=1)

    def prepare(self, dataset: Dataset, seed: int) -> Perturb:
        height, width, channels = dataset.image_shape
        if self.sparsity * dataset.num_classes > height * width * 2**channels:
            raise InputError(f"ops: {dataset.num_classes} classes have no {self.sparsity} pixels each in such images")
        places, colours = choose(*moments(dataset), self.sparsity)

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            out = images.copy().reshape(len(images), height * width, channels)
            for s in range(self.sparsity):
                out[np.arange(len(images)), places[labels, s]] = colours[labels, s]
            return out.reshape(images.shape)

        return perturb


def moments(dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images a class (c,), and the sums and sums of squares of every value (c, H*W, channels), in one pass.

    Exact whole numbers, so that ties are ties.
    """
    height, width, channels = dataset.image_shape
    shape = (dataset.num_classes, height * width * channels)
    counts, sums, squares = np.zeros(shape[0], np.int64), np.zeros(shape), np.zeros(shape)
    for begin, stop in chunks(dataset.images, 8 << 20):
        labels = dataset.labels[begin:stop]
        order = np.argsort(labels, kind="stable")
        for c in np.unique(labels):
            rows = order[np.searchsorted(labels[order], c) : np.searchsorted(labels[order], c, "right")]
            block = dataset.images[begin:stop][rows].reshape(len(rows), -1).astype(np.float32)
            # Fewer than 258 squares of a byte fit a float32 exactly; a product with ones adds 256 at a time.
            for i in range(0, len(rows), 256):
                part = block[i : i + 256]
                sums[c] += part.sum(0)
                squares[c] += np.einsum("nd,nd->d", part, part)
            counts[c] += len(rows)
    return counts, sums.reshape(shape[0], -1, channels), squares.reshape(shape[0], -1, channels)


def choose(counts: np.ndarray, sums: np.ndarray, squares: np.ndarray, sparsity: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (c, sparsity) and their colours (c, sparsity, channels) uint8, from what `moments` gives."""
    classes, _, channels = sums.shape
    corners = np.array([[(t >> (channels - 1 - c)) & 1 for c in range(channels)] for t in range(2**channels)], bool)
    places = np.zeros((classes, sparsity), np.int64)
    colours = np.zeros((classes, sparsity, channels), np.uint8)
    used: set[tuple[int, int]] = set()
    for c in range(classes):
        n, s, q = counts[c], sums[c][:, None], squares[c][:, None]  # (pixels, 1, channels)
        # |0 - x| is x, |255 - x| is 255 - x: its sums follow from those of x.
        total = np.where(corners[None], 255.0 * n - s, s).sum(2)
        square = np.where(corners[None], 255.0**2 * n - 510.0 * s + q, q).sum(2)
        mean = total / (n * channels)
        variance = np.maximum(square / (n * channels) - mean**2, 0)
        score = mean / np.maximum(np.sqrt(variance), 1e-12)  # (pixels, corners)
        taken = 0
        for flat in np.argsort(-score, axis=None, kind="stable"):
            pair = (int(flat) // len(corners), int(flat) % len(corners))
            if pair in used or pair[0] in places[c, :taken]:
                continue
            used.add(pair)
            places[c, taken], colours[c, taken] = pair[0], 255 * corners[pair[1]]
            taken += 1
            if taken == sparsity:
                break
    return places, colours
