"""The projections with the library's matrix products, for bases of so many rows that the fused kernels are slower.

Only what the two products need is allocated: the second product takes floats of the basis's dtype from `x` to `out`,
pixels are converted into `out`, and half precision is widened block by block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import reference

# Bytes of widened rows at a time: about a cache on the CPU; on a GPU, products large enough to fill it.
BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}


def _blocks(x: Tensor, basis: Tensor, out: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of `x` in the dtype of `basis`, and where their result may be computed, block by block: (rows, x, out).

    If `out` does not have the dtype of `basis`, the caller converts the result.
    """
    rows, flat = x.reshape(x.shape[0], basis.shape[-1]), out.view(x.shape[0], basis.shape[-1])
    device = x.device.type
    size = BLOCK_BYTES.get(device, BLOCK_BYTES["cuda"]) // max(1, basis.shape[-1] * basis.element_size())
    same = flat.dtype == basis.dtype
    if device != "cpu" and same and x.dtype == basis.dtype:
        size = len(rows)  # nothing is widened
    for begin in range(0, len(rows), max(1, size)):
        at = slice(begin, begin + max(1, size))
        part, target = rows[at], flat[at]
        if not same:
            yield at, reference.unit(part, basis.dtype), target
        elif part.dtype == torch.uint8:
            yield at, target.copy_(part).div_(255), target
        else:
            yield at, part, target


def _subtract(wide: Tensor, coef: Tensor, basis: Tensor, target: Tensor) -> None:
    """``target = wide - coef @ basis``."""
    if target.dtype != wide.dtype:
        target.copy_(torch.addmm(wide, coef, basis, alpha=-1))
    elif target.data_ptr() == wide.data_ptr():
        target.addmm_(coef, basis, alpha=-1)
    else:
        torch.addmm(wide, coef, basis, alpha=-1, out=target)


def project(x: Tensor, basis: Tensor, out: Tensor) -> None:
    """``out = x - (x @ basis.T) @ basis``; `basis` (k, d) in the dtype to compute in, `out` may be `x`."""
    for _, wide, target in _blocks(x, basis, out):
        _subtract(wide, wide @ basis.T, basis, target)


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    """As `project`, with each row projected by the basis of its label; a label out of range makes its row NaN.

    The products of all classes are computed and those of other classes set to zero, so there is no (n, r, d) gather and
    no wait for the device.
    """
    c, r, d = bases.shape
    flat = bases.reshape(c * r, d)
    own = labels[:, None] == torch.arange(c, dtype=torch.int64, device=labels.device)
    bad = ~own.any(1)
    own = own[:, :, None].expand(len(labels), c, r).reshape(len(labels), c * r)
    for at, wide, target in _blocks(x, flat, out):
        coef = torch.where(own[at], wide @ flat.T, 0.0)
        if not c * r:
            target.copy_(wide)
            target.masked_fill_(bad[at, None], torch.nan)
            continue
        # A NaN coefficient makes its whole row NaN.
        _subtract(wide, coef.masked_fill_(bad[at, None], torch.nan), flat, target)
