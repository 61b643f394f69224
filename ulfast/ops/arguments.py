"""The operators' argument checks: one per operator, the same on every device.

`check_NAME` takes the arguments of the operator NAME and raises an error if no implementation can work on them. Every
implementation begins with it: the CPU's, CUDA's, and the twin where it serves another device. So a wrong argument gives
the same message on every device. A check returns the values that it computed and that the caller needs as well.

Values of an index or of labels are not checked here: the CPU kernels check them as they read them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .reference import projected_dtype, whole_levels

# The kernels' codes for the dtypes (DType in csrc/ulfast.h).
DTYPES = {
    torch.uint8: "u8",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
}
INGEST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the result
PGD_NORMS = ("l2", "linf")
AR_NORMS = ("none", "l2", "linf")


def address(t: Tensor | None) -> int:
    """The address of the first value; 0 for None."""
    return 0 if t is None else t.data_ptr()


def signed(seed: int) -> int:
    """A 64-bit pattern as the signed integer that the kernels take."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def rows_of(x: Tensor, d: int) -> tuple[Tensor, int]:
    """x as rows of d contiguous elements, and their stride; copied only if necessary."""
    n = x.shape[0]
    if x.is_contiguous():
        return x, d
    if x.dim() == 2 and x.stride(1) == 1 and x.stride(0) >= d:
        return x, x.stride(0)
    if n and x[0].is_contiguous() and x.stride(0) >= d:
        return x, x.stride(0)
    return x.contiguous(), d


def dense_layout(x: Tensor) -> torch.memory_format | None:
    """The memory format in which the values of every row are contiguous, or None."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return None


def bad_value(op: str, name: str, values: Tensor, at: int, limit: int) -> IndexError:
    """The error for an index or a label out of range."""
    return IndexError(f"{op}: {name}[{at}] is {int(values[at])}, outside [0, {limit})")


def _got(t: Tensor) -> str:
    return f"{tuple(t.shape)} {t.dtype}"


def _together(op: str, **tensors: Tensor | None) -> None:
    """Raises unless all tensors are on the device of the first."""
    device, first = None, ""
    for name, t in tensors.items():
        if t is None:
            continue
        if device is None:
            device, first = t.device, name
        elif t.device != device:
            raise ValueError(f"{op}: {name} must be on {device} like {first}, got {t.device}")


def _check_index(op: str, name: str, index: Tensor, n: int | None = None) -> None:
    if index.dim() != 1 or index.dtype != torch.int64 or (n is not None and len(index) != n):
        raise ValueError(f"{op}: {name} must be ({'n' if n is None else n},) int64, got {_got(index)}")


def _check_images(op: str, images: Tensor | None, shape: tuple[int, ...]) -> None:
    if images is not None and (images.dtype != torch.uint8 or images.shape != shape):
        raise ValueError(f"{op}: images must be {shape} uint8, got {_got(images)}")


def _check_bytes(op: str, images: Tensor, least: int) -> None:
    if images.dtype != torch.uint8 or images.dim() < least:
        raise TypeError(f"{op}: images must be (n, ...) uint8, got {_got(images)}")


def _check_rows(op: str, x: Tensor) -> int:
    """Raises unless x has rows that can be projected; returns d."""
    if x.dtype not in DTYPES:
        raise TypeError(f"{op}: x must be uint8, float16, bfloat16, float32 or float64, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{op}: x must be (n, ...) with at least two dimensions, got shape {tuple(x.shape)}")
    return math.prod(x.shape[1:])


def _check_bases(op: str, bases: Tensor, labels: Tensor | None, n: int, d: int) -> None:
    """Raises unless bases are (c, r, d) and there is a label for each of n rows."""
    if bases.dim() != 3 or bases.shape[2] != d:
        raise ValueError(f"{op}: bases must be (c, r, {d}), got {tuple(bases.shape)}")
    if not bases.is_floating_point():
        raise TypeError(f"{op}: bases must be floating point, got {bases.dtype}")
    if labels is None:
        raise ValueError(f"{op}: labels must be ({n},) int64, got none")
    _check_index(op, "labels", labels, n)


def _check_out(op: str, x: Tensor, basis: Tensor, out: Tensor) -> None:
    """Raises for an `out` that cannot hold the projection of x."""
    dtype = projected_dtype(x.dtype)
    if out.shape != x.shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"{op}: out must be a contiguous {tuple(x.shape)} {dtype} tensor, got {_got(out)}")
    if out.data_ptr() != x.data_ptr() or out.stride() != x.stride():  # x itself is allowed: in place
        _apart(op, x=x, out=out)
    _apart(op, basis=basis, out=out)


def _apart(op: str, **two: Tensor) -> None:
    """Raises if the second tensor, which is written and contiguous, shares memory with the first, which is read;
    torch's own operators do the same.
    """
    (read, a), (written, b) = two.items()
    first, begin = a.data_ptr(), b.data_ptr()
    if first < begin + b.nbytes and begin < first + (a.nbytes if a.is_contiguous() else _span(a)):
        raise ValueError(f"{op}: {written} shares memory with {read}; give a tensor of its own")


def _span(x: Tensor) -> int:
    """Bytes from a tensor's first value to the end of its last."""
    if not x.numel():
        return 0
    return (1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))) * x.element_size()


