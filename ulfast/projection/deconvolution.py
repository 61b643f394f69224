"""Undoing a convolution of images from the trace that it leaves at their border.

A poison that convolves every image of a class with one filter, zero-padded, makes the border dark: a pixel there loses
the weights that fall outside. The darkness of the outermost rows, columns and corners of a class's mean image relative
to the inside gives sums of the filter's weights, and their differences give the filter itself. The images are then
divided by its response and shifted back. Neither a clean image nor a network is needed.

Source: ours, docs/research/deconvolution.md. The poison: Sadasivan et al., CUDA: Convolution-based Unlearnable
Datasets, CVPR 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.dataset import CHUNK_BYTES, Dataset

NOISE = 1e-2  # power of a filter's response below which a frequency is not amplified
MARGIN = 16  # largest mirrored margin in pixels around the transformed image
LEVEL = 1.0  # of 255, added to both sides of a ratio, so that the ratio of two black values is one
ROUNDS = 3  # of deciding which images were convolved and measuring the filters again
FEWEST = 8  # with fewer images, the border of a class is not measured


def border_filter(mean: np.ndarray, width: int) -> np.ndarray:
    """The filter that darkened the border of images.

    Args:
        mean: (H, W) float, the mean over images that went through one filter, and over their channels; sides of at
            least 6 * `width`.
        width: of the dark border in pixels.

    Returns:
        (K, K) float64 with K = 2 * `width` + 1 and sum one, to be correlated with the image as in `conv2d`.
    """
    side = 2 * width + 1
    kernel = np.zeros((side, side))
    rows, columns = np.zeros(side), np.zeros(side)
    for down in (1, -1):
        rows[::down][:width] = _lost(mean[::down, width:-width].mean(1), width)
        columns[::down][:width] = _lost(mean[width:-width, ::down].mean(0), width)
    for down in (1, -1):
        for right in (1, -1):
            top, left = np.cumsum(rows[::down][:width]), np.cumsum(columns[::right][:width])
            kernel[::down, ::right][:width, :width] = _corner(mean[::down, ::right], width, top, left)
    for i in (*range(width), *range(width + 1, side)):
        kernel[i, width] = rows[i] - kernel[i].sum()
        kernel[width, i] = columns[i] - kernel[:, i].sum()
    kernel[width, width] = 1 - kernel.sum()
    return kernel


def _lost(profile: np.ndarray, width: int) -> np.ndarray:
    """Sums of the filter's first `width` rows, the outermost first, from the brightness of each row of an image."""
    inside = 2 * width + 1
    line = np.polynomial.Polynomial.fit(np.arange(width, width + inside), profile[width : width + inside], 1)
    stays = (profile[:width] + LEVEL) / (line(np.arange(width)) + LEVEL)
    # Row k lacks the first width - k rows of the filter.
    return np.diff(1 - stays[::-1], prepend=0.0)


