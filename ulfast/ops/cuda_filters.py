"""`patch_filter` on a GPU, with the library's convolutions.

An image is cut into nine regions: the interior and, as wide as the filters reach, four sides and four corners. Each
region is one convolution. At a border its filters span all the 2 r rows (columns) that border pixels read, and have an
output channel for each of the r rows: there every pixel has its own weights, shifted to their place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_patch_filter
from .schemas import kernel
from .state import FULL_CONVOLUTIONS

BORDERS = ("first", "interior", "last")


@kernel("CUDA")
def patch_filter(x: Tensor, filters: Tensor) -> Tensor:
    check_patch_filter(x, filters)
    n, _, _, c = x.shape
    out = x.clone(memory_format=torch.contiguous_format)
    if not x.numel():
        return out
    images, filters = x.permute(0, 3, 1, 2), filters.to(x.dtype)
    with FULL_CONVOLUTIONS:
        for rows in BORDERS:
            own_rows, seen_rows, kinds_y, taps_y = _region(rows, x.shape[1], len(filters), x.device)
            for columns in BORDERS:
                own_columns, seen_columns, kinds_x, taps_x = _region(columns, x.shape[2], len(filters), x.device)
                target = out[:, own_rows, own_columns]
                if not target.numel():  # a filter of one pixel has no border
                    continue
                weights = _weights(filters, kinds_y, taps_y, kinds_x, taps_x)
                answer = torch.nn.functional.conv2d(images[:, :, seen_rows, seen_columns], weights)
                # A row of the region is an output channel or a position of the filter, and so is a column.
                ky, kx, (h, w) = len(kinds_y), len(kinds_x), answer.shape[2:]
                target.view(n, ky, h, kx, w, c).sub_(answer.view(n, ky, kx, c, h, w).permute(0, 1, 4, 2, 5, 3))
    return out


def _region(place: str, side: int, taps: int, device: torch.device) -> tuple[slice, slice, Tensor, Tensor]:
    """Along one axis of the images: the pixels of a region; the pixels that they read; the kinds (k,) of the former;
    and, (k, seen), the tap of each kind that meets each pixel read, out of range where none does.
    """
    r = taps // 2
    at = torch.arange(taps, dtype=torch.int64, device=device)
    if place == "interior":
        return slice(r, side - r), slice(0, side), at[r : r + 1], at[None]
    seen, own = at[: 2 * r], at[:r]
    if place == "first":
        return slice(0, r), slice(0, 2 * r), own, seen - own[:, None] + r
    return slice(side - r, side), slice(side - 2 * r, side), own + r + 1, seen - own[:, None]


def _weights(filters: Tensor, kinds_y: Tensor, taps_y: Tensor, kinds_x: Tensor, taps_x: Tensor) -> Tensor:
    """Weights of a region's convolution: (kinds of rows * kinds of columns * C, C, rows seen, columns seen)."""
    taps, c = filters.shape[0], filters.shape[-1]
    y, x = taps_y[:, None, :, None], taps_x[None, :, None, :]
    there = (y >= 0) & (y < taps) & (x >= 0) & (x < taps)
    last = taps - 1
    found = filters[kinds_y[:, None, None, None], kinds_x[None, :, None, None], y.clamp(0, last), x.clamp(0, last)]
    found = torch.where(there[..., None, None], found, 0.0)
    return found.permute(0, 1, 5, 4, 2, 3).reshape(-1, c, taps_y.shape[1], taps_x.shape[1])
