"""The operators that have CUDA kernels. The others run their twins on a GPU.

The kernels compile for every architecture of setup.py but have not been run on a GPU yet, so they are off unless
ULFAST_CUDA_KERNELS=1: without it a GPU computes with the twins in PyTorch.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from . import _extension, crossover, reference
from .cpu import (
    _DTYPES,
    _OUT,
    PGD_NORMS,
    _address,
    _rows,
    _signed,
    check_classwise,
    check_ingest,
    check_pgd_step,
    check_project,
    check_project_out,
    check_softmax,
    dense_layout,
)
from .schemas import LIBRARY

# The widest image row (width * channels) and the most channels that the ingest kernel's shared memory always holds.
INGEST_WIDTH, INGEST_CHANNELS = 4096, 64
# Beyond this many classes the library's matrix products win over the linear classifier's kernels.
SOFTMAX_CLASSES = 128


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
    """The fused kernel or library products, as `crossover` says."""
    if not enabled() or not out.is_contiguous() or not crossover.fused("cuda", "project", x.dtype, len(basis)):
        out.copy_(reference.project(x, basis))
        return
    _project(x, basis, out, d, basis.shape[0], None, 0)


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    """As on the CPU, but a label out of range makes its row NaN: nothing here waits for the device."""
    if not _classwise_kernel(x, bases, labels):
        return reference.project_classwise(x, bases, labels)
    out = torch.empty(x.shape, dtype=reference.projected_dtype(x.dtype), device=x.device)
    project_classwise_out(x, bases, labels, out)
    return out


def project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    kernel = _classwise_kernel(x, bases, labels)
    check_project_out(x, out)
    if not kernel:
        out.copy_(reference.project_classwise(x, bases, labels))
        return
    classes, r, d = bases.shape
    _project(x, bases, out, d, r, labels.contiguous(), classes)


def _classwise_kernel(x: Tensor, bases: Tensor, labels: Tensor) -> bool:
    """Whether the kernel takes it; raises for what neither it nor the twin can take."""
    if x.dtype not in _DTYPES or x.dim() < 2:
        raise TypeError(f"project_classwise: x must be (n, ...) of a number format, got {tuple(x.shape)} {x.dtype}")
    check_classwise("project_classwise", bases, labels, x.shape[0], math.prod(x.shape[1:]))
    return enabled() and crossover.fused("cuda", "project_classwise", x.dtype, bases.shape[1])


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


def _together(op: str, device: torch.device, **tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and t.device != device:
            raise ValueError(f"{op}: {name} must be on {device} like the first argument, got {t.device}")


def ingest(
    images: Tensor,
    basis: Tensor | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    index: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """As on the CPU, but an index or a label out of range makes its image NaN: nothing here waits for the device."""
    n_images, h, w, c = images.shape
    if (
        not enabled()
        or images.dtype != torch.uint8
        or h * w * c >= 2**31
        or w * c > INGEST_WIDTH
        or c > INGEST_CHANNELS
    ):
        return reference.ingest(images, basis, mean, std, dtype, index, shift, flip, labels).contiguous(
            memory_format=torch.channels_last
        )
    index, n, k = check_ingest(images, basis, mean, std, dtype, index, shift, flip, labels)
    _together("ingest", images.device, basis=basis, mean=mean, std=std, index=index, shift=shift, flip=flip,
              labels=labels)  # fmt: skip
    if basis is not None and not crossover.fused("cuda", "ingest", images.dtype, k):
        # Library products, then the pass of the augmentation.
        rows = images if index is None else images[index]
        x = project(rows, basis) if labels is None else project_classwise(rows, basis, labels)
        return reference.augment(x, mean, std, dtype, shift, flip).contiguous(memory_format=torch.channels_last)
    images, device, kernels = images.contiguous(), images.device, _extension.load().cuda
    mean, std = mean.float().contiguous(), std.float().contiguous()
    shift = None if shift is None else shift.contiguous()
    flip = None if flip is None else flip.contiguous()
    out = torch.empty((n, h, w, c), dtype=dtype, device=device)
    basis = basis.float().contiguous() if k and basis is not None else None
    labels = None if labels is None or not k else labels.contiguous()
    # Images of a label side by side share the reading of its basis.
    order = None if labels is None else labels.argsort()
    with torch.cuda.device(device):
        coef = torch.empty(kernels.ingest_scratch(n, h, w, c, k), device=device)
        kernels.ingest(
            images.data_ptr(), _address(basis), mean.data_ptr(), std.data_ptr(), _address(index), _address(shift),
            _address(flip), coef.data_ptr(), out.data_ptr(), n_images, n, h, w, c, k, _OUT[dtype], _address(labels),
            0 if basis is None else basis.shape[0], _address(order), _stream(device),
        )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, index: Tensor | None = None
) -> Tensor:
    """As on the CPU, but an index or a label out of range makes the loss and the weight NaN: nothing here waits for
    the device."""
    if not enabled() or len(weight) > SOFTMAX_CLASSES:
        return reference.softmax_regression_step(x, labels, weight, lr, index)
    index, n = check_softmax(x, labels, weight, index)
    _together("softmax_regression_step", x.device, labels=labels, weight=weight, index=index)
    c, d = weight.shape
    if not n * c * d:
        return torch.zeros(2, dtype=torch.float64, device=x.device)
    x, labels, device, kernels = x.contiguous(), labels.contiguous(), x.device, _extension.load().cuda
    with torch.cuda.device(device):
        products, parts = kernels.softmax_scratch(n, d, c, lr, _DTYPES[x.dtype])
        coef, grad = torch.empty(products, device=device), torch.empty(parts, c, d, device=device)
        result = torch.empty(2 + 2 * n, dtype=torch.float64, device=device)  # the two results, then the rows' own
        kernels.softmax_regression_step(
            x.data_ptr(), labels.data_ptr(), _address(index), weight.data_ptr(), coef.data_ptr(), grad.data_ptr(),
            result.data_ptr(), x.shape[0], n, d, c, lr, _DTYPES[x.dtype], _stream(device),
        )  # fmt: skip
    return result[:2]


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


for _name in ("project", "project_out", "project_", "project_classwise", "project_classwise_out"):
    LIBRARY.impl(_name, globals()[_name], "CUDA")
LIBRARY.impl("ingest", ingest, "CUDA")
LIBRARY.impl("softmax_regression_step", softmax_regression_step, "CUDA")
LIBRARY.impl("apply_perturbation", apply_perturbation, "CUDA")
LIBRARY.impl("pgd_step", pgd_step, "CUDA")
