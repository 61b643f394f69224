"""Filters of training images that are redrawn in every pass, against poisons that are filters themselves.

Each is called with (b, H, W, C) pixels, uint8 or float32 in [0, 1], the seed, and the place of the first image in the
pass, and returns (b, H, W, C) float32. Draws are counter-based: the same on every device and in any order.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset, chunks
from ..data.tensors import as_tensor
from ..ops import philox
from ..ops.reference import unit
from ..ops.state import ordinary
from ..runtime.progress import Progress

TINY = 1e-12  # power below which a logarithm is meaningless
CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class RandomSharpening:
    """A 3 x 3 sharpening filter for each image: its centre is N(centre, deviation^2), its four neighbours are minus
    N((centre - 1) / 4, deviation^2), its corners zero. The result is clipped to [0, 1].

    The border, where the filter does not fit, takes the values next to it; the published program crops it.

    Attributes:
        centre: mean of the filter's centre; 1 leaves the image unchanged.
        deviation: standard deviation of each of its five weights.

    Source: Kim and Sandoval-Segura, Learning from Convolution-based Unlearnable Datasets, 2024 (arXiv 2411.01742).
    """

    centre: float = 2.5
    deviation: float = 0.1

    def __call__(self, x: Tensor, seed: int, first: int) -> Tensor:
        z = self.deviation * ops.philox_normal(seed, philox.STREAM_SHARPEN, first, len(x), 5, device=x.device)
        centre = self.centre + z[:, 0]
        kernels = torch.zeros(len(x), 9, dtype=torch.float32, device=x.device)
        kernels[:, 4] = centre
        kernels[:, 1::2] = -(((centre - 1) / 4)[:, None] + z[:, 1:])
        return repeat_border(ops.filter_images(x, kernels.view(-1, 3, 3), clamp=True), 1)


@dataclass(frozen=True)
class LowPass:
    """Keeps the lowest frequencies of each channel: of the H x W coefficients of the orthonormal discrete cosine
    transform (DCT-II) the first ``int(keep * H)`` rows and ``int(keep * W)`` columns. Clipped to [0, 1].

    Source: Kim and Sandoval-Segura, as `RandomSharpening`.
    """

    keep: float = 0.3

    def __call__(self, x: Tensor, seed: int, first: int) -> Tensor:
        n, h, w, c = x.shape
        pixels = unit(x)
        rows, columns = _cosines(h, self.keep, 1, x.device), _cosines(w, self.keep, c, x.device)
        low = (rows.T @ rows) @ pixels.reshape(n, h, w * c)
        return (low @ columns.T @ columns).view(n, h, w, c).clamp_(0, 1)


@functools.lru_cache(maxsize=8)
def _cosines(side: int, keep: float, channels: int, device: torch.device) -> Tensor:
    """(k * channels, side * channels) float32: the first rows of the DCT-II for each channel of interleaved values."""
    at = torch.arange(side, dtype=torch.float64, device=device)
    rows = torch.cos(math.pi / side * (at + 0.5) * at[: int(keep * side), None]) * math.sqrt(2 / side)
    rows[:1] /= math.sqrt(2)
    return torch.kron(rows, torch.eye(channels, dtype=torch.float64, device=device)).float()


@dataclass(frozen=True)
class PixelShift:
    """Reads every pixel at its own random place, up to `reach` pixels away along each axis (`ops.shift_pixels`).

    Source: Wang et al., Corrupting Convolution-based Unlearnable Datasets with Pixel-based Image Transformations
    (COIN), AAAI 2025.
    """

    reach: float = 2.0

    def __call__(self, x: Tensor, seed: int, first: int) -> Tensor:
        return ops.shift_pixels(x, seed=seed, stream=philox.STREAM_SHIFT, first=first, reach=self.reach)


@dataclass(frozen=True)
class SpectralNoise:
    """Filters every image by a zero-phase filter whose logarithm is a random mixture of the differences between the
    classes' mean logarithmic spectra.

    Attributes:
        spectra: (c, H, W) float32, from `class_spectra`, minus their mean.
        scale: standard deviation of the mixture's weights.
    """

    spectra: Tensor = field(repr=False)
    scale: float = 1.0

    def __call__(self, x: Tensor, seed: int, first: int) -> Tensor:
        n, h, w, _ = x.shape
        spectra = self.spectra.to(x.device)
        weights = ops.philox_normal(seed, philox.STREAM_SPECTRUM, first, n, len(spectra), device=x.device)
        gain = (0.5 * self.scale * weights @ spectra.flatten(1)).exp().view(n, h, w, 1)
        pixels = unit(x)
        mean = pixels.mean((1, 2), keepdim=True)
        half = torch.fft.rfft2(pixels - mean, dim=(1, 2)) * gain[:, :, : w // 2 + 1]
        return torch.fft.irfft2(half, s=(h, w), dim=(1, 2)) + mean


@ordinary
def class_spectra(dataset: Dataset, *, progress: Progress | None = None) -> Tensor:
    """The mean logarithmic power spectrum of each class's images.

    Args:
        dataset: uint8 images (n, H, W, C) with labels, streamed once.
        progress: called as ``progress("spectra", done, total)``.

    Returns:
        (c, H, W) float32: means of ``log |FFT|^2``, averaged over the channels. Each image's own mean over the
        frequencies is subtracted, so that neither brightness nor contrast counts. Zero for a class without images.
    """
    labels = as_tensor(dataset.labels)
    height, width, _ = dataset.image_shape
    sums = torch.zeros(dataset.num_classes, height * width, dtype=torch.float64)
    for begin, stop in chunks(dataset.images, CHUNK_BYTES):
        pixels = unit(as_tensor(dataset.images[begin:stop]))
        power = torch.fft.fft2(pixels, dim=(1, 2)).abs().square().clamp_min_(TINY).log_().mean(3).flatten(1)
        power -= power.mean(1, keepdim=True)
        sums.index_add_(0, labels[begin:stop], power.double())
        if progress:
            progress("spectra", stop, len(dataset))
    counts = torch.bincount(labels, minlength=dataset.num_classes).clamp_min(1)
    return (sums / counts[:, None]).view(-1, height, width).float()


def repeat_border(x: Tensor, width: int) -> Tensor:
    """Overwrites the outermost `width` pixels of images (n, H, W, C) with the values next to them, in place;
    returns x.
    """
    height, columns = x.shape[1:3]
    width = min(width, (height - 1) // 2, (columns - 1) // 2)
    if width > 0:
        x[:, :width], x[:, height - width :] = x[:, width : width + 1], x[:, height - width - 1 : height - width]
        x[:, :, :width] = x[:, :, width : width + 1]
        x[:, :, columns - width :] = x[:, :, columns - width - 1 : columns - width]
    return x
