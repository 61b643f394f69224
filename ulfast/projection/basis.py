"""`Basis`: the orthonormal directions that the projection removes, and their origin."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.files import atomic_file
from ..runtime.made import expand
from ..runtime.reading import reading, regular
from .orthonormal import gram, orthonormal_rows

# Singular values of the row-normalised weights below this share of the largest are rounding, not directions: the
# weights are float32 after thousands of updates.
RANK_TOLERANCE = 1e-5
# Weights with more numbers than this are not copied to float64 as a whole.
LARGE = 1 << 26
# Largest accepted entry of |rows @ rows.T - I| for rows that are read: far above float32's rounding.
ORTHOGONAL = 1e-3


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal rows that span what a linear model learned.

    Two are equal if rows, image shape and weights are equal to the bit. How they were fitted (`metadata`) and their
    device make no difference.

    Attributes:
        rows: (k, d) float32 tensor with ``rows @ rows.T = I``; d = H * W * C, pixels in NHWC order.
        image_shape: (H, W, C).
        weights: (c, d) float32 weights from which the rows were made, one row per class, or None. They span the same
            space and look like the class perturbations.
        metadata: how it was fitted (JSON-serialisable).
    """

    rows: Tensor
    image_shape: tuple[int, int, int]
    weights: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or self.rows.shape[1] != int(np.prod(self.image_shape)):
            raise ValueError(
                f"basis rows must be (k, {int(np.prod(self.image_shape))}) for images of shape"
                f" {tuple(self.image_shape)}, got {tuple(self.rows.shape)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Basis):
            return NotImplemented
        if (self.weights is None) != (other.weights is None) or self.image_shape != other.image_shape:
            return False
        pairs = [(self.rows, other.rows)]
        if self.weights is not None and other.weights is not None:
            pairs.append((self.weights, other.weights))
        return all(a.shape == b.shape and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((self.image_shape, tuple(self.rows.shape), tuple(self.rows[:1, :16].flatten().tolist())))

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        fitted = self.metadata.get("method") or self.metadata.get("fit")
        return (
            f"Basis({self.rank} directions of {height} x {width} x {channels} images"
            f"{f', {fitted}' if fitted else ''}, {self.rows.dtype}, {self.rows.device})"
        )

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.rows.shape[0]

    @property
    def orthogonality_error(self) -> float:
        """Largest entry of ``|rows @ rows.T - I|``, in float64."""
        if not self.rank:
            return 0.0
        return float((gram(self.rows.cpu()) - torch.eye(self.rank, dtype=torch.float64, device="cpu")).abs().max())

    @classmethod
    @ordinary
    def from_weights(cls, weights: Tensor, image_shape: tuple[int, int, int], metadata: dict[str, Any]) -> Basis:
        """Orthonormalise the rows of a linear model's weights (c, d), in float64.

        Every row is divided by its norm, as in the paper, followed by QR; a singular value decomposition of the small
        triangular factor drops empty directions (a softmax classifier started at zero has rank c - 1, since its rows
        sum to zero). Above 0.5 GB of float64, `orthonormal_rows` does the same in bounded memory.

        Raises:
            InputError: the weights are not finite.
        """
        if not torch.isfinite(weights).all():
            raise InputError("the linear model's weights are not finite: lower the learning rate of the fit")
        if weights.numel() > LARGE:
            norms = torch.linalg.vector_norm(weights, dim=1, dtype=torch.float64, keepdim=True)
            scaled = (weights / norms.clamp_min(1e-30)).float()[norms[:, 0] > 0]
            rows = orthonormal_rows(scaled, RANK_TOLERANCE) if len(scaled) else torch.empty(0, weights.shape[1])
            return cls._found(rows, weights, image_shape, metadata)
        w = weights.double()
        norms = w.norm(dim=1, keepdim=True)
        w = (w / norms.clamp_min(1e-300))[(norms[:, 0] > 0)]
        if not len(w):
            rows = torch.empty(0, weights.shape[1])
        else:
            q, r = torch.linalg.qr(w.T)
            u, s, _ = torch.linalg.svd(r)
            rows = (q @ u[:, : len(s)][:, s > RANK_TOLERANCE * s[0]]).T.float().contiguous()
        return cls._found(rows, weights, image_shape, metadata)

    @classmethod
    def _found(
        cls, rows: Tensor, weights: Tensor, image_shape: tuple[int, int, int], metadata: dict[str, Any]
    ) -> Basis:
        metadata = {**metadata, "rank": len(rows), "classes": len(weights)}
        basis = cls(rows, image_shape, weights.float().contiguous(), metadata)
        metadata["orthogonality_error"] = basis.orthogonality_error
        return basis

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file (atomically)."""
        path = Path(path)
        tensors = {"rows": self.rows.contiguous()}
        if self.weights is not None:
            tensors["weights"] = self.weights.contiguous()
        text = {
            "format": "ulfast-basis-1",
            "image_shape": json.dumps(list(self.image_shape)),
            "metadata": json.dumps(self.metadata),
        }
        with atomic_file(path) as part:
            part.write_bytes(save(tensors, metadata=text))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Basis:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or is not a basis.
        """
        path = expand(path)
        if not path.exists():
            raise InputError(f"there is no basis file {path}: make one with `ulfast fit`")
        with reading(path, "make one with `ulfast fit`", "as a basis"):
            with safe_open(regular(path), framework="pt") as f:
                text = f.metadata() or {}
                if text.get("format") != "ulfast-basis-1":
                    raise InputError(f"{path} is not a basis file of ulfast: make one with `ulfast fit`")
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
            height, width, channels = (int(side) for side in json.loads(text["image_shape"]))
            metadata, rows, weights = json.loads(text["metadata"]), tensors["rows"], tensors.get("weights")
            if not isinstance(metadata, dict):
                raise ValueError("no metadata")
            if {one.dtype for one in (rows, weights) if one is not None} != {torch.float32}:
                raise ValueError("rows or weights that are not float32")
            basis = cls(rows, (height, width, channels), weights, metadata)
            if weights is not None and (weights.dim() != 2 or weights.shape[1] != rows.shape[1]):
                raise ValueError(f"weights of shape {tuple(weights.shape)}")
            if not (error := basis.orthogonality_error) <= ORTHOGONAL:  # NaN too
                raise ValueError(f"its rows are not orthonormal, they are off by {error:.2g}")
        return basis

    def images(self) -> np.ndarray:
        """The directions as pictures, (c or k, H, W, C) float32 in [0, 1], zero at mid-gray.

        Shows the weights per class if known, since those resemble the class perturbations, otherwise the rows.
        """
        source = self.rows if self.weights is None else self.weights
        pictures = source.reshape(-1, *self.image_shape).float().numpy()
        peak = np.abs(pictures).max(axis=(1, 2, 3), keepdims=True)
        return 0.5 + 0.5 * pictures / np.maximum(peak, 1e-30)
