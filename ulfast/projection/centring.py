"""What the mean image of a class has beyond that of photographs of one class, frequency by frequency."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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


class Ratios(NamedTuple):
    """How the class means of a data set differ, coefficient by coefficient.

    Attributes:
        present: (k,) int64, the classes that have images.
        counts: (k,) their numbers of images.
        axes: (C, C) float64, the principal axes of the colours, as columns.
        order: (H * W * C,) int64, the coefficients by their variance within a class, the largest first.
        ratios: (H * W * C,) float64, in that order: the variance of the class means over the variance within a class.
    """

    present: np.ndarray
    counts: np.ndarray
    axes: np.ndarray
    order: np.ndarray
    ratios: np.ndarray


class _Means:
    """The mean images of the classes in units of [0, 1], made when they are asked for: a thousand of them at 224 px are
    gigabytes.
    """

    def __init__(self, dataset: Dataset, progress: Progress | None) -> None:
        report = functools.partial(progress, "class means") if progress else None
        moments = class_moments(dataset, progress=report)
        self._sums, self._counts = moments.sums.numpy(), moments.counts.numpy()
        self.present = np.flatnonzero(self._counts)
        self.counts = self._counts[self.present]
        self._centre = np.zeros(dataset.image_shape)
        for label in self.present:
            self._centre += self.of(label) / len(self.present)

    def of(self, labels: np.ndarray | np.integer[Any]) -> np.ndarray:
        """(..., H, W, C) float64 for labels of any shape."""
        counts = np.asarray(self._counts[labels], np.float64)[..., None, None, None]
        return self._sums[labels] / (255 * counts)  # type: ignore[no-any-return]

    def difference(self, label: np.integer[Any], axes: np.ndarray) -> np.ndarray:
        """(H, W, C) float64: the coefficients of a class's mean minus the mean of the classes."""
        return _transform((self.of(label) - self._centre)[None], axes)[0]  # type: ignore[no-any-return]


@ordinary
def class_ratios(dataset: Dataset, seed: int = 0, *, progress: Progress | None = None) -> Ratios:
    """Measures uint8 images (n, H, W, C) of at least two classes: all of them for the means, LOOKED of them, drawn from
    the seed, for the variance. Images that are few differ in their means too: by 1 / m in each ratio for classes of m.
    """
    return _ratios(dataset, _Means(dataset, progress), seed)


def _ratios(dataset: Dataset, means: _Means, seed: int) -> Ratios:
    axes, within = _within(dataset, means, seed)
    between = np.zeros(dataset.image_shape)
    for label in means.present:
        between += np.square(means.difference(label, axes)) / (len(means.present) - 1)
    order = np.argsort(-within, axis=None, kind="stable")
    return Ratios(means.present, means.counts, axes, order, (between / np.maximum(within, TINY)).ravel()[order])


def natural_ratios(d: int) -> np.ndarray:
    """The ratios (d,) that photographs of one class explain, in the order of `Ratios`."""
    return NATURAL / (np.arange(d) + KNEE)


@ordinary
def fit_class_patterns(dataset: Dataset, seed: int = 0, *, progress: Progress | None = None) -> ClassPatterns:
    """The part of each class's mean image that photographs do not account for.

    Colours are rotated to their principal axes and images transformed by the cosine transform (DCT-II). In each
    coefficient the variance of the class means, over that within a class, has three parts: photographs explain
    `natural_ratios`, that images are few explains 1 / m for a class of m, and the rest is a pattern. That share of each
    class mean's difference to the mean of all is returned (a Wiener filter): at fine detail nearly all of it if there
    is a pattern, at coarse structure next to nothing.

    Args:
        dataset: uint8 images (n, H, W, C) with labels, streamed once; LOOKED of them twice more.
        seed: draws the images whose variance is measured.
        progress: called as ``progress("class means", done, total)``.

    Returns:
        The patterns; all zero for a single class.
    """
    patterns = np.zeros((dataset.num_classes, *dataset.image_shape), np.float32)
    if len(np.unique(dataset.labels)) < 2:
        return ClassPatterns(patterns, {"norm": 0.0, "share": 0.0})
    means = _Means(dataset, progress)
    found = _ratios(dataset, means, seed)
    natural, noise = natural_ratios(len(found.order)), 1 / found.counts
    pattern = np.maximum(_smoothed(found.ratios) - natural - noise.mean(), 0)
    energy, kept, norms = 0.0, 0.0, []
    for label, own in zip(found.present, noise, strict=True):
        difference, share = means.difference(label, found.axes), np.empty(len(found.order))
        share[found.order] = pattern / (pattern + natural + own)
        patterns[label] = _back(difference * share.reshape(difference.shape), found.axes)
        energy += float(np.square(difference).sum())
        norms.append(float(np.linalg.norm(patterns[label])))
        kept += norms[-1] ** 2
    return ClassPatterns(patterns, {"norm": float(np.mean(norms)), "share": kept / energy if energy else 0.0})


def _within(dataset: Dataset, means: _Means, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The principal axes of the colours, (C, C), and the variance (H, W, C) of the coefficients within a class."""
    n, channels = len(dataset), dataset.image_shape[2]
    chosen = np.sort(np.random.Generator(np.random.Philox(seed)).permutation(n)[:LOOKED])
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(dataset.image_shape))))
    blocks = np.array_split(chosen, -(-len(chosen) // size))

    def centred(index: np.ndarray) -> np.ndarray:
        return np.asarray(dataset.images[index]) / 255 - means.of(dataset.labels[index])

    colours = np.zeros((channels, channels))
    for index in blocks:
        x = centred(index).reshape(-1, channels)
        colours += x.T @ x
    axes = np.linalg.eigh(colours)[1]
    squares = np.zeros(dataset.image_shape)
    for index in blocks:
        squares += np.square(_transform(centred(index), axes)).sum(0)
    # Images were compared with the mean of their own class, which lies nearer to them than the true one.
    degrees = len(chosen) * (1 - len(means.present) / n)
    return axes, squares / max(degrees, 1)


def _transform(images: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return dctn(images @ axes, axes=(1, 2), norm="ortho")  # type: ignore[no-any-return]


def _back(coefficients: np.ndarray, axes: np.ndarray) -> np.ndarray:
    return idctn(coefficients, axes=(0, 1), norm="ortho") @ axes.T  # type: ignore[no-any-return]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Means over a window around each rank that grows with it."""
    rank = np.arange(len(values))
    sums = np.concatenate([[0.0], values.cumsum()])
    reach = np.maximum(1, (WINDOW * rank).astype(int))
    low, high = np.maximum(rank - reach, 0), np.minimum(rank + reach + 1, len(rank))
    return (sums[high] - sums[low]) / (high - low)  # type: ignore[no-any-return]