def check_project(x: Tensor, basis: Tensor, op: str = "project") -> int:
    """Returns d."""
    d = _check_rows(op, x)
    if not basis.is_floating_point():
        raise TypeError(f"{op}: basis must be floating point, got {basis.dtype}")
    if basis.dim() != 2:
        raise ValueError(f"{op}: basis must be (k, d), got shape {tuple(basis.shape)}")
    if d != basis.shape[1]:
        raise ValueError(
            f"{op}: the rows of x have {d} features ({tuple(x.shape)}), those of the basis {basis.shape[1]}"
        )
    if basis.device != x.device:
        _together(op, x=x, basis=basis)
    return d


def check_project_out(x: Tensor, basis: Tensor, out: Tensor) -> int:
    """Returns d."""
    d = check_project(x, basis)
    _together("project", x=x, out=out)
    _check_out("project", x, basis, out)
    return d


def check_project_(x: Tensor, basis: Tensor) -> int:
    """Returns d."""
    d = check_project(x, basis, "project_")
    if not x.is_floating_point() or not x.is_contiguous():
        raise ValueError(f"project_: x must be a contiguous floating tensor, got {x.dtype} with strides {x.stride()}")
    _apart("project_", basis=basis, x=x)
    return d


def check_project_classwise(x: Tensor, bases: Tensor, labels: Tensor) -> int:
    """Returns d."""
    op = "project_classwise"
    _together(op, x=x, bases=bases, labels=labels)
    d = _check_rows(op, x)
    _check_bases(op, bases, labels, x.shape[0], d)
    return d


def check_project_classwise_out(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> int:
    """Returns d."""
    d = check_project_classwise(x, bases, labels)
    _check_out("project_classwise", x, bases, out)
    _together("project_classwise", x=x, out=out)
    return d


def check_ingest(
    images: Tensor,
    basis: Tensor | None,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    index: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[int, int]:
    """Returns the images of the batch and the rows of the basis (of a class)."""
    op = "ingest"
    _together(op, images=images, basis=basis, mean=mean, std=std, index=index, shift=shift, flip=flip, labels=labels)
    if images.dim() != 4 or images.dtype not in DTYPES:
        raise ValueError(f"{op}: images must be (N, H, W, C) uint8 or of a floating format, got {_got(images)}")
    if dtype not in INGEST_DTYPES:
        raise TypeError(f"{op}: dtype must be float32, bfloat16 or float16, got {dtype}")
    if index is not None:
        _check_index(op, "index", index)
    n, h, w, c = images.shape
    n = n if index is None else index.shape[0]
    if mean.shape != (c,) or std.shape != (c,):
        raise ValueError(f"{op}: mean and std must have {c} values, got {tuple(mean.shape)} and {tuple(std.shape)}")
    if basis is not None and basis.dim() == 3:
        _check_bases(op, basis, labels, n, h * w * c)
    elif basis is not None and (basis.dim() != 2 or basis.shape[1] != h * w * c):
        raise ValueError(f"{op}: basis must be (k, {h * w * c}), got {tuple(basis.shape)}")
    elif labels is not None:
        raise ValueError(f"{op}: labels belong to a class-wise basis (c, r, d)")
    if shift is not None and (shift.shape != (n, 2) or shift.dtype != torch.int32):
        raise ValueError(f"{op}: shift must be ({n}, 2) int32, got {_got(shift)}")
    if flip is not None and (flip.shape != (n,) or flip.dtype != torch.bool):
        raise ValueError(f"{op}: flip must be ({n},) bool, got {_got(flip)}")
    return n, 0 if basis is None else basis.shape[-2]


def check_softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, index: Tensor | None = None
) -> int:
    """Returns the rows of the batch."""
    op = "softmax_regression_step"
    _together(op, x=x, labels=labels, weight=weight, index=index)
    if x.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{op}: x must be uint8 or float32, got {x.dtype}")
    if weight.dim() != 2 or weight.dtype != torch.float32 or not weight.is_contiguous():
        raise ValueError(f"{op}: weight must be a contiguous (c, d) float32 tensor, got {_got(weight)}")
    _check_index(op, "labels", labels, x.shape[0])
    d = weight.shape[1]
    if math.prod(x.shape[1:]) != d:
        raise ValueError(f"{op}: the rows of x have {math.prod(x.shape[1:])} features, those of weight {d}")
    if index is None:
        return x.shape[0]
    _check_index(op, "index", index)
    return index.shape[0]


def check_apply_perturbation(
    images: Tensor, delta: Tensor, index: Tensor | None = None, truncate: bool = False
) -> None:
    """Raises for arguments that `apply_perturbation` cannot take."""
    op = "apply_perturbation"
    _together(op, images=images, delta=delta, index=index)
    _check_bytes(op, images, 1)
    if delta.shape[1:] != images.shape[1:]:
        raise ValueError(f"{op}: delta must be (m, *{tuple(images.shape[1:])}), got {tuple(delta.shape)}")
    if index is not None:
        _check_index(op, "index", index)
    n = images.shape[0]
    if len(delta if index is None else index) != n:
        raise ValueError(f"{op}: {n} images need {n} rows of delta, or an index of {n} rows")


def check_pgd_step(
    x: Tensor, grad: Tensor, start: Tensor, alpha: float, eps: float, norm: str, clamp: bool = True
) -> None:
    """Raises for arguments that `pgd_step` cannot take."""
    op = "pgd_step"
    if norm not in PGD_NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(PGD_NORMS)}, got {norm!r}")
    if eps < 0:
        raise ValueError(f"{op}: eps must not be negative, got {eps:g}")
    for name, t in (("x", x), ("grad", grad), ("start", start)):
        if t.dtype != torch.float32:
            raise TypeError(f"{op}: {name} must be float32, got {t.dtype}")
        if t.shape != x.shape or t.dim() < 1:
            raise ValueError(f"{op}: {name} must be (n, ...) like x {tuple(x.shape)}, got {tuple(t.shape)}")
    _together(op, x=x, grad=grad, start=start)


