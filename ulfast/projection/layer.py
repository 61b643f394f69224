"""Layers for any model and training loop."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import ops
from .basis import Basis
from .orthonormal import check_orthogonal
from .pixel_layer import PixelLayer


class OrthogonalProjection(PixelLayer):
    """Removes a basis from a batch of images: ``x - (x B^T) B``, without clipping.

    Args:
        basis: a `Basis`, or a (k, d) float tensor in NHWC pixel order: orthonormal rows, or orthogonal rows of norm
            below 1, which are removed in part (`partial_rows`).
        mean, std: normalisation already applied to the batches, a number or C of them, so that the layer can follow
            `Normalize` inside the model; None for batches in [0, 1].

    Shape:
        (n, C, H, W), any memory format (channels_last, the order of the basis, is fastest), or (n, d) rows in NHWC
        order. uint8 is read as x / 255 and gives float32; floating dtypes are kept.

    Raises:
        ValueError: the rows are not orthogonal, or the images do not have the shape of those to which the `Basis` was
            fitted, for example (n, H, W, C).

    Warns once if the first batch does not lie in [0, 1] and no `mean` and `std` are given.

    The basis is a buffer: it moves with `.to(device)` and is part of the `state_dict`.

    Example:
        >>> projection = ulfast.OrthogonalProjection(ulfast.fit_basis(dataset))
        >>> loss = criterion(model(projection(images)), labels)
    """

    def __init__(
        self,
        basis: Basis | Tensor,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(mean, std)
        rows = basis.rows if isinstance(basis, Basis) else basis
        if rows.dim() != 2:
            raise ValueError(f"the basis must be (k, d), got shape {tuple(rows.shape)}")
        check_orthogonal(rows)
        # For a Basis: a batch in another order has as many values, and the wrong pixels would be removed.
        self.image_shape = tuple(basis.image_shape) if isinstance(basis, Basis) else None
        self.basis: Tensor
        self.register_buffer("basis", rows.detach().clone())

    def pixels(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            if self.image_shape is not None and (*x.shape[2:], x.shape[1]) != self.image_shape:
                height, width, channels = self.image_shape
                raise ValueError(f"expected (n, {channels}, {height}, {width}), got {tuple(x.shape)}")
            return ops.project(x.permute(0, 2, 3, 1), self.basis).permute(0, 3, 1, 2)
        if x.dim() != 2:
            raise ValueError(f"expected (n, C, H, W), or (n, d) rows in NHWC order, got {tuple(x.shape)}")
        return ops.project(x, self.basis)

    def extra_repr(self) -> str:
        return f"directions={self.basis.shape[0]}, features={self.basis.shape[1]}"
