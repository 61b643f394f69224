"""Exact per-class sums of every pixel value, in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import distributed, ops
from .dataset import Dataset, chunks
from .tensors import as_tensor

CHUNK_BYTES = 64 << 20


class ClassMoments(NamedTuple):
    """Images per class (c,), and the sums (c, H, W, C) of every value in uint8 levels and of its square; all int64."""

    counts: Tensor
    sums: Tensor
    squares: Tensor | None

    def means(self) -> Tensor:
        """(c, H * W * C) float64 in units of [0, 1]; NaN where a class has no image."""
        return self.sums.flatten(1).double() / (255 * self.counts[:, None])


def class_moments(
    dataset: Dataset,
    *,
    squares: bool = False,
    progress: Callable[[int, int], None] | None = None,
    shared: bool = False,
    device: torch.device | None = None,
) -> ClassMoments:
    """`ops.class_moments` of a whole data set of uint8 images, streamed. The sums are integers, so that ties stay ties.

    Args:
        squares: compute the sums of squares too; without them the result takes half the memory.
        progress: called as ``progress(done, total)``.
        shared: every process of `distributed.joined` reads its part of the images; all get the same result.
        device: where the images are summed (default: the CPU); the numbers are the same, and the result is on the CPU.
    """
    labels, place = as_tensor(dataset.labels), device or torch.device("cpu")
    counts = torch.bincount(labels, minlength=dataset.num_classes)
    sums = torch.zeros(dataset.num_classes, *dataset.image_shape, dtype=torch.int64, device="cpu")
    second = torch.zeros_like(sums) if squares else None
    # Class by class: with a thousand classes a piece has only a few, and only their sums are made and added.
    order = labels.argsort(stable=True)
    pieces = chunks(dataset.images, CHUNK_BYTES)
    mine = pieces[slice(*distributed.share(len(pieces)))] if shared else pieces
    for begin, stop in mine:
        rows = order[begin:stop]
        there, local = labels[rows].unique(return_inverse=True)
        images = as_tensor(dataset.images[rows.numpy()])
        some, more = ops.class_moments(images.to(place), local.to(place), len(there))
        sums[there] += some.cpu()
        if second is not None:
            second[there] += more.cpu()
        if progress:
            progress(stop - mine[0][0], mine[-1][1] - mine[0][0])
    if shared:
        for total in (sums, second):
            if total is not None:
                distributed.sum_(total)
    return ClassMoments(counts, sums, second)
