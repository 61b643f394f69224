"""The base of the layers: they work on pixels, and warn if a batch does not hold pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# How far a pixel may be outside [0, 1]: projected or noisy images exceed it a little.
BEYOND = 0.25


class PixelLayer(nn.Module):
    """A layer that computes on pixels in [0, 1], before or after a normalisation.

    Args:
        mean, std: the normalisation ``(x - mean) / std`` already applied to the batches: a number, or C of them, in
            units of [0, 1]. The layer undoes it, works on the pixels, and normalises the result again. None: the
            batches are pixels.

    Raises:
        ValueError: only one of `mean` and `std` is given, or `std` is not above zero.
    """

    def __init__(self, mean: float | Sequence[float] | Tensor | None, std: float | Sequence[float] | Tensor | None):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together: give both, or none for batches in [0, 1]")
        self.mean: Tensor | None = None
        self.std: Tensor | None = None
        if mean is not None and std is not None:  # torch.export fails on buffers that are None
            del self.mean, self.std
            self.register_buffer("mean", _values(mean))
            self.register_buffer("std", _values(std))
        if self.std is not None and not bool((self.std > 0).all()):
            raise ValueError(f"std must be above zero, got {self.std.tolist()}")
        self._seen = False

    def forward(self, x: Tensor) -> Tensor:
        _images(x)
        self._look(x)
        if self.mean is None or self.std is None:
            return self.pixels(x)
        if not x.is_floating_point():
            raise ValueError(f"a batch of {x.dtype} is not normalised: leave mean and std out")
        # In float32 at least: the spacing of normalised half-precision values is not that of pixels.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, std = _channels(self.mean, wide), _channels(self.std, wide)
        return ((self.pixels(wide * std + mean) - mean) / std).to(x.dtype)

    def pixels(self, x: Tensor) -> Tensor:
        """Applies the layer to pixels."""
        raise TypeError(f"{type(self).__name__} does not say what to do")

    def _look(self, x: Tensor) -> None:
        """Warns once if the first batch cannot be pixels. Compiled and captured graphs are not checked."""
        if torch.compiler.is_compiling() or self._seen or self.mean is not None:
            return
        self._seen = True
        if not x.is_floating_point() or not x.numel() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        try:
            low, high = (float(value) for value in torch.aminmax(x.detach()))
        except RuntimeError:  # a tensor without values: fake, meta, or in vmap
            return
        if low < -BEYOND or high > 1 + BEYOND:
            warnings.warn(
                f"{type(self).__name__} works on pixels in [0, 1], and this batch reaches from {low:.3g} to {high:.3g}:"
                f" if it is normalised, give {type(self).__name__}(..., mean=, std=); if it is in [0, 255], divide it",
                stacklevel=4,
            )


def _values(values: float | Sequence[float] | Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).detach().clone().reshape(-1)


def _images(x: Tensor) -> None:
    if x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        raise ValueError(f"expected (n, C, H, W), got {tuple(x.shape)}, which looks like NHWC: permute(0, 3, 1, 2)")


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Reshapes values per channel to broadcast against a batch (n, C, H, W), or rows (n, d) in NHWC order."""
    values = values.to(x)
    if len(values) == 1:
        return values
    if x.dim() == 4 and x.shape[1] == len(values):
        return values.view(-1, 1, 1)
    if x.dim() == 2 and x.shape[1] % len(values) == 0:
        return values.repeat(x.shape[1] // len(values))
    raise ValueError(f"mean and std have {len(values)} values, the batch is {tuple(x.shape)}")
