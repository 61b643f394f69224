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
from .cpu import (
    _DTYPES,
    FUSED_RANK,
    PGD_NORMS,
    _rows,
    _signed,
    check_classwise,
    check_pgd_step,
    check_project,
    check_project_out,
    dense_layout,
)
from .schemas import LIBRARY


def enabled() -> bool:
    """Whether the kernels were asked for and are in this build."""
    return os.environ.get("ULFAST_CUDA_KERNELS") == "1" and hasattr(_extension.load(), "cuda")


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def project(x: Tensor, basis: Tensor) -> Tensor:
    d = check_project(x, basis)
    out = torch.empty(x.shape, dtype=reference.projected_dtype(x.dtype), device=x.device)
    _project_into(x, basis, out, d)
    return out


def project_out(x: Tensor, basis: Tensor, out: Tensor) -> None:
    d = check_project(x, basis)
    check_project_out(x, out)
    _project_into(x, basis, out, d)


def project_(x: Tensor, basis: Tensor) -> None:
    d = check_project(x, basis)
    if not x.is_floating_point():
        raise ValueError(f"project_: x must be a floating tensor, got {x.dtype}")
    _project_into(x, basis, x, d)


def _project_into(x: Tensor, basis: Tensor, out: Tensor, d: int) -> None:
    """The fused kernel up to `FUSED_RANK` rows of basis, library products above."""
    if not enabled() or basis.shape[0] > FUSED_RANK or not out.is_contiguous():
        out.copy_(reference.project(x, basis))
        return
    _project(x, basis, out, d, basis.shape[0], None, 0)


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    """As on the CPU, but a label out of range makes its row NaN: nothing here waits for the device."""
    if x.dtype not in _DTYPES or x.dim() < 2:
        raise TypeError(f"project_classwise: x must be (n, ...) of a number format, got {tuple(x.shape)} {x.dtype}")
    n, d = x.shape[0], math.prod(x.shape[1:])
    check_classwise("project_classwise", bases, labels, n, d)
    classes, r, _ = bases.shape
    if not enabled() or r > FUSED_RANK:
        return reference.project_classwise(x, bases, labels)
    out = torch.empty(x.shape, dtype=reference.projected_dtype(x.dtype), device=x.device)
    _project(x, bases, out, d, r, labels.contiguous(), classes)
    return out


def _project(x: Tensor, basis: Tensor, out: Tensor, d: int, k: int, labels: Tensor | None, classes: int) -> None:
    for name, t in (("basis", basis), ("out", out), ("labels", labels)):
        if t is not None and t.device != x.device:
            raise ValueError(f"project: {name} must be on {x.device} like x, got {t.device}")
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    basis = basis.to(compute).contiguous()
    order = None if labels is None else labels.argsort()  # rows of a label side by side share the reading of its basis
    rows, stride = _rows(x, d)
    n, kernels = x.shape[0], _extension.load().cuda
    with torch.cuda.device(x.device):
        coef = torch.empty(kernels.project_scratch(n, d, k, _DTYPES[x.dtype]), dtype=compute, device=x.device)
        kernels.project(
            rows.data_ptr(), basis.data_ptr(), coef.data_ptr(), out.data_ptr(), n, d, k, stride, _DTYPES[x.dtype],
            0 if labels is None else labels.data_ptr(), 0 if order is None else order.data_ptr(), classes,
            _stream(x.device),
        )  # fmt: skip


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


for _name in ("project", "project_out", "project_", "project_classwise"):
    LIBRARY.impl(_name, globals()[_name], "CUDA")
LIBRARY.impl("apply_perturbation", apply_perturbation, "CUDA")
LIBRARY.impl("pgd_step", pgd_step, "CUDA")
