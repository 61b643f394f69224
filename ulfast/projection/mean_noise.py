"""Noise along the directions in which the class means differ, and a layer that adds it to batches.

What is added to every image of a class shows in the class's mean. If photographs also vary in that way, as with large
blocks of colour, projecting it out removes much of the photographs too. Adding random mixtures of the class means to
every image, redrawn every epoch, hides it instead: whatever filter a network finds, its responses to two classes differ
by no more than a fraction of their variation under the noise, and nothing is removed from the images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import distributed, ops
from ..data.class_moments import class_moments
from ..data.dataset import Dataset
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.progress import Progress
from .basis import Basis
from .pixel_layer import PixelLayer

SCALE = 2.0
EMPTY = 1e-8  # share of the largest variance below which a direction is rounding


@ordinary
def fit_mean_noise(
    dataset: Dataset, scale: float = SCALE, *, progress: Progress | None = None, shared: bool = False
) -> Tensor:
    """Rows whose mixtures with standard normal weights are noise with `scale` ** 2 times the covariance of the classes'
    mean images; each class counts the same.

    In any direction the variance of the class means is then 1 / `scale` ** 2 of that of the noise.

    Args:
        dataset: uint8 images (n, H, W, C) with labels, streamed once. Classes without an image are left out.
        scale: standard deviation of the noise over that of the class means.
        progress: called as ``progress("class means", done, total)``.
        shared: every process of `distributed.joined` reads its part of the images; all get the same rows.

    Returns:
        (k, H * W * C) float32 in units of [0, 1], orthogonal, the largest first; k < classes.

    Raises:
        InputError: the scale is negative or not finite.
    """
    if not 0 <= scale < float("inf"):
        raise InputError(f"the scale of the noise must be 0 or more, got {scale:g}")
    report = functools.partial(progress, "class means") if progress else None
    moments = class_moments(dataset, progress=report, shared=shared)
    means = moments.means()[moments.counts > 0].float()
    means -= means.mean(0)
    # The few directions that the means span, from their (c, c) products: c is small compared with the number of pixels.
    values, vectors = torch.linalg.eigh((means @ means.T).double() / len(means))
    kept = values > EMPTY * values[-1].clamp_min(1e-30)
    rows = (vectors[:, kept].flip(1).T.float() @ means) * (scale / len(means) ** 0.5)
    return distributed.same(rows) if shared else rows


def noise_scale(rows: Tensor) -> float:
    """A scale for `fit_mean_noise` when `rows` are projected out of the images: 1 if every direction is removed
    entirely, and up to 2 the more of one remains.

    A full projection leaves little of a pattern, and there noise costs more than it hides; a direction that remains in
    part is a pattern that the linear model has seen. docs/research/orthogonal-patch.md measures both.

    Args:
        rows: (k, d), orthogonal, with norms up to 1, from a `Basis` or `partial_rows`.
    """
    stays = 1 - rows.double().square().sum(1)
    return SCALE / 2 * (1 + float(stays.max().clamp(0, 1)) if len(rows) else 1)


class MeanNoise(PixelLayer):
    """Adds a random mixture of some rows to every image of a batch, in training mode; in evaluation it does nothing.

    Args:
        rows: (k, H * W * C) float, from `fit_mean_noise`.
        basis: a `Basis`, or its (k, H * W * C) rows, that was projected out of the images first; it is then removed
            from the noise too.
        mean, std: normalisation already applied to the batches; None for batches in [0, 1].

    Shape:
        (n, C, H, W) float in [0, 1], before crop and flip; the same, not clipped.

    The rows are a buffer: they move with `.to(device)` and are part of the `state_dict`. Weights come from the device's
    PyTorch generator.

    Example:
        >>> noise = ulfast.MeanNoise(ulfast.fit_mean_noise(dataset), basis)
        >>> loss = criterion(model(noise(projection(images))), labels)
    """

    def __init__(
        self,
        rows: Tensor,
        basis: Basis | Tensor | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(mean, std)
        if rows.dim() != 2:
            raise ValueError(f"the rows must be (k, d), got shape {tuple(rows.shape)}")
        self.rows: Tensor
        kept = rows.detach().clone()
        if basis is not None:
            kept = ops.project(kept, (basis.rows if isinstance(basis, Basis) else basis).to(kept))
        self.register_buffer("rows", kept)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x

    def pixels(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"expected (n, C, H, W), got {tuple(x.shape)}")
        n, c, h, w = x.shape
        if c * h * w != self.rows.shape[1]:
            raise ValueError(f"the noise has {self.rows.shape[1]} values per image, the images are {tuple(x.shape)}")
        weights = torch.randn(n, len(self.rows), device=x.device, dtype=self.rows.dtype)
        with torch.autocast(x.device.type, enabled=False):  # the caller's autocast is for the network
            noise = weights @ self.rows
        return x + noise.to(x.dtype).view(n, h, w, c).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"directions={self.rows.shape[0]}, features={self.rows.shape[1]}"
