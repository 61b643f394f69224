"""Where the operators' results and scratch are allocated: dtype and device always given, never the caller's defaults.

A kernel writes by address, and in a tensor of a default dtype narrower than its own it would write past the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension

CPU = torch.device("cpu")

# Results from this size on are put on large pages: glibc maps and unmaps them at every call.
HUGE_BYTES = 16 << 20


def result(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A fresh tensor; on the CPU on large pages if it is large."""
    out = torch.empty(shape, dtype=dtype, device=device)
    if out.nbytes >= HUGE_BYTES and device.type == "cpu":
        _extension.load().advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A result that a kernel adds to, or that needs no kernel."""
    return torch.zeros(shape, dtype=dtype, device=device)


def scratch(*sizes: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor | None:
    """Room that a kernel needs while it runs, its `address` being 0 where it needs none."""
    return torch.empty(sizes, dtype=dtype, device=device) if 0 not in sizes else None
