"""The operators that have CUDA kernels. The others run their twins on the GPU.

A kernel is used if it agrees with its twin on the GPU at hand (`verification`); otherwise PyTorch computes.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor

from . import _extension, crossover, products, reference
from .arguments import (
    DTYPES,
    address,
    check_apply_perturbation,
    check_ingest,
    check_pgd_step,
    check_project,
    check_project_,
    check_project_classwise,
    check_project_classwise_out,
    check_project_out,
    check_softmax_regression_step,
    dense_layout,
    rows_of,
)
from .buffers import result, scratch, zeros
from .schemas import kernel
from .verification import enabled

# Above this many classes the library's matrix products beat the linear classifier's kernels.
SOFTMAX_CLASSES = 128


def stream(device: torch.device) -> int:
    """Address of the device's current stream; the public function would create an object at each call."""
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if raw is None:
        return torch.cuda.current_stream(device).cuda_stream
    return raw(torch.cuda.current_device() if device.index is None else device.index)


def guard(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the tensors' device current if it is not: kernel launches and queries of shared-memory limits use the
    current device.
    """
    return _NO_GUARD if device.index == torch.cuda.current_device() else torch.cuda.device(device)


_NO_GUARD = contextlib.nullcontext()


@kernel("CUDA")
def project(x: Tensor, basis: Tensor) -> Tensor:
    d = check_project(x, basis)
    out = result(x.shape, reference.projected_dtype(x.dtype), x.device)
    _project_into(x, basis, out, d)
    return out


@kernel("CUDA")
def project_out(x: Tensor, basis: Tensor, out: Tensor) -> None:
    d = check_project_out(x, basis, out)
    _project_into(x, basis, out, d)


@kernel("CUDA")
def project_(x: Tensor, basis: Tensor) -> None:
    d = check_project_(x, basis)
    _project_into(x, basis, x, d)


def _project_into(x: Tensor, basis: Tensor, out: Tensor, d: int) -> None:
    """The fused kernel or library products, as chosen by `crossover`."""
    if not out.numel():
        return
    k = len(basis)
    if (
        not enabled("project", x.device)
        or not crossover.fused("cuda", "project", x.dtype, k)
        or (k > crossover.CUDA_CORES_RANK and not _takes_tensor_cores(x, out, d, k))
    ):
        products.project(x, _wide(basis, x), out)
        return
    _project(x, basis, out, d, k, None, 0)


def _takes_tensor_cores(x: Tensor, out: Tensor, d: int, k: int) -> bool:
    rows, stride = rows_of(x, d)
    if rows.data_ptr() % 16 or out.data_ptr() % 16:
        return False
    with guard(x.device):
        return bool(
            _extension.load().cuda.project_takes_tensor_cores(
                n=x.shape[0], d=d, k=k, x_stride=stride, dtype=DTYPES[x.dtype], classes=0
            )
        )


@kernel("CUDA")
def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    """As on the CPU, but a label out of range makes its row NaN, since nothing here waits for the device."""
    d = check_project_classwise(x, bases, labels)
    out = result(x.shape, reference.projected_dtype(x.dtype), x.device)
    _classwise_into(x, bases, labels, out, d)
    return out


@kernel("CUDA")
def project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    d = check_project_classwise_out(x, bases, labels, out)
    _classwise_into(x, bases, labels, out, d)


def _classwise_into(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor, d: int) -> None:
    """As `_project_into`."""
    classes, r, _ = bases.shape
    if not out.numel():
        return
    if not enabled("project_classwise", x.device) or not crossover.fused("cuda", "project_classwise", x.dtype, r):
        products.project_classwise(x, _wide(bases, x), labels, out)
        return
    _project(x, bases, out, d, r, labels.contiguous(), classes)


def _wide(basis: Tensor, x: Tensor) -> Tensor:
    """The basis in the dtype that the rows of x are computed in."""
    return basis.to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()


def _project(x: Tensor, basis: Tensor, out: Tensor, d: int, k: int, labels: Tensor | None, classes: int) -> None:
    basis = _wide(basis, x)
    rows, stride = rows_of(x, d)
    n, kernels = x.shape[0], _extension.load().cuda
    with guard(x.device):
        sizes = {"n": n, "d": d, "k": k, "x_stride": stride, "dtype": DTYPES[x.dtype], "classes": classes}
        coef = scratch(kernels.project_scratch(**sizes), dtype=basis.dtype, device=x.device)
        # Adjacent rows with the same label share reads of its basis where that is not kept.
        order = labels.argsort() if labels is not None and kernels.project_sorts(**sizes) else None
        kernels.project(
            x=rows.data_ptr(),
            basis=basis.data_ptr(),
            coef=address(coef),
            out=out.data_ptr(),
            labels=address(labels),
            order=address(order),
            packed=0,
            **sizes,
            cuda_stream=stream(x.device),
        )


@kernel("CUDA")
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
    """As on the CPU, but an index or label out of range makes its image NaN, since nothing here waits for the
    device.
    """
    n, k = check_ingest(images, basis, mean, std, dtype, index, shift, flip, labels)
    n_images, h, w, c = images.shape
    if not n * h * w * c:
        return result((n, h, w, c), dtype, images.device).permute(0, 3, 1, 2)
    kernels = _extension.load().cuda if enabled("ingest", images.device) else None
    if (
        kernels is None
        or images.dtype != torch.uint8
        or h * w * c >= 2**31
        or w * c > kernels.ingest_width
        or c > kernels.ingest_channels
        or (basis is not None and not crossover.fused("cuda", "ingest", images.dtype, k))
    ):
        return _ingest_products(images, basis, mean, std, dtype, index, shift, flip, labels)
    images, device = images.contiguous(), images.device
    mean, std = mean.float().contiguous(), std.float().contiguous()
    shift = None if shift is None else shift.contiguous()
    flip = None if flip is None else flip.contiguous()
    index = None if index is None else index.contiguous()
    out = result((n, h, w, c), dtype, device)
    basis = basis.float().contiguous() if k and basis is not None else None
    labels = None if labels is None or not k else labels.contiguous()
    with guard(device):
        sizes = {
            "images_n": n_images,
            "n": n,
            "h": h,
            "w": w,
            "c": c,
            "k": k,
            "out_dtype": DTYPES[dtype],
            "classes": 0 if basis is None or labels is None else len(basis),
            "in_dtype": DTYPES[images.dtype],
        }
        coef = scratch(kernels.ingest_scratch(**sizes), device=device)
        order = labels.argsort() if labels is not None and kernels.ingest_sorts(**sizes) else None
        kernels.ingest(
            images=images.data_ptr(),
            basis=address(basis),
            mean=mean.data_ptr(),
            std=std.data_ptr(),
            index=address(index),
            shift=address(shift),
            flip=address(flip),
            coef=address(coef),
            out=out.data_ptr(),
            labels=address(labels),
            order=address(order),
            **sizes,
            cuda_stream=stream(device),
        )
    return out.permute(0, 3, 1, 2)


def _ingest_products(
    images: Tensor,
    basis: Tensor | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    index: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """The twin, but the projection writes directly into the float images, in whichever way is faster."""
    outside, images = (None, images) if index is None else reference.picked(images, index)
    if basis is None:
        x = reference.unit(images)
    else:
        # As float32, in which `ingest` computes.
        rows = images if images.dtype == torch.uint8 else images.float()
        x = result(rows.shape, torch.float32, images.device)
        if labels is None:
            _project_into(rows, basis, x, basis.shape[1])
        else:
            _classwise_into(rows, basis, labels, x, basis.shape[2])
            strange = reference.inside(labels, len(basis))[0]
            outside = strange if outside is None else outside | strange
    x = reference.augment(x, mean, std, dtype, shift, flip, outside)
    return x.contiguous(memory_format=torch.channels_last)


@kernel("CUDA")
def softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, index: Tensor | None = None
) -> Tensor:
    """As on the CPU, but an index or a label out of range makes the loss and the weight NaN, since nothing here waits
    for the device.
    """
    n = check_softmax_regression_step(x, labels, weight, lr, index)
    c, d = weight.shape
    if not n * c:
        return zeros((2,), torch.float64, x.device)
    if not enabled("softmax_regression_step", x.device) or not d or c > SOFTMAX_CLASSES:
        return reference.softmax_regression_step(x, labels, weight, lr, index)
    x, labels, device, kernels = x.contiguous(), labels.contiguous(), x.device, _extension.load().cuda
    index = None if index is None else index.contiguous()
    with guard(device):
        sizes = {"rows": x.shape[0], "n": n, "d": d, "c": c, "lr": lr, "dtype": DTYPES[x.dtype]}
        coef = scratch(kernels.softmax_scratch(**sizes), device=device)
        grad = scratch(kernels.softmax_parts(**sizes), c, d, device=device)
        out = result((2 + 2 * n,), torch.float64, device)  # the two results, then those of each row
        kernels.softmax_regression_step(
            x=x.data_ptr(),
            labels=labels.data_ptr(),
            index=address(index),
            weight=weight.data_ptr(),
            coef=address(coef),
            grad=address(grad),
            result=out.data_ptr(),
            **sizes,
            cuda_stream=stream(device),
        )
    return out[:2]


@kernel("CUDA")
def apply_perturbation(images: Tensor, delta: Tensor, index: Tensor | None = None, truncate: bool = False) -> Tensor:
    """As on the CPU, but an index out of range leaves its image unchanged, since nothing here waits for the device."""
    check_apply_perturbation(images, delta, index, truncate)
    if not enabled("apply_perturbation", images.device):
        return reference.apply_perturbation(images, delta, index, truncate)
    images, delta = images.contiguous(), delta.float().contiguous()
    index = None if index is None else index.contiguous()
    out = torch.empty_like(images)
    with guard(images.device):
        _extension.load().cuda.apply_perturbation(
            images=images.data_ptr(),
            delta=delta.data_ptr(),
            index=address(index),
            out=out.data_ptr(),
            n=len(images),
            d=math.prod(images.shape[1:]),
            m=len(delta),
            truncate=truncate,
            cuda_stream=stream(images.device),
        )
    return out


@kernel("CUDA")
def pgd_step(x: Tensor, grad: Tensor, start: Tensor, alpha: float, eps: float, norm: str, clamp: bool = True) -> None:
    check_pgd_step(x, grad, start, alpha, eps, norm, clamp)
    layout = dense_layout(x)
    if not enabled("pgd_step", x.device) or layout is None:
        return reference.pgd_step(x, grad, start, alpha, eps, norm, clamp)
    grad, start = grad.contiguous(memory_format=layout), start.contiguous(memory_format=layout)
    with guard(x.device):
        _extension.load().cuda.pgd_step(
            x=x.data_ptr(),
            grad=grad.data_ptr(),
            start=start.data_ptr(),
            n=x.shape[0],
            d=math.prod(x.shape[1:]),
            alpha=alpha,
            eps=eps,
            norm=norm,
            clamp=clamp,
            cuda_stream=stream(x.device),
        )
    return None
