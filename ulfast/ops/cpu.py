"""The operators on the CPU: every argument checked here, then addresses handed to the compiled kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _extension, crossover, reference
from .schemas import LIBRARY

# The kernels' names of the dtypes (DType in csrc/ulfast.h).
_DTYPES = {
    torch.uint8: "u8", torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64",
}  # fmt: skip
_OUT = {dtype: _DTYPES[dtype] for dtype in (torch.float16, torch.bfloat16, torch.float32)}
# Results from this size on are put on large pages: glibc maps and unmaps them at every call.
HUGE_BYTES = 16 << 20


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _cpu(op: str, **tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and t.device.type != "cpu":
            raise ValueError(f"{op}: {name} must be on the CPU like the other arguments, got {t.device}")


def _index(op: str, name: str, index: Tensor | None) -> Tensor | None:
    if index is None:
        return None
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"{op}: {name} must be (n,) int64, got {tuple(index.shape)} {index.dtype}")
    return index.contiguous()


def _rows(x: Tensor, d: int) -> tuple[Tensor, int]:
    """x as rows of d contiguous elements and the distance between them; copied only where it must be."""
    n = x.shape[0]
    if x.is_contiguous():
        return x, d
    if x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= d:
        return x, x.stride(0)
    if n and x[0].is_contiguous() and x.stride(0) >= d:
        return x, x.stride(0)
    return x.contiguous(), d


def check_project(x: Tensor, basis: Tensor) -> int:
    """Raise for arguments that `project` cannot take; returns d."""
    if x.dtype not in _DTYPES:
        raise TypeError(f"project: x must be uint8, float16, bfloat16, float32 or float64, got {x.dtype}")
    if not basis.is_floating_point():
        raise TypeError(f"project: basis must be floating point, got {basis.dtype}")
    if basis.dim() != 2:
        raise ValueError(f"project: basis must be (k, d), got shape {tuple(basis.shape)}")
    if x.dim() < 2:
        raise ValueError(f"project: x must be (n, ...) with at least two dimensions, got shape {tuple(x.shape)}")
    d = math.prod(x.shape[1:])
    if d != basis.shape[1]:
        raise ValueError(
            f"project: the rows of x have {d} features ({tuple(x.shape)}), those of the basis {basis.shape[1]}"
        )
    return d


def check_project_out(x: Tensor, out: Tensor) -> None:
    """Raise for an `out` that cannot take the projection of x."""
    dtype = reference.projected_dtype(x.dtype)
    if out.shape != x.shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(
            f"project: out must be a contiguous {tuple(x.shape)} {dtype} tensor, got {tuple(out.shape)} {out.dtype}"
        )


def _result(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A fresh tensor, on large pages if it is large."""
    out = torch.empty(shape, dtype=dtype)
    if out.nbytes >= HUGE_BYTES:
        _extension.load().advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def project(x: Tensor, basis: Tensor) -> Tensor:
    d = check_project(x, basis)
    _cpu("project", x=x, basis=basis)
    out = _result(x.shape, reference.projected_dtype(x.dtype))
    _project_into(x, basis, out, d)
    return out


def project_out(x: Tensor, basis: Tensor, out: Tensor) -> None:
    d = check_project(x, basis)
    _cpu("project", x=x, basis=basis, out=out)
    check_project_out(x, out)
    _project_into(x, basis, out, d)


def project_(x: Tensor, basis: Tensor) -> None:
    d = check_project(x, basis)
    _cpu("project_", x=x, basis=basis)
    if not x.is_floating_point() or not x.is_contiguous():
        raise ValueError(f"project_: x must be a contiguous floating tensor, got {x.dtype} with strides {x.stride()}")
    _project_into(x, basis, x, d)