def check_philox(op: str, n: int, d: int) -> None:
    """Raises for sizes that `philox_uniform` and `philox_normal` cannot take."""
    if n < 0 or d < 0:
        raise ValueError(f"{op}: n and d must not be negative, got {n} and {d}")


def check_perturb_lsp(
    labels: Tensor,
    centroids: Tensor,
    mixing: Tensor,
    seed: int,
    first: int,
    height: int,
    width: int,
    channels: int,
    patch: int,
    norm: float,
    images: Tensor | None = None,
    truncate: bool = False,
) -> dict[str, Any]:
    """Returns the numbers that the kernel takes in addition to the addresses."""
    op = "perturb_lsp"
    _together(op, labels=labels, centroids=centroids, mixing=mixing, images=images)
    if patch < 1 or min(height, width, channels) < 1:
        raise ValueError(f"{op}: size and patch must be positive, got {(height, width, channels)} and {patch}")
    m = math.ceil(height / patch) * math.ceil(width / patch) * channels
    if centroids.dim() != 2 or centroids.shape[1] != m:
        raise ValueError(f"{op}: centroids must be (c, {m}), got {tuple(centroids.shape)}")
    classes = centroids.shape[0]
    if mixing.shape != (classes, m, m):
        raise ValueError(f"{op}: mixing must be ({classes}, {m}, {m}), got {tuple(mixing.shape)}")
    _check_index(op, "labels", labels)
    _check_images(op, images, (len(labels), height, width, channels))
    numbers = {"seed": signed(seed), "first": first, "n": len(labels), "classes": classes, "h": height, "w": width}
    return numbers | {"channels": channels, "patch": patch, "norm": norm, "truncate": truncate}


def check_perturb_ar(
    labels: Tensor,
    coefficients: Tensor,
    seed: int,
    first: int,
    height: int,
    width: int,
    norm: float,
    kind: str,
    images: Tensor | None = None,
    truncate: bool = False,
) -> dict[str, Any]:
    """As `check_perturb_lsp`."""
    op = "perturb_ar"
    _together(op, labels=labels, coefficients=coefficients, images=images)
    if kind not in AR_NORMS:
        raise ValueError(f"{op}: kind must be one of {', '.join(AR_NORMS)}, got {kind!r}")
    if coefficients.dim() != 4 or coefficients.shape[2:] != (3, 3):
        raise ValueError(f"{op}: coefficients must be (c, channels, 3, 3), got {tuple(coefficients.shape)}")
    classes, channels = coefficients.shape[:2]
    if min(height, width, channels) < 1:
        raise ValueError(f"{op}: size and channels must be positive, got {(height, width, channels)}")
    _check_index(op, "labels", labels)
    _check_images(op, images, (len(labels), height, width, channels))
    numbers = {"seed": signed(seed), "first": first, "n": len(labels), "classes": classes, "h": height, "w": width}
    return numbers | {"channels": channels, "norm": norm, "kind": kind, "truncate": truncate}


