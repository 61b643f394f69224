"""`Removal`: what a training image loses and gains, in one order: the projection off a basis and what goes with it.

`MemoryLoader._batch` in memory.py applies it to every batch; where only rows are projected off, its `ingest` kernel
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
# (b, H, W, C) uint8 or float32 pixels, a seed, and the place in the pass of the first of them -> (b, H, W, C) float32.
Drawn = Callable[[Tensor, int, int], Tensor]


@dataclass(frozen=True)
class Removal:
    """What happens to a stored image before it is augmented. The parts are applied in the order of the attributes, and
    nothing is clipped.

    Attributes:
        rows: (k, H*W*C) orthonormal rows that are projected away (or rows of a norm below 1, each of which goes in
            part), (c, r, H*W*C) rows for each class, or None.
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
        """Whether images are changed in a way that is the same in every pass."""
        return self.rows is not None or bool(self.filters)

    @property
    def draws(self) -> bool:
        """Whether images are changed in a way that is new in every pass."""
        return bool(self.drawn) or self.noise is not None

    @property
    def filters(self) -> tuple[Filter, ...]:
        """`transform` and `patches`, without those that are None."""
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
        """The same, with noise that has nothing of what the images lose by `rows` (k, d) and `patches`.

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
        """Images without what they lose, before the noise.

        Args:
            images: (b, H, W, C) uint8, or floats in units of [0, 1].
            labels: (b,) int64, for rows of each class.

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
        """What is new in every pass: the filters that are drawn, then the mixtures of `noise`.

        Args:
            x: (b, H, W, C) float32 in units of [0, 1], which may be changed, or uint8.
            seed, first: of the draws, and the place in the pass of the first image.

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
        """All of it: `lasting`, then `draw` where a seed is given.

        Args:
            images: (b, H, W, C) uint8, or floats in units of [0, 1].
            labels: (b,) int64.
            seed, first: as for `draw`. None leaves out what is drawn.

        Returns:
            (b, H, W, C) float32 in units of [0, 1], not clipped.
        """
        x = self.lasting(images, labels)
        return x if seed is None else self.draw(x, seed, first)


@torch.no_grad()
def _filtered(x: Tensor, steps: tuple[Filter, ...]) -> Tensor:
    """Float images (b, H, W, C) through maps of (b, C, H, W)."""
    x = x.permute(0, 3, 1, 2)
    for step in steps:
        x = step(x)
    return x.permute(0, 2, 3, 1)
