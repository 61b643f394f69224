"""What all loaders share: the order of a pass, its draws and its batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import distributed
from .augment import Augment


@dataclass(frozen=True)
class Batch:
    """The draws of a pass for our part of one batch.

    Attributes:
        number: index of the batch in its pass.
        index: (b,) int64 numbers of the images, on the CPU.
        there: the same numbers on the loader's device.
        shift, flip, boxes: the draws of these images, on the device, or None.
    """

    number: int
    index: Tensor
    there: Tensor
    shift: Tensor | None
    flip: Tensor | None
    boxes: Tensor | None


class EpochLoader:
    """The base of all loaders: the order of a pass over n images, its draws, and its number of batches."""

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

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._n:,} images, batch_size={self.batch_size}, batches={len(self)},"
            f" shuffle={self.shuffle}, drop_last={self.drop_last}, augment={self.augment}, seed={self.seed})"
        )

    @property
    def images_per_epoch(self) -> int:
        return self._n - self._n % self.batch_size if self.drop_last else self._n

    def __len__(self) -> int:
        return math.ceil(self.images_per_epoch / self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next pass."""
        self.epoch = epoch

    def batch_images(self, i: int) -> int:
        """Number of images in batch i, over all its parts."""
        return min(self.batch_size, self.images_per_epoch - i * self.batch_size)

    def _batches(self, shape: tuple[int, int], device: torch.device) -> list[Batch]:
        """The batches of a pass over images of shape (H, W), our part of each.

        The draws of a pass go to the device at its start, since each copy waits for the GPU; a batch is a slice of
        them.
        """
        order = self._order()
        draws = (*self._draws(), self._boxes(shape))
        there = order.to(device)
        shift, flip, boxes = (None if draw is None else draw[order].to(device) for draw in draws)
        batches = []
        for number, begin in enumerate(range(0, len(order), self.batch_size)):
            first, last = distributed.share(self.batch_images(number), *self.part)
            part = slice(begin + first, begin + last)
            cut = (None if draw is None else draw[part] for draw in (shift, flip, boxes))
            batches.append(Batch(number, order[part], there[part], *cut))
        return batches

    def _order(self) -> Tensor:
        """Numbers of the images of this pass, in its order."""
        order = epoch_order(self._n, self.seed, self.epoch) if self.shuffle else numbers(self._n)
        return order[: self.images_per_epoch]

    def _draws(self) -> tuple[Tensor | None, Tensor | None]:
        """Shifts and flips of all n images in this pass, or None."""
        return self.augment.draw(self._n, self.seed, self.epoch) if self.augment else (None, None)

    def _boxes(self, shape: tuple[int, int]) -> Tensor | None:
        """The crop boxes of all n images of shape (H, W) in this pass, or None."""
        return self.augment.boxes(self._n, shape, self.seed, self.epoch) if self.augment else None


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The order of n images in an epoch, (n,) int64, the same for every loader."""
    generator = torch.Generator("cpu").manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    return torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")


def numbers(n: int) -> Tensor:
    """0 to n - 1, (n,) int64."""
    return torch.arange(n, dtype=torch.int64, device="cpu")
