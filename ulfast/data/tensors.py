"""Images as tensors: views of arrays, images decoded on indexing, channel statistics."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from .dataset import Dataset, chunks
from .lazy import LazyImages

# Fraction of a GPU's free memory that the stored images may take; larger sets are sent batch by batch.
DEVICE_SHARE = 0.5


def channel_statistics(
    dataset: Dataset, *, shared: bool = False, device: torch.device | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in units of [0, 1]; exact, in constant memory.

    With `shared`, every process of `distributed.joined` counts its share of the images; the numbers are the same.
    Values are counted on `device` (default: the CPU), which changes no number either.
    """
    channels = dataset.image_shape[2]
    counts = np.zeros((channels, 256))
    pieces = chunks(dataset.images)
    for begin, stop in pieces[slice(*distributed.share(len(pieces)))] if shared else pieces:
        flat = dataset.images[begin:stop].reshape(-1, channels)
        counts += level_counts(flat, device or torch.device("cpu"))
    if shared:
        distributed.sum_(torch.from_numpy(counts))  # integers: exact in any order
    return statistics_of(counts)


def statistics_of(counts: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel in units of [0, 1], from the counts of its values, (C, 256)."""
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).clip(1e-3).tolist())


def level_counts(pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Counts how often each channel of (m, C) has each value: (C, 256)."""
    there = as_tensor(pixels).to(device)
    # One plane at a time: copying the whole transposed array takes three times as long.
    planes = (there[:, channel].contiguous() for channel in range(there.shape[1]))
    return torch.stack([torch.bincount(plane, minlength=256) for plane in planes]).cpu().numpy()


class LazyTensor:
    """Images that are decoded on indexing, in place of a tensor of all of them."""

    def __init__(self, images: LazyImages) -> None:
        self._images = images
        self.device, self.nbytes = torch.device("cpu"), images.nbytes

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self._images[index.numpy()])


def as_tensor(array: np.ndarray) -> Tensor:
    """A view of the array; images not decoded yet are decoded. Read-only memory is fine, as no operator writes to
    it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
