"""The perturbation generators on the CPU: they check arguments and pass addresses to the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension
from .arguments import (
    address,
    bad_value,
    check_class_moments,
    check_perturb_ar,
    check_perturb_convolution,
    check_perturb_linear,
    check_perturb_lsp,
)
from .buffers import result, scratch, zeros
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
    sizes = check_perturb_lsp(
        labels, centroids, mixing, seed, first, height, width, channels, patch, norm, images, truncate
    )
    labels, centroids, mixing = labels.contiguous(), centroids.float().contiguous(), mixing.float().contiguous()
    images = None if images is None else images.contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    room = scratch(threads, library.perturb_lsp_scratch(**sizes))
    out = result((len(labels), height, width, channels), torch.float32 if images is None else torch.uint8)
    bad = library.perturb_lsp(
        labels=labels.data_ptr(),
        centroids=centroids.data_ptr(),
        mixing=mixing.data_ptr(),
        scratch=address(room),
        images=address(images),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    if bad >= 0:
        raise bad_value("perturb_lsp", "labels", labels, bad, len(centroids))
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
    sizes = check_perturb_ar(labels, coefficients, seed, first, height, width, norm, kind, images, truncate)
    labels, coefficients = labels.contiguous(), coefficients.float().contiguous()
    images = None if images is None else images.contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    room = scratch(threads, library.perturb_ar_scratch(**sizes))
    shape = (len(labels), height, width, coefficients.shape[1])
    out = result(shape, torch.float32 if images is None else torch.uint8)
    bad = library.perturb_ar(
        labels=labels.data_ptr(),
        coefficients=coefficients.data_ptr(),
        scratch=address(room),
        images=address(images),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    if bad >= 0:
        raise bad_value("perturb_ar", "labels", labels, bad, len(coefficients))
    return out


@kernel("CPU")
def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    sizes = check_class_moments(images, labels, classes)
    images, labels, shape = images.contiguous(), labels.contiguous(), (classes, *images.shape[1:])
    library, threads = _extension.load(), torch.get_num_threads()
    sums, squares = zeros(shape, torch.int64), zeros(shape, torch.int64)
    order = scratch(len(images) + classes, dtype=torch.int64)
    room = scratch(threads, 2 * library.class_moments_block)
    bad = library.class_moments(
        images=images.data_ptr(),
        labels=labels.data_ptr(),
        order=address(order),
        scratch=address(room),
        sums=sums.data_ptr(),
        squares=squares.data_ptr(),
        **sizes,
        threads=threads,
    )
    if bad >= 0:
        raise bad_value("class_moments", "labels", labels, bad, classes)
    return sums, squares


@kernel("CPU")
def perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> Tensor:
    sizes = check_perturb_convolution(images, labels, kernels)
    images, labels, kernels = images.contiguous(), labels.contiguous(), kernels.float().contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    room = scratch(threads, library.perturb_convolution_scratch(**sizes))
    out = result(images.shape, torch.uint8)
    bad = library.perturb_convolution(
        images=images.data_ptr(),
        labels=labels.data_ptr(),
        kernels=kernels.data_ptr(),
        scratch=address(room),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    if bad >= 0:
        raise bad_value("perturb_convolution", "labels", labels, bad, len(kernels))
    return out


@kernel("CPU")
def perturb_linear(
    images: Tensor, labels: Tensor, weight: Tensor, steps: int, alpha: float, eps: float, share: float
) -> Tensor:
    sizes = check_perturb_linear(images, labels, weight, steps, alpha, eps, share)
    images, labels, weight = images.contiguous(), labels.contiguous(), weight.float().contiguous()
    library, threads = _extension.load(), torch.get_num_threads()
    room = scratch(threads, library.perturb_linear_scratch(**sizes))
    out = result(images.shape, torch.uint8)
    bad = library.perturb_linear(
        images=images.data_ptr(),
        labels=labels.data_ptr(),
        weight=weight.data_ptr(),
        scratch=address(room),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    if bad >= 0:
        raise bad_value("perturb_linear", "labels", labels, bad, len(weight))
    return out