def _project_into(x: Tensor, basis: Tensor, out: Tensor, d: int) -> None:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    basis = basis.to(compute).contiguous()
    n, k = x.shape[0], basis.shape[0]
    if not crossover.fused("cpu", "project", x.dtype, k):
        _project_library(x, basis, out)
        return
    x, stride = _rows(x, d)
    coef = torch.empty(n, k, dtype=compute)
    # Room to lay the basis out anew, where that pays: csrc/cpu/packed.h.
    packed = torch.empty(k, d, dtype=compute) if n >= 32 and k >= 4 else None
    _extension.load().project(
        x=x.data_ptr(), basis=basis.data_ptr(), coef=coef.data_ptr(), out=out.data_ptr(), n=n, d=d, k=k,
        x_stride=stride, dtype=_DTYPES[x.dtype], labels=0, order=0, classes=0, packed=_address(packed),
        threads=torch.get_num_threads(),
    )  # fmt: skip


def check_classwise(op: str, bases: Tensor, labels: Tensor | None, n: int, d: int) -> None:
    """Raises unless bases are (c, r, d) and there is a label for each of n rows."""
    if bases.dim() != 3 or bases.shape[2] != d:
        raise ValueError(f"{op}: bases must be (c, r, {d}), got {tuple(bases.shape)}")
    if not bases.is_floating_point():
        raise TypeError(f"{op}: bases must be floating point, got {bases.dtype}")
    if labels is None or labels.shape != (n,) or labels.dtype != torch.int64:
        got = "none" if labels is None else f"{tuple(labels.shape)} {labels.dtype}"
        raise ValueError(f"{op}: labels must be ({n},) int64, got {got}")


def _bad_label(op: str, labels: Tensor, at: int, classes: int) -> IndexError:
    return IndexError(f"{op}: labels[{at}] is {int(labels[at])}, outside [0, {classes})")


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    d = _check_classwise_rows(x, bases, labels)
    _cpu("project_classwise", x=x, bases=bases, labels=labels)
    out = _result(x.shape, reference.projected_dtype(x.dtype))
    _classwise_into(x, bases, labels, out, d)
    return out


def project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    d = _check_classwise_rows(x, bases, labels)
    _cpu("project_classwise", x=x, bases=bases, labels=labels, out=out)
    check_project_out(x, out)
    _classwise_into(x, bases, labels, out, d)


def _check_classwise_rows(x: Tensor, bases: Tensor, labels: Tensor) -> int:
    op = "project_classwise"
    if x.dtype not in _DTYPES:
        raise TypeError(f"{op}: x must be uint8, float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be (n, ...) with at least two dimensions, got shape {tuple(x.shape)}")
    n, d = x.shape[0], math.prod(x.shape[1:])
    check_classwise(op, bases, labels, n, d)
    return d


