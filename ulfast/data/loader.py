"""`MemoryLoader`: batches from an array in memory or on disk, by one pass of the `ingest` kernel a batch."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import distributed, ops
from .crops import draw_boxes, resized_crop
from .dataset import Dataset, chunks
from .lazy import LazyImages, prefetch

# Item numbers of one epoch's augmentation draws start at epoch << EPOCH_BITS: room for a trillion images.
EPOCH_BITS = 40
# Share of a GPU's free memory that the stored images may take; larger sets are sent batch by batch.
DEVICE_SHARE = 0.5
# Filtered images are kept in memory up to this size, and made this many at a time.
KEEP_BYTES, FILTER_BATCH = 4 << 30, 512


@dataclass(frozen=True)
class Augment:
    """What happens to a training image, drawn anew an epoch from (seed, epoch, image number) alone.

    Attributes:
        crop_padding: pixels of black border before a random crop of the original size; 0 for none.
        flip: mirror left-right with probability 1/2.
        area: smallest and largest share of the image's area that a random crop keeps, of a shape between 3:4 and 4:3,
            before it is blown up to the whole (the usual augmentation of ImageNet: (0.08, 1)); None for none.
    """

    crop_padding: int = 4
    flip: bool = True
    area: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.area is not None and not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is two shares above 0 and up to 1, the smaller one first, got {self.area}")

    def draw(self, n: int, seed: int, epoch: int) -> tuple[Tensor | None, Tensor | None]:
        """Shifts (n, 2) int32 and flips (n,) bool of all n images in one epoch."""
        u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, epoch << EPOCH_BITS, n, 4)
        span = 2 * self.crop_padding + 1
        shift = (u[:, :2] * span).to(torch.int32) - self.crop_padding if self.crop_padding else None
        return shift, u[:, 2] < 0.5 if self.flip else None

    def boxes(self, n: int, shape: tuple[int, int], seed: int, epoch: int) -> Tensor | None:
        """Boxes (n, 4) of all n images of shape (H, W) in one epoch, as `resized_crop` takes them."""
        first = (epoch << EPOCH_BITS) + (1 << EPOCH_BITS - 1)  # beside those of `draw`
        return None if self.area is None else draw_boxes(n, self.area, shape, seed, first)


def channel_statistics(dataset: Dataset, *, shared: bool = False) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in units of [0, 1]; exact, in constant memory.

    With `shared` every process of `distributed.joined` counts its share of the images, to the same numbers.
    """
    channels = dataset.image_shape[2]
    counts = np.zeros((channels, 256))
    pieces = chunks(dataset.images)
    for begin, stop in pieces[slice(*distributed.share(len(pieces)))] if shared else pieces:
        flat = dataset.images[begin:stop].reshape(-1, channels)
        for c in range(channels):
            counts[c] += np.bincount(flat[:, c], minlength=256)
    if shared:
        distributed.sum_(torch.from_numpy(counts))  # whole numbers: exact in any order
    levels = np.arange(256) / 255
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(variance, 0)).clip(1e-3).tolist())


class EpochLoader:
    """What loaders share: the order of a pass over n images, its draws, and how many batches it has."""

    def __init__(
        self, n: int, batch_size: int, *, augment: Augment | None, shuffle: bool, seed: int, drop_last: bool,
        part: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._n, self.batch_size = n, batch_size
        self.augment, self.shuffle, self.seed, self.drop_last = augment, shuffle, seed, drop_last
        self.part = part
        self.epoch = 0

    @property
    def images_per_epoch(self) -> int:
        return self._n - self._n % self.batch_size if self.drop_last else self._n

    def __len__(self) -> int:
        return math.ceil(self.images_per_epoch / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next pass."""
        self.epoch = epoch

    def batch_images(self, i: int) -> int:
        """Images of batch i, all parts of it together."""
        return min(self.batch_size, self.images_per_epoch - i * self.batch_size)

    def _batches(self) -> list[Tensor]:
        """Numbers of the images of each batch, our part of it."""
        batches = self._order().split(self.batch_size)
        return [index[slice(*distributed.share(len(index), *self.part))] for index in batches]

    def _order(self) -> Tensor:
        """Numbers of the images of this pass, as they come."""
        order = epoch_order(self._n, self.seed, self.epoch) if self.shuffle else torch.arange(self._n)
        return order[: self.images_per_epoch]

    def _draws(self) -> tuple[Tensor | None, Tensor | None]:
        """Shifts and flips of all n images in this pass, or None."""
        return self.augment.draw(self._n, self.seed, self.epoch) if self.augment else (None, None)

    def _boxes(self, shape: tuple[int, int]) -> Tensor | None:
        """Parts of all n images of shape (H, W) that this pass takes, or None."""
        return self.augment.boxes(self._n, shape, self.seed, self.epoch) if self.augment else None


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


class LazyTensor:
    """Images that are decoded when they are indexed, in the place of a tensor of all of them."""

    def __init__(self, images: LazyImages) -> None:
        self._images = images
        self.device, self.nbytes = torch.device("cpu"), images.nbytes

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self._images[index.numpy()])


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in an epoch, (n,) int64, the same for every loader."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63)))


def project_rows(images: Tensor, basis: Tensor | None, labels: Tensor) -> Tensor:
    """Images (n, ...) uint8 as float32 in units of [0, 1], without a basis (k, d) or their classes' rows (c, r, d).

    None leaves them whole.
    """
    if basis is None:
        basis = torch.empty(0, math.prod(images.shape[1:]), device=images.device)
    if basis.dim() == 3:
        return ops.project_classwise(images, basis, labels)
    return ops.project(images, basis)


def as_tensor(array: np.ndarray) -> Tensor:
    """A view of the array; images not decoded yet are decoded. Read-only memory is fine: no operator
    here writes to its images.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
