"""Transforms for other input pipelines; torchvision is not needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .projection.basis import Basis
from .projection.layer import OrthogonalProjection


class Project:
    """Removes a basis from an image or a batch, as a callable for a `torchvision.transforms`-style compose.

    Place it where pixels are still unshifted and in [0, 1]: after `ToTensor`, before crops, flips and `Normalize`.

    Args:
        basis: a `Basis`, or a (k, d) float tensor in NHWC pixel order: orthonormal rows, or `partial_rows`.

    Shape:
        A (C, H, W) image or (n, C, H, W) batch, float in [0, 1] or uint8; or a PIL image or (H, W, C) uint8 array.
        Returns a float tensor (C, H, W) or (n, C, H, W).

    Raises:
        ValueError: the rows are not orthogonal, or the images do not have the shape of those of the `Basis`.
    """

    def __init__(self, basis: Basis | Tensor) -> None:
        self._project = OrthogonalProjection(basis)

    def __call__(self, image: Tensor | np.ndarray | object) -> Tensor:
        if not isinstance(image, Tensor):
            array = np.asarray(image)
            if array.dtype != np.uint8:
                raise TypeError(f"an image that is not a tensor must be uint8, got {array.dtype}")
            image = torch.from_numpy(np.array(array[..., None] if array.ndim == 2 else array)).permute(2, 0, 1)
        if image.dim() == 3:
            return self(image[None])[0]
        if image.dim() != 4:
            raise ValueError(f"expected (C, H, W) or (n, C, H, W), got shape {tuple(image.shape)}")
        if self._project.basis.device != image.device:
            self._project.to(image.device)
        return self._project(image)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._project.extra_repr()})"