def _classwise_into(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor, d: int) -> None:
    op, n = "project_classwise", x.shape[0]
    classes, r, _ = bases.shape
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    bases, labels = bases.to(compute).contiguous(), labels.contiguous()
    if not crossover.fused("cpu", op, x.dtype, r):
        outside = ((labels < 0) | (labels >= classes)).nonzero()
        if len(outside):
            raise _bad_label(op, labels, int(outside[0]), classes)
        for label in labels.unique().tolist():  # a library product a class that is there
            rows = (labels == label).nonzero()[:, 0]
            part = torch.empty((len(rows), *x.shape[1:]), dtype=out.dtype)
            _project_library(x[rows], bases[label], part)
            out[rows] = part
        return
    x, stride = _rows(x, d)
    coef, order = torch.empty(n, r, dtype=compute), torch.empty(n + classes, dtype=torch.int64)
    bad = _extension.load().project(
        x=x.data_ptr(), basis=bases.data_ptr(), coef=coef.data_ptr(), out=out.data_ptr(), n=n, d=d, k=r,
        x_stride=stride, dtype=_DTYPES[x.dtype], labels=labels.data_ptr(), order=order.data_ptr(), classes=classes,
        packed=0, threads=torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        raise _bad_label(op, labels, bad, classes)


def _project_library(x: Tensor, basis: Tensor, out: Tensor) -> None:
    """Two matrix products, the second into the copy of x; half precision goes block by block, to bound the copy."""
    rows = x.reshape(x.shape[0], basis.shape[1])
    flat = out.view(rows.shape)
    block = max(1, (64 << 20) // max(1, basis.shape[1] * basis.element_size()))
    for i in range(0, len(rows), block):
        part, target = rows[i : i + block], flat[i : i + block]
        if target.dtype == basis.dtype:
            if target.data_ptr() != part.data_ptr():
                target.copy_(reference.unit(part, basis.dtype))
            target.addmm_(target @ basis.T, basis, alpha=-1)
        else:
            wide = reference.unit(part, basis.dtype)
            target.copy_(torch.addmm(wide, wide @ basis.T, basis, alpha=-1))


def check_ingest(
    images: Tensor,
    basis: Tensor | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    index: Tensor | None,
    shift: Tensor | None,
    flip: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor | None, int, int]:
    """Raises for arguments that `ingest` cannot take; returns the contiguous index, images a batch, basis rows."""
    if images.dim() != 4 or images.dtype not in _DTYPES:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"ingest: images must be (N, H, W, C) uint8 or of a floating format, got {got}")
    if dtype not in _OUT:
        raise TypeError(f"ingest: dtype must be float32, bfloat16 or float16, got {dtype}")
    index = _index("ingest", "index", index)
    n_images, h, w, c = images.shape
    n = n_images if index is None else index.shape[0]
    if mean.shape != (c,) or std.shape != (c,):
        raise ValueError(f"ingest: mean and std must have {c} values, got {tuple(mean.shape)} and {tuple(std.shape)}")
    if basis is not None and basis.dim() == 3:
        check_classwise("ingest", basis, labels, n, h * w * c)
    elif basis is not None and (basis.dim() != 2 or basis.shape[1] != h * w * c):
        raise ValueError(f"ingest: basis must be (k, {h * w * c}), got {tuple(basis.shape)}")
    elif labels is not None:
        raise ValueError("ingest: labels belong to a class-wise basis (c, r, d)")
    if shift is not None and (shift.shape != (n, 2) or shift.dtype != torch.int32):
        raise ValueError(f"ingest: shift must be ({n}, 2) int32, got {tuple(shift.shape)} {shift.dtype}")
    if flip is not None and (flip.shape != (n,) or flip.dtype != torch.bool):
        raise ValueError(f"ingest: flip must be ({n},) bool, got {tuple(flip.shape)} {flip.dtype}")
    k = 0 if basis is None else basis.shape[-2]
    return index, n, k


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
    _cpu("ingest", images=images, basis=basis, mean=mean, std=std, index=index, shift=shift, flip=flip, labels=labels)
    index, n, k = check_ingest(images, basis, mean, std, dtype, index, shift, flip, labels)
    n_images, h, w, c = images.shape
    library = _extension.load()
    wide = w * c > library.ingest_width
    if basis is not None and (wide or not crossover.fused("cpu", "ingest", images.dtype, k)):
        x = images if index is None else images[index]
        images = project(x, basis) if labels is None else project_classwise(x, basis, labels)
        n_images, basis, index, labels, k = n, None, None, None, 0
    if wide:
        x = images if index is None else images[index]
        return reference.augment(reference.unit(x), mean, std, dtype, shift, flip).contiguous(
            memory_format=torch.channels_last
        )
    labels = None if labels is None or not k else labels.contiguous()
    images = images.contiguous()
    basis = basis.float().contiguous() if k and basis is not None else None
    mean, std = mean.float().contiguous(), std.float().contiguous()
    shift = None if shift is None else shift.contiguous()
    flip = None if flip is None else flip.contiguous()
    coef = torch.empty(n, k)
    out = _result((n, h, w, c), dtype)
    bad = library.ingest(
        images=images.data_ptr(), basis=_address(basis), mean=mean.data_ptr(), std=std.data_ptr(),
        index=_address(index), shift=_address(shift), flip=_address(flip), coef=coef.data_ptr(), out=out.data_ptr(),
        images_n=n_images, n=n, h=h, w=w, c=c, k=k, out_dtype=_OUT[dtype], labels=_address(labels),
        classes=0 if basis is None else basis.shape[0], in_dtype=_DTYPES[images.dtype], order=0,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    if bad >= n and labels is not None:
        raise _bad_label("ingest", labels, bad - n, basis.shape[0])  # type: ignore[union-attr]
    if bad >= 0:
        raise IndexError(f"ingest: index[{bad}] is {int(index[bad])}, outside [0, {n_images})")  # type: ignore[index]
    return out.permute(0, 3, 1, 2)


def check_softmax(x: Tensor, labels: Tensor, weight: Tensor, index: Tensor | None) -> tuple[Tensor | None, int]:
    """Raises for arguments that `softmax_regression_step` cannot take; returns the index and rows a batch."""
    op = "softmax_regression_step"
    if x.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{op}: x must be uint8 or float32, got {x.dtype}")
    if weight.dim() != 2 or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(f"{op}: weight must be a contiguous (c, d) float32 tensor, got {tuple(weight.shape)}")
    if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"{op}: labels must be ({x.shape[0]},) int64, got {tuple(labels.shape)} {labels.dtype}")
    d = weight.shape[1]
    if math.prod(x.shape[1:]) != d:
        raise ValueError(f"{op}: the rows of x have {math.prod(x.shape[1:])} features, those of weight {d}")
    index = _index(op, "index", index)
    return index, x.shape[0] if index is None else index.shape[0]


def softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, index: Tensor | None = None
) -> Tensor:
    op = "softmax_regression_step"
    _cpu(op, x=x, labels=labels, weight=weight, index=index)
    index, n = check_softmax(x, labels, weight, index)
    c, d = weight.shape
    x, labels = x.contiguous(), labels.contiguous()
    threads = torch.get_num_threads()
    coef = torch.empty(n, c)
    grad = torch.empty(threads, c, d) if lr else torch.empty(0)
    result = torch.empty(2, dtype=torch.float64)
    bad = _extension.load().softmax_regression_step(
        x=x.data_ptr(), labels=labels.data_ptr(), index=_address(index), weight=weight.data_ptr(),
        coef=coef.data_ptr(), grad=grad.data_ptr(), result=result.data_ptr(), rows=x.shape[0], n=n, d=d, c=c, lr=lr,
        dtype=_DTYPES[x.dtype], threads=threads,
    )  # fmt: skip
    if bad >= 0:
        row = bad if index is None else int(index[bad])
        if not 0 <= row < x.shape[0]:
            raise IndexError(f"{op}: index[{bad}] is {row}, outside [0, {x.shape[0]})")
        raise IndexError(f"{op}: the label of row {row} is {int(labels[row])}, outside [0, {c})")
    return result


