"""What the mean image of a class has beyond that of photographs of one class, frequency by frequency."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.fft import dctn, idctn

from ..data.class_moments import class_moments
from ..data.dataset import Dataset
from ..ops.state import ordinary
from ..runtime.progress import Progress

# Of photographs, the variance of the class means over that of images of one class is at most NATURAL / (j + KNEE) at
# the coefficient that varies j-th most; docs/research/centring.md measures it.
NATURAL, KNEE = 1.0, 4.0
# The measured ratios are averaged over coefficients of similar rank: this share of the rank to both sides, at least 1.
WINDOW = 0.1
LOOKED = 10_000  # images whose variance is measured
CHUNK_BYTES = 16 << 20
TINY = 1e-12  # variance of a coefficient below which images do not differ in it


@dataclass(frozen=True)
class ClassPatterns:
    """What to subtract from the images of each class.

    Attributes:
        patterns: (c, H, W, C) float32 in units of [0, 1]; zero for a class without images.
        metadata: facts about the fit: `norm`, the mean L2 norm of the patterns; `share`, of the energy of the class
            means' differences that they hold.
    """

    patterns: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    def undo(self, dataset: Dataset, index: np.ndarray) -> np.ndarray:
        """The images (b, H, W, C) uint8 at `index` (b,) without their classes' patterns, rounded and clipped."""
        images = np.asarray(dataset.images[index]).astype(np.float32)
        images -= 255 * self.patterns[dataset.labels[index]]
        return np.clip(np.rint(images), 0, 255).astype(np.uint8)


@ordinary
def fit_class_patterns(dataset: Dataset, seed: int = 0, *, progress: Progress | None = None) -> ClassPatterns:
    """The part of each class's mean image that photographs do not account for.

    Colours are rotated to their principal axes and images transformed by the cosine transform (DCT-II). In each
    coefficient the class means differ by B times the variance within a class. Photographs explain
    ``NATURAL / (j + KNEE)``, with the coefficients ordered by their variance, and that images are few explains 1 / m
    for a class of m. The rest is a pattern, and this share of the class mean's difference to the mean of all classes is
    returned (a Wiener filter): at fine detail nearly all of it if there is a pattern, at coarse structure next to
    nothing.

    Args:
        dataset: uint8 images (n, H, W, C) with labels, streamed once; LOOKED of them once more.
        seed: draws the images whose variance is measured.
        progress: called as ``progress("class means", done, total)``.

    Returns:
        The patterns; all zero for a single class.
    """
    report = functools.partial(progress, "class means") if progress else None
    moments = class_moments(dataset, progress=report)
    counts, shape = moments.counts.numpy(), dataset.image_shape
    there = counts > 0
    patterns = np.zeros((len(counts), *shape), np.float32)
    if there.sum() < 2:
        return ClassPatterns(patterns, {"norm": 0.0, "share": 0.0})
    means = np.nan_to_num(moments.means().numpy()).reshape(-1, *shape)
    axes, within = _within(dataset, means, seed)
    differences = _transform(means - means[there].mean(0), axes)[there]
    classes = len(differences)
    ratios = (differences**2).mean(0) * (classes / (classes - 1)) / np.maximum(within, TINY)
    order = np.argsort(-within, axis=None, kind="stable")
    rank = np.arange(len(order))
    natural, noise = NATURAL / (rank + KNEE), 1 / counts[there]
    pattern = np.maximum(_smoothed(ratios.ravel()[order], rank) - natural - noise.mean(), 0)
    for row, c in enumerate(np.flatnonzero(there)):
        share = np.empty(len(order))
        share[order] = pattern / (pattern + natural + noise[row])
        patterns[c] = _back(differences[row] * share.reshape(shape), axes)
    energy = float((differences**2).sum())
    facts = {
        "norm": float(np.sqrt((patterns[there] ** 2).sum((1, 2, 3))).mean()),
        "share": float((patterns.astype(np.float64) ** 2).sum()) / energy if energy else 0.0,
    }
    return ClassPatterns(patterns, facts)


def _within(dataset: Dataset, means: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The principal axes of the colours, (C, C), and the variance (H, W, C) of the coefficients within a class."""
    n, channels = len(dataset), dataset.image_shape[2]
    chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(n)[:LOOKED])
    blocks = _blocks(dataset, chosen)
    colours = np.zeros((channels, channels))
    for index in blocks:
        x = _centred(dataset, means, index).reshape(-1, channels)
        colours += x.T @ x
    axes = np.linalg.eigh(colours)[1]
    squares = np.zeros(dataset.image_shape)
    for index in blocks:
        squares += (_transform(_centred(dataset, means, index), axes) ** 2).sum(0, dtype=np.float64)
    # Images were compared with the mean of their own class, which lies nearer to them than the true one.
    degrees = len(chosen) * (1 - len(np.unique(dataset.labels)) / n) if n else 1
    return axes, squares / max(degrees, 1)


def _blocks(dataset: Dataset, chosen: np.ndarray) -> list[np.ndarray]:
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(dataset.image_shape))))
    return np.array_split(chosen, -(-len(chosen) // size))


def _centred(dataset: Dataset, means: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.asarray(dataset.images[index]) / 255 - means[dataset.labels[index]]


def _transform(images: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return dctn(images @ axes, axes=(1, 2), norm="ortho")  # type: ignore[no-any-return]


def _back(coefficients: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return idctn(coefficients, axes=(0, 1), norm="ortho") @ axes.T  # type: ignore[no-any-return]


def _smoothed(values: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Means over a window around each rank that grows with it."""
    sums = np.concatenate([[0.0], values.cumsum()])
    reach = np.maximum(1, (WINDOW * rank).astype(int))
    low, high = np.maximum(rank - reach, 0), np.minimum(rank + reach + 1, len(rank))
    return (sums[high] - sums[low]) / (high - low)  # type: ignore[no-any-return]
