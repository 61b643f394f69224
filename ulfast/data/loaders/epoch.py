"""What all loaders share: the order of a pass, its draws, its batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ... import distributed
from .augment import Augment


class EpochLoader:
    """What loaders share: the order of a pass over n images, its draws, and how many batches it has."""

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        augment: Augment | None,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        part: tuple[int, int] = (0, 1),
    ) -> None:
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


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in an epoch, (n,) int64, the same for every loader."""
    return torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63)))