def check_class_moments(images: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """As `check_perturb_lsp`."""
    op = "class_moments"
    _together(op, images=images, labels=labels)
    _check_bytes(op, images, 2)
    if classes < 0:
        raise ValueError(f"{op}: classes must not be negative, got {classes}")
    _check_index(op, "labels", labels, len(images))
    return {"n": len(images), "d": math.prod(images.shape[1:]), "classes": classes}


def check_perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> dict[str, Any]:
    """As `check_perturb_lsp`."""
    op = "perturb_convolution"
    _together(op, images=images, labels=labels, kernels=kernels)
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"{op}: images must be (n, H, W, C) uint8, got {_got(images)}")
    if kernels.dim() != 3 or kernels.shape[1] != kernels.shape[2]:
        raise ValueError(f"{op}: kernels must be (c, side, side), got {tuple(kernels.shape)}")
    _check_index(op, "labels", labels, len(images))
    n, h, w, c = images.shape
    return {"n": n, "classes": len(kernels), "h": h, "w": w, "c": c, "side": kernels.shape[1]}


def check_perturb_linear(
    images: Tensor, labels: Tensor, weight: Tensor, steps: int, alpha: float, eps: float, share: float
) -> dict[str, Any]:
    """As `check_perturb_lsp`."""
    op = "perturb_linear"
    _together(op, images=images, labels=labels, weight=weight)
    _check_bytes(op, images, 2)
    if steps < 0 or eps < 0 or not 0 <= share <= 1:
        raise ValueError(
            f"{op}: steps and eps must not be negative, share between 0 and 1; got {steps}, {eps}, {share}"
        )
    d = math.prod(images.shape[1:])
    if weight.dim() != 2 or weight.shape[1] != d:
        raise ValueError(f"{op}: weight must be (c, {d}), got {tuple(weight.shape)}")
    _check_index(op, "labels", labels, len(images))
    numbers = {"n": len(images), "d": d, "c": len(weight), "steps": steps, "alpha": alpha, "eps": eps, "share": share}
    return numbers | {"levels": whole_levels(eps)}


def check_count_changes(clean: Tensor, poisoned: Tensor) -> dict[str, int]:
    """Returns the sizes."""
    op = "count_changes"
    _together(op, clean=clean, poisoned=poisoned)
    for name, images in (("clean", clean), ("poisoned", poisoned)):
        if images.dtype != torch.uint8 or images.dim() < 2:
            raise TypeError(f"{op}: {name} must be (n, ..., C) uint8, got {_got(images)}")
    if clean.shape != poisoned.shape:
        raise ValueError(f"{op}: the images differ in shape: {tuple(clean.shape)} and {tuple(poisoned.shape)}")
    return {"n": clean.shape[0], "d": math.prod(clean.shape[1:]), "c": clean.shape[-1]}


def check_patch_filter(x: Tensor, filters: Tensor) -> None:
    """Raises for arguments that `patch_filter` cannot take."""
    op = "patch_filter"
    _together(op, x=x, filters=filters)
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"{op}: x must be (n, H, W, C) of a floating format, got {_got(x)}")
    taps, channels = filters.shape[0] if filters.dim() else 0, x.shape[3]
    if filters.shape != (taps,) * 4 + (channels,) * 2 or taps % 2 == 0:
        got = tuple(filters.shape)
        raise ValueError(f"{op}: filters must be (T, T, T, T, {channels}, {channels}), T odd, got {got}")
    if min(x.shape[1:3]) < taps:
        raise ValueError(f"{op}: images need sides of {taps} or more, got {tuple(x.shape)}")


def _check_pixels(op: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise ValueError(f"{op}: x must be (n, H, W, C), got {_got(x)}")
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise TypeError(f"{op}: x must be uint8 or floating point, got {x.dtype}")


def check_filter_images(x: Tensor, kernels: Tensor, clamp: bool = False) -> None:
    """Raises for arguments that `filter_images` cannot take."""
    op = "filter_images"
    _together(op, x=x, kernels=kernels)
    _check_pixels(op, x)
    side = kernels.shape[-1] if kernels.dim() else 0
    if tuple(kernels.shape) != (len(x), side, side) or side % 2 == 0:
        raise ValueError(f"{op}: kernels must be ({len(x)}, K, K), K odd, got {tuple(kernels.shape)}")
    if not kernels.is_floating_point():
        raise TypeError(f"{op}: kernels must be floating point, got {kernels.dtype}")


def check_shift_pixels(x: Tensor, seed: int, stream: int, first: int, reach: float) -> None:
    """Raises for arguments that `shift_pixels` cannot take."""
    op = "shift_pixels"
    _check_pixels(op, x)
    if not 0 <= reach <= min(x.shape[1:3]):
        raise ValueError(f"{op}: reach must lie between 0 and the shorter side, {min(x.shape[1:3])}, got {reach}")
