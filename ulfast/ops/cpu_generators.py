"""The generators of perturbations on the CPU: every argument checked here, then addresses handed to the kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _extension, reference
from .cpu import _address, _bad_label, _cpu, _index, _result, _signed
from .schemas import LIBRARY

AR_NORMS = ("none", "l2", "linf")


def _check_labels(op: str, labels: Tensor, n: int | None) -> None:
    _index(op, "labels", labels)
    if n is not None and len(labels) != n:
        raise ValueError(f"{op}: labels must be ({n},) int64, got {tuple(labels.shape)}")


def _check_images(op: str, images: Tensor | None, shape: tuple[int, ...]) -> None:
    if images is not None and (images.dtype != torch.uint8 or images.shape != shape):
        raise ValueError(f"{op}: images must be {shape} uint8, got {tuple(images.shape)} {images.dtype}")


def check_lsp(
    labels: Tensor, centroids: Tensor, mixing: Tensor, height: int, width: int, channels: int, patch: int,
    images: Tensor | None,
) -> int:  # fmt: skip
    """Raises for arguments that `perturb_lsp` cannot take; returns m."""
    op = "perturb_lsp"
    if patch < 1 or min(height, width, channels) < 1:
        raise ValueError(f"{op}: size and patch must be positive, got {(height, width, channels)} and {patch}")
    m = math.ceil(height / patch) * math.ceil(width / patch) * channels
    if centroids.dim() != 2 or centroids.shape[1] != m:
        raise ValueError(f"{op}: centroids must be (c, {m}), got {tuple(centroids.shape)}")
    classes = centroids.shape[0]
    if mixing.shape != (classes, m, m):
        raise ValueError(f"{op}: mixing must be ({classes}, {m}, {m}), got {tuple(mixing.shape)}")
    _check_labels(op, labels, None)
    _check_images(op, images, (len(labels), height, width, channels))
    return m


def check_ar(
    labels: Tensor, coefficients: Tensor, height: int, width: int, kind: str, images: Tensor | None
) -> None:  # fmt: skip
    """Raises for arguments that `perturb_ar` cannot take."""
    op = "perturb_ar"
    if kind not in AR_NORMS:
        raise ValueError(f"{op}: kind must be one of {', '.join(AR_NORMS)}, got {kind!r}")
    if coefficients.dim() != 4 or coefficients.shape[2:] != (3, 3):
        raise ValueError(f"{op}: coefficients must be (c, channels, 3, 3), got {tuple(coefficients.shape)}")
    if min(height, width) < 1:
        raise ValueError(f"{op}: the size must be positive, got {(height, width)}")
    _check_labels(op, labels, None)
    _check_images(op, images, (len(labels), height, width, coefficients.shape[1]))


def check_class_moments(images: Tensor, labels: Tensor) -> None:
    """Raises for arguments that `class_moments` cannot take."""
    if images.dtype != torch.uint8 or images.dim() < 2:
        raise TypeError(f"class_moments: images must be (n, ...) uint8, got {tuple(images.shape)} {images.dtype}")
    _check_labels("class_moments", labels, len(images))


def check_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> None:
    """Raises for arguments that `perturb_convolution` cannot take."""
    op = "perturb_convolution"
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise TypeError(f"{op}: images must be (n, H, W, C) uint8, got {tuple(images.shape)} {images.dtype}")
    if kernels.dim() != 3 or kernels.shape[1] != kernels.shape[2]:
        raise ValueError(f"{op}: kernels must be (c, side, side), got {tuple(kernels.shape)}")
    _check_labels(op, labels, len(images))


def perturb_lsp(
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
) -> Tensor:
    op = "perturb_lsp"
    _cpu(op, labels=labels, centroids=centroids, mixing=mixing, images=images)
    check_lsp(labels, centroids, mixing, height, width, channels, patch, images)
    classes = centroids.shape[0]
    checked = _index(op, "labels", labels)
    assert checked is not None
    labels, centroids, mixing = checked, centroids.float().contiguous(), mixing.float().contiguous()
    n, threads = labels.shape[0], torch.get_num_threads()
    sizes = {
        "seed": _signed(seed), "first": first, "n": n, "classes": classes, "h": height, "w": width,
        "channels": channels, "patch": patch, "norm": norm, "truncate": truncate,
    }  # fmt: skip
    library = _extension.load()
    scratch = torch.empty(threads, library.perturb_lsp_scratch(**sizes))
    if images is not None:
        images = images.contiguous()
    out = _result((n, height, width, channels), torch.float32 if images is None else torch.uint8)
    bad = library.perturb_lsp(
        labels=labels.data_ptr(), centroids=centroids.data_ptr(), mixing=mixing.data_ptr(), scratch=scratch.data_ptr(),
        images=_address(images), out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise IndexError(f"{op}: labels[{bad}] is {int(labels[bad])}, outside [0, {classes})")
    return out


def perturb_ar(
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
) -> Tensor:
    op = "perturb_ar"
    _cpu(op, labels=labels, coefficients=coefficients, images=images)
    check_ar(labels, coefficients, height, width, kind, images)
    checked = _index(op, "labels", labels)
    assert checked is not None
    classes, channels = coefficients.shape[:2]
    labels, coefficients, n = checked, coefficients.float().contiguous(), checked.shape[0]
    shape = (n, height, width, channels)
    if images is not None:
        images = images.contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    sizes = {
        "seed": _signed(seed), "first": first, "n": n, "classes": classes, "h": height, "w": width,
        "channels": channels, "norm": norm, "kind": kind, "truncate": truncate,
    }  # fmt: skip
    scratch = torch.empty(threads, library.perturb_ar_scratch(**sizes))
    out = _result(shape, torch.float32 if images is None else torch.uint8)
    bad = library.perturb_ar(
        labels=labels.data_ptr(), coefficients=coefficients.data_ptr(), scratch=scratch.data_ptr(),
        images=_address(images), out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise IndexError(f"{op}: labels[{bad}] is {int(labels[bad])}, outside [0, {classes})")
    return out


def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    op = "class_moments"
    _cpu(op, images=images, labels=labels)
    check_class_moments(images, labels)
    checked = _index(op, "labels", labels)
    n, d = images.shape[0], math.prod(images.shape[1:])
    assert checked is not None
    library, threads = _extension.load(), torch.get_num_threads()
    images, shape = images.contiguous(), (classes, *images.shape[1:])
    sums, squares = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    order, scratch = torch.empty(n + classes, dtype=torch.int64), torch.empty(threads, 2 * library.class_moments_block)
    bad = library.class_moments(
        images=images.data_ptr(), labels=checked.data_ptr(), order=order.data_ptr(), scratch=scratch.data_ptr(),
        sums=sums.data_ptr(), squares=squares.data_ptr(), n=n, d=d, classes=classes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise _bad_label(op, checked, bad, classes)
    return sums, squares


def perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> Tensor:
    op = "perturb_convolution"
    _cpu(op, images=images, labels=labels, kernels=kernels)
    check_convolution(images, labels, kernels)
    checked = _index(op, "labels", labels)
    n, h, w, c = images.shape
    assert checked is not None
    library, threads = _extension.load(), torch.get_num_threads()
    images, kernels, (classes, side) = images.contiguous(), kernels.float().contiguous(), kernels.shape[:2]
    sizes = {"n": n, "classes": classes, "h": h, "w": w, "c": c, "side": side}
    scratch = torch.empty(threads, library.perturb_convolution_scratch(**sizes))
    out = _result(images.shape, torch.uint8)
    bad = library.perturb_convolution(
        images=images.data_ptr(), labels=checked.data_ptr(), kernels=kernels.data_ptr(), scratch=scratch.data_ptr(),
        out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise _bad_label(op, checked, bad, classes)
    return out


def check_linear(images: Tensor, labels: Tensor, weight: Tensor, steps: int, eps: float, share: float) -> Tensor:
    """Raises for arguments that `perturb_linear` cannot take; returns the labels, contiguous."""
    op = "perturb_linear"
    if images.dtype != torch.uint8 or images.dim() < 2:
        raise TypeError(f"{op}: images must be (n, ...) uint8, got {tuple(images.shape)} {images.dtype}")
    if steps < 0 or eps < 0 or not 0 <= share <= 1:
        raise ValueError(
            f"{op}: steps and eps must not be negative, share between 0 and 1; got {steps}, {eps}, {share}"
        )
    n, d = images.shape[0], math.prod(images.shape[1:])
    if weight.dim() != 2 or weight.shape[1] != d:
        raise ValueError(f"{op}: weight must be (c, {d}), got {tuple(weight.shape)}")
    checked = _index(op, "labels", labels)
    if checked is None or len(checked) != n:
        raise ValueError(f"{op}: labels must be ({n},) int64, got {tuple(labels.shape)}")
    return checked


def perturb_linear(
    images: Tensor, labels: Tensor, weight: Tensor, steps: int, alpha: float, eps: float, share: float
) -> Tensor:
    op = "perturb_linear"
    _cpu(op, images=images, labels=labels, weight=weight)
    checked = check_linear(images, labels, weight, steps, eps, share)
    n, d = images.shape[0], math.prod(images.shape[1:])
    library, threads, c = _extension.load(), torch.get_num_threads(), weight.shape[0]
    images, weight = images.contiguous(), weight.float().contiguous()
    sizes = {
        "n": n, "d": d, "c": c, "steps": steps, "alpha": alpha, "eps": eps, "share": share,
        "levels": reference.whole_levels(eps),
    }  # fmt: skip
    scratch, out = torch.empty(threads, library.perturb_linear_scratch(**sizes)), _result(images.shape, torch.uint8)
    bad = library.perturb_linear(
        images=images.data_ptr(), labels=checked.data_ptr(), weight=weight.data_ptr(), scratch=scratch.data_ptr(),
        out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise _bad_label(op, checked, bad, c)
    return out


# The twins serve every device without kernels of its own.
for _name in ("perturb_lsp", "perturb_ar", "class_moments", "perturb_convolution", "perturb_linear"):
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
    LIBRARY.impl(_name, globals()[_name], "CPU")
