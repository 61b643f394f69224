"""`Removal`: what is removed from and added to a training image, in a fixed order.

`MemoryLoader._batch` in memory.py applies it to every batch; where only rows are projected away, the `ingest` kernel
does that in the same pass as the augmentation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ... import ops
from ...ops.state import exact

# (b, C, H, W) float32 pixels -> the same shape.
Filter = Callable[[Tensor], Tensor]
# (b, H, W, C) uint8 or float32 pixels, a seed, and the place of the first image in the pass -> (b, H, W, C) float32.
Drawn = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Removal:
    """The changes made to a stored image before it is augmented. They are applied in the order of the attributes, and
    nothing is clipped.

    Attributes:
        rows: (k, H*W*C) orthonormal rows that are projected away (a row of norm below 1 is removed in part), (c, r,
            H*W*C) rows for each class, or None.
        transform: any map of the float images, or None.
        patches: a linear map of the float images (`PatchProjection`), or None.
        drawn: filters of single images that are redrawn every epoch (`ulfast.projection.filters`), in order.
        noise: (m, H*W*C) rows; every image gets a random mixture of them, redrawn every epoch. None for none.
    """

    rows: Tensor | None = None
    transform: Filter | None = None
    patches: Filter | None = None
    drawn: tuple[Drawn, ...] = ()
    noise: Tensor | None = None

    def __bool__(self) -> bool:
        return self.lasts or self.draws

    @property
    def lasts(self) -> bool:
        """Whether images undergo a change that is the same in every pass."""
        return self.rows is not None or bool(self.filters)

    @property
    def draws(self) -> bool:
        """Whether images undergo a change that is redrawn in every pass."""
        return bool(self.drawn) or self.noise is not None

    @property
    def filters(self) -> tuple[Filter, ...]:
        """`transform` and `patches`, where they are not None."""
        return tuple(step for step in (self.transform, self.patches) if step is not None)

    def to(self, device: torch.device) -> Removal:
        """A copy on a device, in float32."""
        patches = self.patches
        return Removal(
            rows=None if self.rows is None else self.rows.to(device, torch.float32),
            transform=self.transform,
            patches=copy.deepcopy(patches).to(device) if isinstance(patches, nn.Module) else patches,
            drawn=self.drawn,
            noise=None if self.noise is None else self.noise.to(device, torch.float32),
        )

    @exact
    def settled(self, image_shape: tuple[int, int, int]) -> Removal:
        """A copy whose noise has no component in what `rows` (k, d) and `patches` remove from the images.

        Args:
            image_shape: (H, W, C).
        """
        noise = self.noise
        if noise is None:
            return self
        if self.rows is not None and self.rows.dim() == 2:
            noise = ops.project(noise, self.rows.to(noise))
        if self.patches is not None and len(noise):
            noise = _filtered(noise.view(-1, *image_shape), (self.patches,)).reshape(len(noise), -1)
        return replace(self, noise=noise)

    @exact
    def lasting(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images after the lasting changes, before the noise.

        Args:
            images: (b, H, W, C) uint8, or floats in units of [0, 1].
            labels: (b,) int64, needed for class-wise rows.

        Returns:
            (b, H, W, C) float32 in units of [0, 1].
        """
        rows = self.rows
        if rows is None:
            rows = torch.empty(0, math.prod(images.shape[1:]), dtype=torch.float32, device=images.device)
        x = ops.project_classwise(images, rows, labels) if rows.dim() == 3 else ops.project(images, rows)
        return _filtered(x, self.filters).contiguous() if self.filters else x

    @exact
    def draw(self, x: Tensor, seed: int, first: int) -> Tensor:
        """Applies what is redrawn in every pass: the drawn filters, then the mixtures of `noise`.

        Args:
            x: (b, H, W, C) float32 in units of [0, 1], which may be changed in place, or uint8.
            seed, first: seed of the draws, and the place of the first image in the pass.

        Returns:
            (b, H, W, C) float32 in units of [0, 1], not clipped.
        """
        for step in self.drawn:
            x = step(x, seed, first)
        if self.noise is None:
            return x
        weights = ops.philox_normal(
            seed, ops.philox.STREAM_NOISE, first, len(x), len(self.noise), device=self.noise.device
        )
        x.view(len(x), self.noise.shape[1]).addmm_(weights, self.noise)
        return x

    def apply(self, images: Tensor, labels: Tensor, seed: int | None = None, first: int = 0) -> Tensor:
        """The whole removal: `lasting`, then `draw` if a seed is given.

        Args:
            images: (b, H, W, C) uint8, or floats in units of [0, 1].
            labels: (b,) int64.
            seed, first: as for `draw`. A seed of None leaves out what is drawn.

        Returns:
            (b, H, W, C) float32 in units of [0, 1], not clipped.
        """
        x = self.lasting(images, labels)
        return x if seed is None else self.draw(x, seed, first)


@torch.no_grad()
def _filtered(x: Tensor, steps: tuple[Filter, ...]) -> Tensor:
    """Applies maps of (b, C, H, W) to float images (b, H, W, C)."""
    x = x.permute(0, 3, 1, 2)
    for step in steps:
        x = step(x)
    return x.permute(0, 2, 3, 1)