def apply_perturbation(images: Tensor, delta: Tensor, index: Tensor | None = None, truncate: bool = False) -> Tensor:
    op = "apply_perturbation"
    _cpu(op, images=images, delta=delta, index=index)
    if images.dtype != torch.uint8 or images.dim() < 1:
        raise TypeError(f"{op}: images must be (n, ...) uint8, got {tuple(images.shape)} {images.dtype}")
    if delta.shape[1:] != images.shape[1:]:
        raise ValueError(f"{op}: delta must be (m, *{tuple(images.shape[1:])}), got {tuple(delta.shape)}")
    index = _index(op, "index", index)
    n = images.shape[0]
    if (n if index is None else len(index)) != n or (index is None and len(delta) != n):
        raise ValueError(f"{op}: {n} images need {n} rows of delta, or an index of {n} rows")
    images, delta = images.contiguous(), delta.float().contiguous()
    out = torch.empty_like(images)
    bad = _extension.load().apply_perturbation(
        images=images.data_ptr(), delta=delta.data_ptr(), index=_address(index), out=out.data_ptr(), n=n,
        d=math.prod(images.shape[1:]), m=len(delta), truncate=truncate, threads=torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        raise IndexError(f"{op}: index[{bad}] is {int(index[bad])}, outside [0, {len(delta)})")  # type: ignore[index]
    return out


PGD_NORMS = ("l2", "linf")


def dense_layout(x: Tensor) -> torch.memory_format | None:
    """The memory format in which the values of every row lie side by side, or None."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return None


def check_pgd_step(x: Tensor, grad: Tensor, start: Tensor, eps: float, norm: str) -> None:
    """Raises for arguments that `pgd_step` cannot take."""
    if norm not in PGD_NORMS:
        raise ValueError(f"pgd_step: norm must be one of {', '.join(PGD_NORMS)}, got {norm!r}")
    if eps < 0:
        raise ValueError(f"pgd_step: eps must not be negative, got {eps:g}")
    for name, t in (("x", x), ("grad", grad), ("start", start)):
        if t.dtype != torch.float32:
            raise TypeError(f"pgd_step: {name} must be float32, got {t.dtype}")
        if t.shape != x.shape or t.dim() < 1:
            raise ValueError(f"pgd_step: {name} must be (n, ...) like x {tuple(x.shape)}, got {tuple(t.shape)}")
        if t.device != x.device:
            raise ValueError(f"pgd_step: {name} must be on {x.device} like x, got {t.device}")


def pgd_step(
    x: Tensor, grad: Tensor, start: Tensor, alpha: float, eps: float, norm: str, clamp: bool = True
) -> None:  # fmt: skip
    check_pgd_step(x, grad, start, eps, norm)
    layout = dense_layout(x)
    if layout is None:
        stepped = x.contiguous()
        pgd_step(stepped, grad, start, alpha, eps, norm, clamp)
        x.copy_(stepped)
        return
    grad, start = grad.contiguous(memory_format=layout), start.contiguous(memory_format=layout)
    _extension.load().pgd_step(
        x=x.data_ptr(), grad=grad.data_ptr(), start=start.data_ptr(), n=x.shape[0], d=math.prod(x.shape[1:]),
        alpha=alpha, eps=eps, norm=norm, clamp=clamp, threads=torch.get_num_threads(),
    )  # fmt: skip


def _signed(seed: int) -> int:
    """A 64-bit pattern as the signed number that the binding takes."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def _philox(name: str, seed: int, stream: int, first: int, n: int, d: int) -> Tensor:
    if n < 0 or d < 0:
        raise ValueError(f"philox_{name}: n and d must not be negative, got {n} and {d}")
    out = torch.empty(n, d)
    kernel = getattr(_extension.load(), f"philox_{name}")
    kernel(
        out=out.data_ptr(), seed=_signed(seed), stream=stream, first=first, n=n, d=d, threads=torch.get_num_threads()
    )
    return out


def philox_uniform(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    if device is not None and device.type != "cpu":
        from .cuda import philox

        return philox("uniform", seed, stream, first, n, d, device)
    return _philox("uniform", seed, stream, first, n, d)


def philox_normal(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    if device is not None and device.type != "cpu":
        from .cuda import philox

        return philox("normal", seed, stream, first, n, d, device)
    return _philox("normal", seed, stream, first, n, d)


# The twins serve every device without kernels of its own. Factory operators have no tensor to dispatch on.
_DISPATCHED = (
    "project", "project_out", "project_", "project_classwise", "project_classwise_out", "ingest",
    "softmax_regression_step", "apply_perturbation", "pgd_step",
)  # fmt: skip
for _name in _DISPATCHED:
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    LIBRARY.impl(_name, globals()[_name], "CPU")
for _name in ("philox_uniform", "philox_normal"):
    LIBRARY.impl(_name, globals()[_name], "CompositeExplicitAutograd")
