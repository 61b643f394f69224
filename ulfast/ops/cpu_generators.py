"""The generators of perturbations on the CPU: arguments checked, then addresses handed to the compiled kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _extension, reference
from .arguments import (
    address,
    bad_value,
    check_class_moments,
    check_perturb_ar,
    check_perturb_convolution,
    check_perturb_linear,
    check_perturb_lsp,
    signed,
)
from .cpu import result
from .schemas import kernel


@kernel("CPU")
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
    check_perturb_lsp(labels, centroids, mixing, seed, first, height, width, channels, patch, norm, images, truncate)
    classes = centroids.shape[0]
    labels, centroids, mixing = labels.contiguous(), centroids.float().contiguous(), mixing.float().contiguous()
    n, threads = labels.shape[0], torch.get_num_threads()
    sizes = {
        "seed": signed(seed), "first": first, "n": n, "classes": classes, "h": height, "w": width,
        "channels": channels, "patch": patch, "norm": norm, "truncate": truncate,
    }  # fmt: skip
    library = _extension.load()
    scratch = torch.empty(threads, library.perturb_lsp_scratch(**sizes))
    if images is not None:
        images = images.contiguous()
    out = result((n, height, width, channels), torch.float32 if images is None else torch.uint8)
    bad = library.perturb_lsp(
        labels=labels.data_ptr(), centroids=centroids.data_ptr(), mixing=mixing.data_ptr(), scratch=scratch.data_ptr(),
        images=address(images), out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, classes)
    return out


@kernel("CPU")
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
    check_perturb_ar(labels, coefficients, seed, first, height, width, norm, kind, images, truncate)
    classes, channels = coefficients.shape[:2]
    labels, coefficients, n = labels.contiguous(), coefficients.float().contiguous(), labels.shape[0]
    shape = (n, height, width, channels)
    if images is not None:
        images = images.contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    sizes = {
        "seed": signed(seed), "first": first, "n": n, "classes": classes, "h": height, "w": width,
        "channels": channels, "norm": norm, "kind": kind, "truncate": truncate,
    }  # fmt: skip
    scratch = torch.empty(threads, library.perturb_ar_scratch(**sizes))
    out = result(shape, torch.float32 if images is None else torch.uint8)
    bad = library.perturb_ar(
        labels=labels.data_ptr(), coefficients=coefficients.data_ptr(), scratch=scratch.data_ptr(),
        images=address(images), out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, classes)
    return out


@kernel("CPU")
def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    op = "class_moments"
    check_class_moments(images, labels, classes)
    n, d = images.shape[0], math.prod(images.shape[1:])
    library, threads = _extension.load(), torch.get_num_threads()
    images, labels, shape = images.contiguous(), labels.contiguous(), (classes, *images.shape[1:])
    sums, squares = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    order, scratch = torch.empty(n + classes, dtype=torch.int64), torch.empty(threads, 2 * library.class_moments_block)
    bad = library.class_moments(
        images=images.data_ptr(), labels=labels.data_ptr(), order=order.data_ptr(), scratch=scratch.data_ptr(),
        sums=sums.data_ptr(), squares=squares.data_ptr(), n=n, d=d, classes=classes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, classes)
    return sums, squares


@kernel("CPU")
def perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> Tensor:
    op = "perturb_convolution"
    check_perturb_convolution(images, labels, kernels)
    n, h, w, c = images.shape
    library, threads = _extension.load(), torch.get_num_threads()
    labels, images, kernels, (classes, side) = (
        labels.contiguous(),
        images.contiguous(),
        kernels.float().contiguous(),
        kernels.shape[:2],
    )
    sizes = {"n": n, "classes": classes, "h": h, "w": w, "c": c, "side": side}
    scratch = torch.empty(threads, library.perturb_convolution_scratch(**sizes))
    out = result(images.shape, torch.uint8)
    bad = library.perturb_convolution(
        images=images.data_ptr(), labels=labels.data_ptr(), kernels=kernels.data_ptr(), scratch=scratch.data_ptr(),
        out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, classes)
    return out


@kernel("CPU")
def perturb_linear(
    images: Tensor, labels: Tensor, weight: Tensor, steps: int, alpha: float, eps: float, share: float
) -> Tensor:
    op = "perturb_linear"
    check_perturb_linear(images, labels, weight, steps, alpha, eps, share)
    n, d = images.shape[0], math.prod(images.shape[1:])
    library, threads, c = _extension.load(), torch.get_num_threads(), weight.shape[0]
    images, labels, weight = images.contiguous(), labels.contiguous(), weight.float().contiguous()
    sizes = {
        "n": n, "d": d, "c": c, "steps": steps, "alpha": alpha, "eps": eps, "share": share,
        "levels": reference.whole_levels(eps),
    }  # fmt: skip
    scratch, out = torch.empty(threads, library.perturb_linear_scratch(**sizes)), result(images.shape, torch.uint8)
    bad = library.perturb_linear(
        images=images.data_ptr(), labels=labels.data_ptr(), weight=weight.data_ptr(), scratch=scratch.data_ptr(),
        out=out.data_ptr(), **sizes, threads=threads,
    )  # fmt: skip
    if bad >= 0:
        raise bad_value(op, "labels", labels, bad, c)
    return out
