"""Orthonormal rows of large matrices in bounded memory: Gram matrices summed over blocks of columns, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Numbers in a block, in float64: 64 MB.
BLOCK = 8 << 20


def _columns(matrix: Tensor) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, matrix.shape[0]))
    return (slice(begin, begin + step) for begin in range(0, matrix.shape[1], step))


def gram(matrix: Tensor) -> Tensor:
    """``matrix @ matrix.T`` of a (k, d) matrix, (k, k) float64, in memory independent of d."""
    out = torch.zeros(matrix.shape[0], matrix.shape[0], dtype=torch.float64, device=matrix.device)
    for columns in _columns(matrix):
        block = matrix[:, columns].double()
        out.addmm_(block, block.T)
    return out


def check_orthogonal(rows: Tensor) -> None:
    """Refuses rows (k, d) that do not define a projection: they must be orthogonal, with norms up to 1.

    Raises:
        ValueError: they are not, or are not finite.
    """
    if rows.is_meta or not rows.numel():
        return
    products = gram(rows.detach())
    norms = products.diagonal()
    # Rounding of the rows: a norm in bfloat16 is off by at most 2^-9, and so is a product of two.
    allowed = max(1e-3, 4 * torch.finfo(rows.dtype).eps) if rows.is_floating_point() else 0.0
    off = max(float((products - products.diag().diag()).abs().max()), float((norms - 1).max()))
    if not off <= allowed:
        raise ValueError(
            f"the rows of a basis must be orthonormal, and |B B^T - I| reaches {off:.3g}: orthonormalise them first,"
            " as ulfast.Basis.from_weights does, or torch.linalg.qr(rows.T).Q.T"
        )


def _times(left: Tensor, matrix: Tensor) -> Tensor:
    """``left @ matrix`` as float32, computed in float64; left is (r, k) float64."""
    out = torch.empty(left.shape[0], matrix.shape[1], dtype=torch.float32, device=matrix.device)
    for columns in _columns(matrix):
        out[:, columns] = (left @ matrix[:, columns].double()).float()
    return out


def orthonormal_rows(matrix: Tensor, tolerance: float) -> Tensor:
    """Orthonormal rows (r, d) float32 that span the rows of `matrix` (k, d), leading directions first.

    The eigenvectors of the Gram matrix give the right singular vectors; directions whose singular value is below
    `tolerance` of the largest are left out. The Gram matrix squares the condition number, so the result is
    orthogonalised once more by the Cholesky factor of its own Gram matrix, which brings the error from
    1e-16 / tolerance^2 down to float32's rounding.

    Source: Yamamoto et al., Roundoff error analysis of the CholeskyQR2 algorithm, ETNA 44, 2015.

    Memory: the result and a few blocks of 64 MB; `torch.linalg.qr` in float64 takes six times the matrix.
    """
    values, vectors = torch.linalg.eigh(gram(matrix))
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > max(float(values[0]), 0.0) * tolerance**2
    rows = _times((vectors[:, kept] / values[kept].sqrt()).T, matrix)
    if len(rows):
        factor = torch.linalg.cholesky(gram(rows))
        inverse = torch.linalg.solve_triangular(
            factor, torch.eye(len(rows), dtype=torch.float64, device=rows.device), upper=False
        )
        rows = _times(inverse, rows)
    return rows
