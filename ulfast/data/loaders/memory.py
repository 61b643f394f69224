"""`MemoryLoader`: batches from an array in memory or on disk, with one pass of the `ingest` kernel per batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import distributed, ops
from ...ops.schemas import Directions, rows_of
from ...ops.state import exact, ordinary
from ..dataset import Dataset
from ..lazy import LazyImages, prefetch
from ..tensors import DEVICE_SHARE, LazyTensor, as_tensor, channel_statistics
from .augment import EPOCH_BITS, Augment, resized_crop
from .epoch import Batch, EpochLoader, numbers
from .removal import Removal

# Filtered images are kept in memory up to this size, and are computed this many at a time.
KEEP_BYTES, FILTER_BATCH = 4 << 30, 512


class MemoryLoader(EpochLoader):
    """Iterable of batches ``(x, y)``: x (b, C, H, W) normalised and channels_last, y (b,) int64.

    The projection, the augmentation and the normalisation are one kernel call on the gathered uint8 rows, so nothing
    else touches the pixels. Draws depend on (seed, epoch, image number), not on batch size or order.

    Args:
        dataset: its images may be memory-mapped or decoded on demand. In the latter case threads decode the next
            batches while one is in use, and end with the pass.
        batch_size: images per batch.
        basis: a `Basis` or its (k, H*W*C) orthonormal rows to project away before the augmentation, (c, r, H*W*C) rows
            for each class, or None.
        mean, std: C values in units of [0, 1]; None: statistics of the data set.
        dtype: torch.float32, bfloat16 or float16.
        augment: None for none.
        shuffle: a new order each epoch, from (seed, epoch).
        drop_last: drop a short last batch.
        device: where batches are made. On a GPU the stored images are kept there if they fit.
        part: (i, m): yield the i-th of m parts of each batch; m processes take one part each. Batches of fewer than m
            images leave some parts empty.
        noise: (m, H*W*C) rows. Every image gets a random mixture of them, redrawn every epoch, after the projection and
            before the augmentation. The weights are standard normal, drawn from (seed, epoch, place in the epoch). See
            `fit_mean_noise`.
        removal: a `Removal` with all that it can do, instead of `basis` and `noise`. Its filters give the same result
            in every pass, so the filtered images are computed once and kept in float16 if together they take less than
            `KEEP_BYTES`.

    Raises:
        ValueError: both a `removal` and a `basis` or `noise` are given.

    Example:
        >>> for x, y in MemoryLoader(dataset, 128, basis=basis.rows, augment=Augment(), shuffle=True):
        ...     loss = criterion(model(x), y)
    """

    @ordinary
    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        basis: Tensor | Directions | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        part: tuple[int, int] = (0, 1),
        noise: Tensor | None = None,
        removal: Removal | None = None,
    ) -> None:
        super().__init__(
            len(dataset), batch_size, augment=augment, shuffle=shuffle, seed=seed, drop_last=drop_last, part=part
        )
        if mean is None or std is None:
            mean, std = channel_statistics(dataset)
        self.dataset = dataset
        self.dtype, self.device = dtype, torch.device(device)
        self.mean = torch.as_tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.as_tensor(std, dtype=torch.float32, device=self.device)
        if removal is None:
            rows = None if basis is None else rows_of(basis, dataset.image_shape)
            removal = Removal(rows=rows, noise=noise)
        elif basis is not None or noise is not None:
            raise ValueError("give either a removal, or basis and noise, not both")
        self.removal = removal.to(self.device)
        self._lazy = dataset.images if isinstance(dataset.images, LazyImages) else None
        self._images = LazyTensor(self._lazy) if self._lazy is not None else as_tensor(dataset.images)
        self._labels = as_tensor(dataset.labels)
        if self.device.type == "cuda":
            self._labels = self._labels.to(self.device)
            if self._lazy is None and self._images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
                self._images = self._images.to(self.device)
        self._kept: Any = None
        if self.removal.filters and 2 * dataset.images.size < KEEP_BYTES:
            self._kept = self._filtered()

    def _filtered(self) -> Tensor:
        """All images after the filters, (n, H, W, C) float16 on the CPU."""
        kept = torch.empty(self.dataset.images.shape, dtype=torch.float16, device="cpu")
        for begin, index in zip(range(0, len(kept), FILTER_BATCH), numbers(len(kept)).split(FILTER_BATCH), strict=True):
            made = self._lasting(index, index.to(self.device), None)
            kept[begin : begin + len(index)] = made.to("cpu", torch.float16)
        return kept

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._batches(self.dataset.image_shape[:2], self.device)
        with contextlib.ExitStack() as stack:
            blocks: Iterator[np.ndarray | None] = itertools.repeat(None, len(batches))
            if self._lazy is not None and self._kept is None:
                decoded = prefetch(self._lazy, [batch.index.numpy() for batch in batches])
                blocks = stack.enter_context(contextlib.closing(decoded))  # type: ignore[type-var]
            for batch, block in zip(batches, blocks, strict=True):
                yield self._made(batch, None if block is None else torch.from_numpy(block))

    @exact  # not the whole pass: between its batches the caller trains
    def _made(self, batch: Batch, block: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self._batch(batch, block)
        return x if batch.boxes is None else resized_crop(x, batch.boxes), self._labels_at(batch)

    def _batch(self, batch: Batch, block: Tensor | None) -> Tensor:
        """The images of a batch, (b, C, H, W); `block` holds them if they were decoded ahead."""
        if self.removal.draws:
            # A filter reads stored pixels itself.
            plain = bool(self.removal.drawn) and not self.removal.lasts and self._kept is None
            at = (batch.index, batch.there, block)
            x = self._pixels(*at) if plain else self._lasting(*at)
            return self._augmented(batch, self.removal.draw(x, self.seed, self._place(batch.number)))
        if self._kept is not None:
            return self._augmented(batch, self._kept, stored=True)
        if self.removal.filters:
            return self._augmented(batch, self._lasting(batch.index, batch.there, block))
        # Only linear algebra on stored pixels is left: one pass of the kernel.
        rows = self.removal.rows
        labels = self._labels_at(batch) if rows is not None and rows.dim() == 3 else None
        if block is not None:
            return self._augmented(batch, block, rows, labels)
        return self._augmented(batch, self._images, rows, labels, stored=True)

    def _augmented(
        self, batch: Batch, images: Any, rows: Tensor | None = None, labels: Tensor | None = None, stored: bool = False
    ) -> Tensor:
        """The images (b, H, W, C) of a batch as (b, C, H, W): projected, shifted, flipped, normalised. If `stored`,
        `images` are those of the whole data set, and the batch's are taken from them.
        """
        index = batch.there if stored else None
        if stored and (not isinstance(images, Tensor) or images.device.type != self.device.type):
            images, index = images[batch.index], None
        return ops.ingest(
            images.to(self.device, non_blocking=True),
            rows,
            self.mean,
            self.std,
            dtype=self.dtype,
            index=index,
            shift=batch.shift,
            flip=batch.flip,
            labels=labels,
        )

    def _lasting(self, index: Tensor, there: Tensor, block: Tensor | None) -> Tensor:
        """The images at `index` (on the device: `there`), before the noise: (b, H, W, C) float32 in units of [0, 1]."""
        if self._kept is not None:
            return self._kept[index].to(self.device, torch.float32)
        labels = self._labels[there if self._labels.device == there.device else index]
        return self.removal.lasting(self._pixels(index, there, block), labels)

    def _pixels(self, index: Tensor, there: Tensor, block: Tensor | None) -> Tensor:
        """The images at `index` on the device, (b, H, W, C) uint8."""
        if block is None:
            block = self._images[there if self._images.device == there.device else index]
        return block.to(self.device)

    def _place(self, number: int) -> int:
        """Where the draws for our part of a batch begin."""
        begin, _ = distributed.share(self.batch_images(number), *self.part)
        return (self.epoch << EPOCH_BITS) + number * self.batch_size + begin

    def _labels_at(self, batch: Batch) -> Tensor:
        return self._labels[batch.there]