def _corner(mean: np.ndarray, width: int, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The filter's upper left (width, width) weights, from the image's upper left corner and the sums of its first rows
    and columns."""
    inside = 2 * width + 1
    place = np.arange(width, width + inside)
    y, x = np.meshgrid(place, place, indexing="ij")
    block = mean[width : width + inside, width : width + inside]
    plane = np.linalg.lstsq(np.stack([np.ones(y.size), y.ravel(), x.ravel()], 1), block.ravel(), rcond=None)[0]
    at = np.arange(width)
    light = plane[0] + plane[1] * at[:, None] + plane[2] * at
    stays = (mean[:width, :width] + LEVEL) / (light + LEVEL)
    # A corner pixel keeps one minus the lost rows and columns, plus their common weights.
    common = stays[::-1, ::-1] - 1 + top[:, None] + left
    return np.diff(np.diff(common, axis=0, prepend=0.0), axis=1, prepend=0.0)


@dataclass(frozen=True)
class ClassFilters:
    """The filters that were applied to the images of a data set.

    Attributes:
        kernels: (c, K, K) float64; the identity for a class without convolved images.
        convolved: (n,) bool: which images were convolved.
        metadata: facts about the fit (JSON-able).
    """

    kernels: np.ndarray
    convolved: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    def undo(self, dataset: Dataset, index: np.ndarray) -> np.ndarray:
        """The images at `index`, (b, H, W, C) uint8, where the convolved ones are divided by their class's filter.

        The border of all of them is mirrored from inside: of restored images it is wrong, in a way that depends on the
        class, and a border that only some classes have would tell these.
        """
        images, labels = np.asarray(dataset.images[index]), dataset.labels[index]
        out = mirrored(images, self.kernels.shape[1] // 2)
        for c in np.unique(labels):
            rows = np.flatnonzero((labels == c) & self.convolved[index])
            if len(rows):
                out[rows] = divided(images[rows], self.kernels[c])
        return out


def fit_class_filters(dataset: Dataset, width: int) -> ClassFilters:
    """Measures the filter of each class, and finds the images to which it was applied.

    An image counts as convolved if the brightness of its four sides relative to the pixels next to them is nearer to
    the filter's effect than to that of an unchanged image.

    Args:
        dataset: uint8 images (n, H, W, C) with labels, streamed once for each of a few rounds.
        width: of the dark border in pixels.
    """
    classes, side = dataset.num_classes, 2 * width + 1
    shape = dataset.image_shape[:2]
    plain = np.zeros((side, side))
    plain[width, width] = 1
    kernels = np.tile(plain, (classes, 1, 1))
    sides = np.empty((len(dataset), 4), np.float32)
    convolved = np.ones(len(dataset), bool)
    step = max(1, CHUNK_BYTES // int(np.prod(dataset.image_shape)))
    for number in range(ROUNDS):
        sums, counts = np.zeros((classes, *shape)), np.zeros(classes)
        for begin in range(0, len(dataset), step):
            light = brightness(np.asarray(dataset.images[begin : begin + step]))
            if not number:
                sides[begin : begin + step] = _sides(light, width)
                # The first guess: images with four dark sides.
                convolved[begin : begin + step] = (sides[begin : begin + step] < -0.05).all(1)
            here = convolved[begin : begin + step]
            labels = dataset.labels[begin : begin + step]
            for c in np.unique(labels[here]):
                rows = here & (labels == c)
                sums[c] += light[rows].sum(0, dtype=np.float64)
                counts[c] += rows.sum()
        for c in range(classes):
            kernels[c] = border_filter(sums[c] / counts[c], width) if counts[c] >= FEWEST else plain
        expected = np.stack([_shadow(kernel, width) for kernel in kernels])[dataset.labels]
        convolved = ((sides - expected) ** 2).sum(1) < (sides**2).sum(1)
        convolved &= (counts >= FEWEST)[dataset.labels]
    facts = {"border": width, "convolved": int(convolved.sum()), "kernels": kernels.round(4).tolist()}
    return ClassFilters(kernels, convolved, facts)


def brightness(images: np.ndarray) -> np.ndarray:
    """(n, H, W) float32 means over the channels; adding planes is several times faster than `mean`."""
    total = images[..., 0].astype(np.float32)
    for channel in range(1, images.shape[3]):
        total += images[..., channel]
    return total / images.shape[3]


def _sides(light: np.ndarray, width: int) -> np.ndarray:
    """(n, 4): log ratios of the brightness of the outermost row or column to that of the one inside the border."""
    found = []
    for image in (light, light[:, ::-1], light.transpose(0, 2, 1), light.transpose(0, 2, 1)[:, ::-1]):
        found.append(np.log((image[:, 0].mean(1) + LEVEL) / (image[:, width].mean(1) + LEVEL)))
    return np.stack(found, 1)


def _shadow(kernel: np.ndarray, width: int) -> np.ndarray:
    """(4,): the result of `_sides` for a uniform image."""
    rows, columns = kernel.sum(1), kernel.sum(0)
    lost = [rows[:width].sum(), rows[-width:].sum(), columns[:width].sum(), columns[-width:].sum()]
    return np.log(np.clip(1 - np.array(lost), 0.05, None))


def mirrored(images: np.ndarray, width: int) -> np.ndarray:
    """Replaces the outermost 2 * `width` + 1 pixels of images (n, H, W, C) by the mirror image of what is inside.

    A filter `width` pixels to each side may shift an image by as many, and its inverse smears what is outside over
    about as many more.
    """
    lost = 2 * width + 1
    inside = images[:, lost : images.shape[1] - lost, lost : images.shape[2] - lost]
    return np.pad(inside, ((0, 0), (lost, lost), (lost, lost), (0, 0)), "reflect")


def divided(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Undoes a filter in the frequency domain, with the shift of one whose largest weight is off-centre.

    Args:
        images: (n, H, W, C) uint8, filtered with zero padding, and scaled; sides of at least 16 pixels and 8 times
            the kernel's reach.
        kernel: (K, K) with sum one.

    Returns:
        (n, H, W, C) uint8: scaled down so that no value exceeds the largest of the image, with a border that is
        `mirrored`.
    """
    width = len(kernel) // 2
    height, across = images.shape[1:3]
    margin = min(MARGIN, height - 2 * width - 1 - width, across - 2 * width - 1 - width)
    around = ((0, 0), (margin + width,) * 2, (margin + width,) * 2, (0, 0))
    wide = np.pad(images[:, width : height - width, width : across - width].astype(np.float32) / 255, around, "reflect")
    # Around its largest weight, the filter changes the image least, and mirroring is about right outside.
    y, x = (int(i) for i in np.unravel_index(int(kernel.argmax()), kernel.shape))
    placed = np.zeros(wide.shape[1:3])
    for (i, j), weight in np.ndenumerate(kernel):
        placed[(y - i) % wide.shape[1], (x - j) % wide.shape[2]] += weight
    response = np.fft.rfft2(placed)
    inverse = ((np.conj(response) + NOISE) / (np.abs(response) ** 2 + NOISE)).astype(np.complex64)
    spectrum = np.fft.rfft2(wide, axes=(1, 2)) * inverse[:, :, None]
    clean = np.fft.irfft2(spectrum, s=wide.shape[1:3], axes=(1, 2))[:, margin:-margin, margin:-margin]
    clean = mirrored(np.roll(clean, (y - width, x - width), (1, 2)), width)
    # Sharper images have higher peaks: they are scaled to the brightest original pixel.
    most = images.max((1, 2, 3), keepdims=True).astype(np.float32)
    scale = np.minimum(255, most / np.maximum(clean.max((1, 2, 3), keepdims=True), 1e-6))
    return np.rint((clean * scale).clip(0, 255)).astype(np.uint8)
