"""A data set whose images are all decoded, or changed, once, before any other use."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from ..runtime.progress import Progress
from .dataset import Dataset, chunks
from .lazy import LazyImages, prefetch

# Sets above this size go to an unnamed temporary file instead of memory; work is split into pieces of this many bytes.
MEMORY_BYTES, CHUNK_BYTES = 4 << 30, 1 << 20
DECODED = 128  # images decoded at a time

ImageMap = Callable[[np.ndarray], np.ndarray]


def room(shape: Sequence[int], dtype: type[np.generic] = np.uint8) -> np.ndarray:
    """An array to fill, of one row per image: in memory, or in an unnamed temporary file if it is large."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= MEMORY_BYTES:
        return np.empty(tuple(shape), dtype)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the file until it is itself freed
        return np.memmap(file, dtype, "w+", shape=tuple(shape))


def decoded(dataset: Dataset, progress: Progress | None = None) -> Dataset:
    """The data set with its images in an array (or the same one, if they are in one), for several passes over them.

    Args:
        progress: called as ``progress("sample", done, total)``.
    """
    if not isinstance(dataset.images, LazyImages):
        return dataset
    images = room(dataset.images.shape)
    batches = np.array_split(np.arange(len(dataset)), -(-len(dataset) // DECODED))
    with contextlib.closing(prefetch(dataset.images, batches)) as blocks:
        for rows, block in zip(batches, blocks, strict=True):
            images[rows] = block
            if progress:
                progress("sample", int(rows[-1]) + 1, len(dataset))
    return replace(dataset, images=images)


def map_images(dataset: Dataset, function: ImageMap, progress: Progress | None = None) -> Dataset:
    """A copy of a data set with `function` applied to its images, in as many threads as torch uses.

    Args:
        function: (b, H, W, C) uint8 -> the same shape, uint8, each image independently. Called from several threads.
        progress: called as ``progress("images", done, total)``.
    """
    return map_rows(dataset, lambda index: function(np.ascontiguousarray(dataset.images[index])), progress)


def map_rows(
    dataset: Dataset,
    function: Callable[[np.ndarray], np.ndarray],
    progress: Progress | None = None,
    *,
    threads: int | None = None,
) -> Dataset:
    """As `map_images`, for a function of the image numbers (b,) int64 that returns (b, H, W, C) uint8.

    Args:
        threads: that call `function` (default: torch's number); 1 if it uses torch's own.
    """
    out = room(dataset.images.shape)
    pieces = chunks(dataset.images, CHUNK_BYTES)

    def work(piece: tuple[int, int]) -> int:
        out[piece[0] : piece[1]] = function(np.arange(*piece))
        return piece[1]

    with ThreadPoolExecutor(threads or max(1, torch.get_num_threads())) as pool:
        for done in pool.map(work, pieces):
            if progress:
                progress("images", done, len(dataset))
    return replace(dataset, images=out)
