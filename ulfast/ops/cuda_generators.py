"""The perturbation generators on a GPU: checks, results and scratch here, then the CUDA kernels.

As in `cuda.py`, the twin replaces a kernel that is not verified. The kernels do not wait for the device, so a label out
of range is not an error: its image stays unchanged (a perturbation returned by itself becomes NaN), and `class_moments`
ignores it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _extension, cuda, reference
from .arguments import (
    address,
    check_class_moments,
    check_perturb_ar,
    check_perturb_convolution,
    check_perturb_linear,
    check_perturb_lsp,
)
from .buffers import result, scratch, zeros
from .schemas import kernel


def fits(op: str, device: torch.device, sizes: dict[str, Any]) -> bool:
    """Whether an operator's arguments fit into the shared memory of a device."""
    with cuda.guard(device):
        return bool(getattr(_extension.load().cuda, f"{op}_fits")(**sizes))


@kernel("CUDA")
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
    device = labels.device
    if not cuda.enabled("perturb_lsp", device) or centroids.shape[1] > _extension.load().cuda.perturb_lsp_latents:
        return reference.perturb_lsp(
            labels, centroids, mixing, seed, first, height, width, channels, patch, norm, images, truncate
        )
    labels, centroids, mixing = labels.contiguous(), centroids.float().contiguous(), mixing.float().contiguous()
    images = None if images is None else images.contiguous()
    dtype = torch.float32 if images is None else torch.uint8
    out = result((len(labels), height, width, channels), dtype, device)
    with cuda.guard(device):
        _extension.load().cuda.perturb_lsp(
            labels=labels.data_ptr(),
            centroids=centroids.data_ptr(),
            mixing=mixing.data_ptr(),
            scratch=0,
            images=address(images),
            out=out.data_ptr(),
            **sizes,
            cuda_stream=cuda.stream(device),
        )
    return out


@kernel("CUDA")
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
    device = labels.device
    if not cuda.enabled("perturb_ar", device) or not fits("perturb_ar", device, sizes):
        return reference.perturb_ar(labels, coefficients, seed, first, height, width, norm, kind, images, truncate)
    labels, coefficients = labels.contiguous(), coefficients.float().contiguous()
    images = None if images is None else images.contiguous()
    dtype = torch.float32 if images is None else torch.uint8
    out = result((len(labels), height, width, coefficients.shape[1]), dtype, device)
    with cuda.guard(device):
        _extension.load().cuda.perturb_ar(
            labels=labels.data_ptr(),
            coefficients=coefficients.data_ptr(),
            scratch=0,
            images=address(images),
            out=out.data_ptr(),
            **sizes,
            cuda_stream=cuda.stream(device),
        )
    return out


@kernel("CUDA")
def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    sizes = check_class_moments(images, labels, classes)
    if not cuda.enabled("class_moments", images.device) or not images.numel() or not classes:
        return reference.class_moments(images, labels, classes)
    images, labels, shape = images.contiguous(), labels.contiguous(), (classes, *images.shape[1:])
    sums, squares = (zeros(shape, torch.int64, images.device) for _ in range(2))
    kernels = _extension.load().cuda
    with cuda.guard(images.device):
        # With many classes the rows of each should be adjacent: they are summed in registers.
        order = labels.argsort() if kernels.class_moments_sorts(**sizes) else None
        kernels.class_moments(
            images=images.data_ptr(),
            labels=labels.data_ptr(),
            order=address(order),
            scratch=0,
            sums=sums.data_ptr(),
            squares=squares.data_ptr(),
            **sizes,
            cuda_stream=cuda.stream(images.device),
        )
    return sums, squares


@kernel("CUDA")
def perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> Tensor:
    sizes = check_perturb_convolution(images, labels, kernels)
    if not images.numel():
        return images.clone()
    if (
        not cuda.enabled("perturb_convolution", images.device)
        or kernels.shape[1] > _extension.load().cuda.perturb_convolution_side
    ):
        return reference.perturb_convolution(images, labels, kernels)
    images, labels, kernels = images.contiguous(), labels.contiguous(), kernels.float().contiguous()
    device, library, out = images.device, _extension.load().cuda, torch.empty_like(images)
    with cuda.guard(device):
        room = scratch(library.perturb_convolution_scratch(**sizes), device=device)
        library.perturb_convolution(
            images=images.data_ptr(),
            labels=labels.data_ptr(),
            kernels=kernels.data_ptr(),
            scratch=address(room),
            out=out.data_ptr(),
            **sizes,
            cuda_stream=cuda.stream(device),
        )
    return out


@kernel("CUDA")
def perturb_linear(
    images: Tensor, labels: Tensor, weight: Tensor, steps: int, alpha: float, eps: float, share: float
) -> Tensor:
    sizes = check_perturb_linear(images, labels, weight, steps, alpha, eps, share)
    if not images.numel() or not len(weight):
        return images.clone()
    if not cuda.enabled("perturb_linear", images.device) or not fits("perturb_linear", images.device, sizes):
        return reference.perturb_linear(images, labels, weight, steps, alpha, eps, share)
    images, labels, weight = images.contiguous(), labels.contiguous(), weight.float().contiguous()
    device, out = images.device, torch.empty_like(images)
    with cuda.guard(device):
        _extension.load().cuda.perturb_linear(
            images=images.data_ptr(),
            labels=labels.data_ptr(),
            weight=weight.data_ptr(),
            scratch=0,
            out=out.data_ptr(),
            **sizes,
            cuda_stream=cuda.stream(device),
        )
    return out
