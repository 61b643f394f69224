"""The operators that have CUDA kernels. The others run their twins on a GPU.

The kernels compile for every architecture of setup.py but have not been run on a GPU yet, so they are off unless
ULFAST_CUDA_KERNELS=1: without it a GPU computes with the twins in PyTorch.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from . import _extension, reference
from .cpu import PGD_NORMS, _signed, check_pgd_step, dense_layout
from .schemas import LIBRARY


def enabled() -> bool:
    """Whether the kernels were asked for and are in this build."""
    return os.environ.get("ULFAST_CUDA_KERNELS") == "1" and hasattr(_extension.load(), "cuda")


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def apply_perturbation(images: Tensor, delta: Tensor, index: Tensor | None = None, truncate: bool = False) -> Tensor:
    """As on the CPU, but an index out of range leaves its image as it was: nothing here waits for the device."""
    if not enabled() or images.dtype != torch.uint8 or delta.shape[1:] != images.shape[1:]:
        return reference.apply_perturbation(images, delta, index, truncate)
    rows = len(images) if index is None else len(index)
    if rows != len(images) or (index is None and len(delta) != rows):
        raise ValueError(f"apply_perturbation: {len(images)} images need as many rows of delta, or an index of them")
    images, delta = images.contiguous(), delta.to(images.device, torch.float32).contiguous()
    index = None if index is None else index.to(images.device, torch.int64).contiguous()
    out = torch.empty_like(images)
    with torch.cuda.device(images.device):
        _extension.load().cuda.apply_perturbation(
            images.data_ptr(), delta.data_ptr(), 0 if index is None else index.data_ptr(), out.data_ptr(), rows,
            math.prod(images.shape[1:]), len(delta), truncate, _stream(images.device),
        )  # fmt: skip
    return out


def pgd_step(
    x: Tensor, grad: Tensor, start: Tensor, alpha: float, eps: float, norm: str, clamp: bool = True
) -> None:  # fmt: skip
    check_pgd_step(x, grad, start, eps, norm)
    layout = dense_layout(x)
    if not enabled() or layout is None:
        return reference.pgd_step(x, grad, start, alpha, eps, norm, clamp)
    grad, start = grad.contiguous(memory_format=layout), start.contiguous(memory_format=layout)
    with torch.cuda.device(x.device):
        _extension.load().cuda.pgd_step(
            x.data_ptr(), grad.data_ptr(), start.data_ptr(), x.shape[0], math.prod(x.shape[1:]), alpha, eps,
            PGD_NORMS[norm], clamp, _stream(x.device),
        )  # fmt: skip
    return None


def philox(name: str, seed: int, stream: int, first: int, n: int, d: int, device: torch.device) -> Tensor:
    """`philox_uniform` or `philox_normal` on a device that is not the CPU."""
    if device.type != "cuda" or not enabled():
        twin = reference.philox_uniform if name == "uniform" else reference.philox_normal
        return twin(seed, stream, first, n, d, device=device)
    out = torch.empty(n, d, device=device)
    with torch.cuda.device(device):
        kernel = getattr(_extension.load().cuda, f"philox_{name}")
        kernel(out.data_ptr(), _signed(seed), stream, first, n, d, _stream(device))
    return out


LIBRARY.impl("apply_perturbation", apply_perturbation, "CUDA")
LIBRARY.impl("pgd_step", pgd_step, "CUDA")
