"""The operators on the CPU: they check arguments (arguments.py) and pass addresses to the compiled kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _extension, crossover, products, reference
from .arguments import (
    DTYPES,
    address,
    bad_value,
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
from .buffers import result, scratch
from .schemas import kernel


@kernel("CPU")
def project(x: Tensor, basis: Tensor) -> Tensor:
    d = check_project(x, basis)
    out = result(x.shape, reference.projected_dtype(x.dtype))
    _project_into(x, basis, out, d)
    return out


@kernel("CPU")
def project_out(x: Tensor, basis: Tensor, out: Tensor) -> None:
    d = check_project_out(x, basis, out)
    _project_into(x, basis, out, d)


@kernel("CPU")
def project_(x: Tensor, basis: Tensor) -> None:
    d = check_project_(x, basis)
    _project_into(x, basis, x, d)


def _project_into(x: Tensor, basis: Tensor, out: Tensor, d: int) -> None:
    if not out.numel():
        return
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    basis = basis.to(compute).contiguous()
    n, k = x.shape[0], basis.shape[0]
    if not crossover.fused("cpu", "project", x.dtype, k):
        products.project(x, basis, out)
        return
    x, stride = rows_of(x, d)
    coef = scratch(n, k, dtype=compute)
    # Room to repack the basis where that pays: csrc/cpu/packed.h.
    packed = scratch(k, d, dtype=compute) if n >= 32 and k >= 4 else None
    _extension.load().project(
        x=x.data_ptr(),
        basis=basis.data_ptr(),
        coef=address(coef),
        out=out.data_ptr(),
        n=n,
        d=d,
        k=k,
        x_stride=stride,
        dtype=DTYPES[x.dtype],
        labels=0,
        order=0,
        classes=0,
        packed=address(packed),
        threads=torch.get_num_threads(),
    )


@kernel("CPU")
def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    d = check_project_classwise(x, bases, labels)
    out = result(x.shape, reference.projected_dtype(x.dtype))
    _classwise_into(x, bases, labels, out, d)
    return out


@kernel("CPU")
def project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    d = check_project_classwise_out(x, bases, labels, out)
    _classwise_into(x, bases, labels, out, d)


def _classwise_into(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor, d: int) -> None:
    if not out.numel():
        return
    op, n = "project_classwise", x.shape[0]
    classes, r, _ = bases.shape
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    bases, labels = bases.to(compute).contiguous(), labels.contiguous()
    if not crossover.fused("cpu", op, x.dtype, r):
        outside = reference.inside(labels, classes)[0].nonzero()
        if len(outside):
            raise bad_value(op, "labels", labels, int(outside[0]), classes)
        for label in labels.unique().tolist():  # one library product per class present
            rows = (labels == label).nonzero()[:, 0]
            part = result((len(rows), *x.shape[1:]), out.dtype)
            products.project(x[rows], bases[label], part)
            out[rows] = part
        return
    x, stride = rows_of(x, d)
    coef, order = scratch(n, r, dtype=compute), scratch(n + classes, dtype=torch.int64)
    bad = _extension.load().project(
        x=x.data_ptr(),
        basis=bases.data_ptr(),
        coef=address(coef),
        out=out.data_ptr(),
        n=n,
        d=d,
        k=r,
        x_stride=stride,
        dtype=DTYPES[x.dtype],
        labels=labels.data_ptr(),
        order=address(order),
        classes=classes,
        packed=0,
        threads=torch.get_num_threads(),
    )
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, classes)


@kernel("CPU")
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
    n, k = check_ingest(images, basis, mean, std, dtype, index, shift, flip, labels)
    n_images, h, w, c = images.shape
    library = _extension.load()
    if not n * h * w * c:
        return result((n, h, w, c), dtype).permute(0, 3, 1, 2)
    wide = w * c > library.ingest_width
    if basis is not None and (wide or not crossover.fused("cpu", "ingest", images.dtype, k)):
        x = _gathered(images, index)
        images = project(x, basis) if labels is None else project_classwise(x, basis, labels)
        n_images, basis, index, labels, k = n, None, None, None, 0
    if wide:
        x = _gathered(images, index)
        return reference.augment(reference.unit(x), mean, std, dtype, shift, flip).contiguous(
            memory_format=torch.channels_last
        )
    labels = None if labels is None or not k else labels.contiguous()
    images = images.contiguous()
    basis = basis.float().contiguous() if k and basis is not None else None
    mean, std = mean.float().contiguous(), std.float().contiguous()
    shift = None if shift is None else shift.contiguous()
    flip = None if flip is None else flip.contiguous()
    index = None if index is None else index.contiguous()
    coef = scratch(n, k)
    out = result((n, h, w, c), dtype)
    bad = library.ingest(
        images=images.data_ptr(),
        basis=address(basis),
        mean=mean.data_ptr(),
        std=std.data_ptr(),
        index=address(index),
        shift=address(shift),
        flip=address(flip),
        coef=address(coef),
        out=out.data_ptr(),
        images_n=n_images,
        n=n,
        h=h,
        w=w,
        c=c,
        k=k,
        out_dtype=DTYPES[dtype],
        labels=address(labels),
        classes=0 if basis is None else basis.shape[0],
        in_dtype=DTYPES[images.dtype],
        order=0,
        threads=torch.get_num_threads(),
    )
    if bad >= n and labels is not None:
        raise bad_value("ingest", "labels", labels, bad - n, basis.shape[0])  # type: ignore[union-attr]
    if bad >= 0:
        raise bad_value("ingest", "index", index, bad, n_images)  # type: ignore[arg-type]
    return out.permute(0, 3, 1, 2)


def _gathered(images: Tensor, index: Tensor | None) -> Tensor:
    """Images at `index`, whose values are checked as in the kernel."""
    if index is None:
        return images
    outside = reference.inside(index, len(images))[0].nonzero()
    if len(outside):
        raise bad_value("ingest", "index", index, int(outside[0]), len(images))
    return images[index]


@kernel("CPU")
def softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, index: Tensor | None = None
) -> Tensor:
    op = "softmax_regression_step"
    n = check_softmax_regression_step(x, labels, weight, lr, index)
    c, d = weight.shape
    x, labels = x.contiguous(), labels.contiguous()
    index = None if index is None else index.contiguous()
    threads = torch.get_num_threads()
    coef, grad = scratch(n, c), scratch(threads, c, d) if lr else None
    out = result((2,), torch.float64)
    bad = _extension.load().softmax_regression_step(
        x=x.data_ptr(),
        labels=labels.data_ptr(),
        index=address(index),
        weight=weight.data_ptr(),
        coef=address(coef),
        grad=address(grad),
        result=out.data_ptr(),
        rows=x.shape[0],
        n=n,
        d=d,
        c=c,
        lr=lr,
        dtype=DTYPES[x.dtype],
        threads=threads,
    )
    if bad >= 0:
        row = bad if index is None else int(index[bad])
        if not 0 <= row < x.shape[0]:
            raise bad_value(op, "index", index, bad, x.shape[0])  # type: ignore[arg-type]
        raise IndexError(f"{op}: the label of row {row} is {int(labels[row])}, outside [0, {c})")
    return out


@kernel("CPU")
def apply_perturbation(images: Tensor, delta: Tensor, index: Tensor | None = None, truncate: bool = False) -> Tensor:
    check_apply_perturbation(images, delta, index, truncate)
    n = images.shape[0]
    images, delta = images.contiguous(), delta.float().contiguous()
    index = None if index is None else index.contiguous()
    out = torch.empty_like(images)
    bad = _extension.load().apply_perturbation(
        images=images.data_ptr(),
        delta=delta.data_ptr(),
        index=address(index),
        out=out.data_ptr(),
        n=n,
        d=math.prod(images.shape[1:]),
        m=len(delta),
        truncate=truncate,
        threads=torch.get_num_threads(),
    )
    if bad >= 0:
        raise bad_value("apply_perturbation", "index", index, bad, len(delta))  # type: ignore[arg-type]
    return out


@kernel("CPU")
def pgd_step(x: Tensor, grad: Tensor, start: Tensor, alpha: float, eps: float, norm: str, clamp: bool = True) -> None:
    check_pgd_step(x, grad, start, alpha, eps, norm, clamp)
    layout = dense_layout(x)
    if layout is None:
        stepped = x.contiguous()
        pgd_step(stepped, grad, start, alpha, eps, norm, clamp)
        x.copy_(stepped)
        return
    grad, start = grad.contiguous(memory_format=layout), start.contiguous(memory_format=layout)
    _extension.load().pgd_step(
        x=x.data_ptr(),
        grad=grad.data_ptr(),
        start=start.data_ptr(),
        n=x.shape[0],
        d=math.prod(x.shape[1:]),
        alpha=alpha,
        eps=eps,
        norm=norm,
        clamp=clamp,
        threads=torch.get_num_threads(),
    )
