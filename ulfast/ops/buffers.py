"""Allocates the operators' results and scratch, always with explicit dtype and device, never the caller's defaults.

A kernel writes by address: in a tensor of a default dtype narrower than its own it would write past the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension

CPU = torch.device("cpu")

# Results of at least this size use large pages: glibc maps and unmaps them at every call.
HUGE_BYTES = 16 << 20


def result(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A new tensor; a large one on the CPU uses large pages."""
    out = torch.empty(shape, dtype=dtype, device=device)
    if out.nbytes >= HUGE_BYTES and device.type == "cpu":
        _extension.load().advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """A result that a kernel adds to, or that needs no kernel."""
    return torch.zeros(shape, dtype=dtype, device=device)


def scratch(*sizes: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor | None:
    """Scratch memory for a kernel; its `address` is 0 if the kernel needs none."""
    return torch.empty(sizes, dtype=dtype, device=device) if 0 not in sizes else None
