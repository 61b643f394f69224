"""`MemoryLoader`: batches from an array in memory or on disk, by one pass of the `ingest` kernel a batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import distributed, ops
from ..dataset import Dataset
from ..lazy import LazyImages, prefetch
from ..tensors import DEVICE_SHARE, LazyTensor, as_tensor, channel_statistics, project_rows
from .augment import EPOCH_BITS, Augment, resized_crop
from .epoch import EpochLoader

# Filtered images are kept in memory up to this size, and made this many at a time.
KEEP_BYTES, FILTER_BATCH = 4 << 30, 512


class MemoryLoader(EpochLoader):
    """Iterable of batches ``(x, y)``: x (b, C, H, W) normalised and channels_last, y (b,) int64.

    The projection, the augmentation and the normalisation are one kernel call on the gathered uint8 rows, so nothing
    else touches the pixels. Draws depend on (seed, epoch, image number), not on batch size or order.

    Args:
        dataset: its images may be memory-mapped, or decoded on demand: then threads decode the next batches while one
            is used, and end with the pass.
        batch_size: images a batch.
        basis: (k, H*W*C) orthonormal rows to project away before the augmentation, (c, r, H*W*C) rows for each class,
            or None.
        mean, std: C values in units of [0, 1]; None: statistics of the data set.
        dtype: torch.float32, bfloat16 or float16.
        augment: None for none.
        shuffle: a new order each epoch, from (seed, epoch).
        drop_last: leave a short last batch out.
        device: where batches are made. On a GPU the stored images are kept there if they fit.
        part: (i, m): the i-th of m parts of each batch, of which m processes take one each. Batches of fewer than m
            images leave some parts empty.
        noise: (k, H*W*C) rows, of which every image gets a random mixture, anew in every pass, after the projection and
            before the augmentation: the weights are standard normal, drawn from (seed, epoch, place in the pass). See
            `fit_mean_noise`.

    Example:
        >>> for x, y in MemoryLoader(dataset, 128, basis=basis.rows, augment=Augment(), shuffle=True):
        ...     loss = criterion(model(x), y)
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        basis: Tensor | None = None,
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
        self.basis = None if basis is None else basis.to(self.device, torch.float32)
        self.noise = None if noise is None else noise.to(self.device, torch.float32)
        self._lazy = dataset.images if isinstance(dataset.images, LazyImages) else None
        self._images = LazyTensor(self._lazy) if self._lazy is not None else as_tensor(dataset.images)
        self._labels = as_tensor(dataset.labels)
        if self.device.type == "cuda":
            self._labels = self._labels.to(self.device)
            if self._lazy is None and self._images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]:
                self._images = self._images.to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._batches()
        shift, flip = self._draws()
        boxes = self._boxes(self.dataset.image_shape[:2])
        with contextlib.ExitStack() as stack:
            blocks: Iterator[np.ndarray | None] = itertools.repeat(None, len(batches))
            if self._streams():
                assert self._lazy is not None
                decoded = prefetch(self._lazy, [index.numpy() for index in batches])
                blocks = stack.enter_context(contextlib.closing(decoded))  # type: ignore[type-var]
            for i, (index, block) in enumerate(zip(batches, blocks, strict=True)):
                picked = None if shift is None else shift[index].to(self.device)
                mirrored = None if flip is None else flip[index].to(self.device)
                stored = None if block is None else torch.from_numpy(block)
                if self.noise is None:
                    x = self._batch(index, picked, mirrored, stored)
                else:
                    noisy = self._noisy(self._float_rows(index, stored), i)
                    x = ops.ingest(noisy, None, self.mean, self.std, dtype=self.dtype, shift=picked, flip=mirrored)
                yield x if boxes is None else resized_crop(x, boxes[index]), self._labels_at(index)

    def _streams(self) -> bool:
        """Whether batches are decoded ahead."""
        return self._lazy is not None

    def _labels_at(self, index: Tensor) -> Tensor:
        return self._labels[index.to(self._labels.device)]

    def _noisy(self, x: Tensor, batch: int) -> Tensor:
        """Adds our part of a batch's noise to its images (b, H, W, C) float32, in place."""
        assert self.noise is not None
        begin, stop = distributed.share(self.batch_images(batch), *self.part)
        place = (self.epoch << EPOCH_BITS) + batch * self.batch_size + begin
        weights = ops.philox_normal(
            self.seed, ops.philox.STREAM_NOISE, place, stop - begin, len(self.noise), device=self.device
        )
        x.view(len(x), self.noise.shape[1]).addmm_(weights, self.noise)
        return x

    def _float_rows(self, index: Tensor, block: Tensor | None) -> Tensor:
        """(b, H, W, C) float32 in units of [0, 1] of the images at `index`, projected, not yet augmented."""
        images = (self._images[index.to(self._images.device)] if block is None else block).to(self.device)
        return project_rows(images, self.basis, self._labels_at(index))

    def _batch(self, index: Tensor, shift: Tensor | None, flip: Tensor | None, block: Tensor | None) -> Tensor:
        """(b, C, H, W) of the images at `index`, which are `block` where they have been decoded ahead."""
        images: Any = self._images
        rows: Tensor | None = index.to(self.device)
        if block is not None:
            images, rows = block.to(self.device), None
        elif images.device.type != self.device.type:
            images, rows = images[index].to(self.device, non_blocking=True), None
        labels = self._labels_at(index) if self.basis is not None and self.basis.dim() == 3 else None
        return ops.ingest(
            images, self.basis, self.mean, self.std, dtype=self.dtype, index=rows, shift=shift, flip=flip, labels=labels
        )


class FilteredLoader(MemoryLoader):
    """`MemoryLoader` with a function on float images between the projection and the augmentation.

    The function runs once an image and its results are kept in float16 where they take less than `KEEP_BYTES`; for
    larger sets it runs in every pass.

    Args:
        transform: (b, C, H, W) float32 in [0, 1], projected, not yet shifted -> the same.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, *, transform: Callable[[Tensor], Tensor], **options: Any
    ) -> None:
        super().__init__(dataset, batch_size, **options)
        self._transform = transform
        self._kept: Tensor | None = None
        if 2 * dataset.images.size < KEEP_BYTES:
            kept = torch.empty(dataset.images.shape, dtype=torch.float16)
            for begin in range(0, len(dataset), FILTER_BATCH):
                index = torch.arange(begin, min(begin + FILTER_BATCH, len(dataset)))
                kept[index] = self._float_rows(index, None).to("cpu", torch.float16)
            self._kept = kept

    def _streams(self) -> bool:
        return super()._streams() and self._kept is None

    def _float_rows(self, index: Tensor, block: Tensor | None) -> Tensor:
        if self._kept is not None:
            return self._kept[index].to(self.device, torch.float32)
        x = super()._float_rows(index, block)
        with torch.no_grad():
            return self._transform(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()

    def _batch(self, index: Tensor, shift: Tensor | None, flip: Tensor | None, block: Tensor | None) -> Tensor:
        images = self._kept
        rows: Tensor | None = index
        if images is None:
            images, rows = self._float_rows(index, block), None
        elif self.device.type != "cpu":
            images, rows = images[index].to(self.device), None
        return ops.ingest(
            images, None, self.mean, self.std, dtype=self.dtype, index=rows, shift=shift, flip=flip
        )  # fmt: skip
