"""Transforms for other people's input pipelines; torchvision is not needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import ops
from .projection.basis import Basis


class Project:
    """Removes a basis from an image or a batch, as a callable for a `torchvision.transforms`-style compose.

    Put it where pixels are still unshifted and in [0, 1]: after `ToTensor`, before crops, flips and `Normalize`.

    Args:
        basis: a `Basis`, or a (k, d) float tensor with orthonormal rows in NHWC pixel order.

    Shape:
        A (C, H, W) image or (n, C, H, W) batch, float in [0, 1] or uint8; or a PIL image or (H, W, C) uint8 array.
        Returns a float tensor (C, H, W) or (n, C, H, W).
    """

    def __init__(self, basis: Basis | Tensor) -> None:
        self.basis = (basis.rows if isinstance(basis, Basis) else basis).detach()

    def __call__(self, image: Tensor | np.ndarray | object) -> Tensor:
        if not isinstance(image, Tensor):
            array = np.asarray(image)
            if array.dtype != np.uint8:
                raise TypeError(f"an image that is not a tensor must be uint8, got {array.dtype}")
            tensor = torch.from_numpy(np.array(array[..., None] if array.ndim == 2 else array))
            return ops.project(tensor[None], self._on(tensor)).permute(0, 3, 1, 2)[0]
        if image.dim() == 3:
            return self(image[None])[0]
        if image.dim() != 4:
            raise ValueError(f"expected (C, H, W) or (n, C, H, W), got shape {tuple(image.shape)}")
        return ops.project(image.permute(0, 2, 3, 1), self._on(image)).permute(0, 3, 1, 2)

    def _on(self, image: Tensor) -> Tensor:
        if self.basis.device != image.device:
            self.basis = self.basis.to(image.device)
        return self.basis

    def __repr__(self) -> str:
        return f"{type(self).__name__}(directions={self.basis.shape[0]}, features={self.basis.shape[1]})"
