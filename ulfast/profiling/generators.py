"""The generators' operators and the filters as cases; the peer is the PyTorch twin.

The published programs of the poisons are raced in benchmarks/cases.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..ops import reference
from .cases import F32, U8, Case, Operator, Shape, Small, _compiled, _deviation, pixels

CLASSES = 10


def _images(shape: Shape, device: torch.device, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """(n, side, side, 3) uint8 and (n,) labels."""
    side = shape.side
    labels = torch.randint(0, classes, (shape.n,), device=device)
    return pixels(shape.n, shape.d, torch.uint8, device).view(shape.n, side, side, 3), labels


def perturb_lsp(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    """Four patches per side, as on CIFAR-10; m latent values mixed by the class's (m, m) matrix."""
    images, labels = _images(shape, device, shape.k)
    side, patch = shape.side, math.ceil(shape.side / 4)
    m = 3 * math.ceil(side / patch) ** 2
    centroids = torch.randint(0, 2, (shape.k, m), device=device).float() * 2 - 1
    mixing = torch.randn(shape.k, m, m, device=device) / m

    def ours() -> Tensor:
        return ops.perturb_lsp(
            labels, centroids, mixing, seed=0, first=0, size=(side, side, 3), patch=patch, norm=1.0, images=images
        )

    def twin() -> Tensor:
        return reference.perturb_lsp(labels, centroids, mixing, 0, 0, side, side, 3, patch, 1.0, images)

    return Case(
        f"perturb_lsp {shape.n} x {side} px, {shape.k} classes",
        {"kernel": ours},
        {"twin": twin},
        2.0 * shape.n * shape.d,
        2.0 * shape.n * m * m,
    )


def perturb_ar(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    images, labels = _images(shape, device, shape.k)
    size = (shape.side, shape.side)
    windows = torch.rand(shape.k, 3, 3, 3, device=device)
    windows[..., 2, 2] = 0
    windows /= windows.sum((2, 3), keepdim=True)  # as in the published search: stable enough for timing

    def ours() -> Tensor:
        return ops.perturb_ar(labels, windows, seed=0, first=0, size=size, images=images)

    def twin() -> Tensor:
        return reference.perturb_ar(labels, windows, 0, 0, *size, 1.0, "l2", images)

    values = 3.0 * (size[0] + 2) * (size[1] + 2)
    return Case(
        f"perturb_ar {shape.n} x {shape.side} px, {shape.k} classes",
        {"kernel": ours},
        {"twin": twin},
        2.0 * shape.n * shape.d,
        32.0 * shape.n * values,
        repeats=5,
    )


def class_moments(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    images, labels = _images(shape, device, shape.k)
    return Case(
        f"class_moments {shape.n} x {shape.d}, {shape.k} classes",
        {"kernel": lambda: ops.class_moments(images, labels, shape.k)},
        {
            "twin": lambda: reference.class_moments(images, labels, shape.k),
            **_compiled(compiled, reference.class_moments, images, labels, shape.k),
        },
        1.0 * shape.n * shape.d,
        3.0 * shape.n * shape.d,
    )


def perturb_convolution(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    images, labels = _images(shape, device)
    kernels = torch.rand(CLASSES, shape.k, shape.k, device=device)
    return Case(
        f"perturb_convolution {shape.n} x {shape.side} px, side {shape.k}",
        {"kernel": lambda: ops.perturb_convolution(images, labels, kernels)},
        {"twin": lambda: reference.perturb_convolution(images, labels, kernels)},
        2.0 * shape.n * shape.d,
        2.0 * shape.n * shape.d * shape.k**2,
    )


def perturb_linear(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    images, labels = _images(shape, device)
    weight = torch.randn(CLASSES, shape.d, device=device) * 0.01
    return Case(
        f"perturb_linear {shape.n} x {shape.d}, {shape.k} steps",
        {"kernel": lambda: ops.perturb_linear(images, labels, weight, steps=shape.k)},
        {"twin": lambda: reference.perturb_linear(images, labels, weight, shape.k, 0.8 / 255, 8 / 255, 0.9)},
        2.0 * shape.n * shape.d,
        4.0 * shape.n * shape.d * CLASSES * shape.k,
        repeats=5,
    )


def patch_filter(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    """The projection of all k x k patches, 10 k directions: folded into one filter, and as two convolutions."""
    from ..projection.patches import fold

    n, side, k = shape.n, shape.side, shape.k
    rank = 10 * k
    analysis, synthesis = (torch.randn(rank, 3, k, k, device=device) / (2 * k) for _ in range(2))
    x = torch.rand(n, side, side, 3, device=device)
    nchw, filters = x.permute(0, 3, 1, 2), fold(analysis, synthesis)
    at = torch.arange(side, device=device)
    cover = torch.minimum(torch.minimum(at + 1, side - at), torch.tensor(k)).float()
    cover = cover[:, None] * cover[None, :]

    def two(x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return x - torch.nn.functional.conv_transpose2d(torch.nn.functional.conv2d(x, a), s) / cover

    few = two(nchw[:2].double(), analysis.double(), synthesis.double()).permute(0, 2, 3, 1)
    plain = two(nchw[:2], analysis, synthesis).permute(0, 2, 3, 1)
    return Case(
        f"patch_filter {n} x {side} px, patches of {k}",
        {"kernel": lambda: ops.patch_filter(x, filters)},
        {"two convolutions": lambda: two(nchw, analysis, synthesis)},
        8.0 * n * shape.d,
        2.0 * n * shape.d * 3 * (2 * k - 1) ** 2,
        (_deviation(ops.patch_filter(x[:2], filters), few), _deviation(plain, few)),
        repeats=3,
        goals={"best": 5},
    )


def filter_images(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    """A k x k filter for each image, against the grouped convolution that PyTorch users write."""
    n, side, k = shape.n, shape.side, shape.k
    x = pixels(n, shape.d, dtype, device).view(n, side, side, 3)
    kernels = torch.randn(n, k, k, device=device) / k

    def grouped(x: Tensor, kernels: Tensor) -> Tensor:
        wide = reference.unit(x, kernels.dtype).permute(0, 3, 1, 2)
        wide = torch.nn.functional.pad(wide, (k // 2,) * 4, mode="replicate").reshape(1, 3 * n, side + k - 1, -1)
        weights = kernels.repeat_interleave(3, 0)[:, None]
        return torch.nn.functional.conv2d(wide, weights, groups=3 * n).view(n, 3, side, side).clamp_(0, 1)

    few = reference.filter_images(x[:2] if dtype == U8 else x[:2].double(), kernels[:2].double(), True)
    return Case(
        f"filter_images {n} x {side} px, k = {k}",
        {"kernel": lambda: ops.filter_images(x, kernels, clamp=True)},
        {"grouped convolution": lambda: grouped(x, kernels)},
        n * shape.d * (x.element_size() + 4.0),
        2.0 * n * shape.d * k * k,
        (_deviation(ops.filter_images(x[:2], kernels[:2], clamp=True), few), 0.0),
        goals={"best": 2},
    )


def shift_pixels(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    """Every pixel read up to k pixels away, against `grid_sample` on the wrapped image."""
    n, side, k = shape.n, shape.side, shape.k
    x = pixels(n, shape.d, dtype, device).view(n, side, side, 3)
    at = torch.arange(side, dtype=torch.float32, device=device) + k

    def sampled() -> Tensor:
        wide = reference.unit(x).permute(0, 3, 1, 2)
        wide = torch.nn.functional.pad(wide, (k, k + 1) * 2, mode="circular")
        steps = (torch.rand(n, side, side, 2, device=device) * 2 - 1) * k
        steps[..., 0] += at
        steps[..., 1] += at[:, None]
        grid = steps * (2 / (side + 2 * k)) - 1
        return torch.nn.functional.grid_sample(wide, grid, align_corners=True)

    few = reference.shift_pixels(x[:2], 0, 1, 0, float(k))
    return Case(
        f"shift_pixels {n} x {side} px, up to {k}",
        {"kernel": lambda: ops.shift_pixels(x, seed=0, stream=1, first=0, reach=float(k))},
        {"grid_sample": sampled},
        n * shape.d * (x.element_size() + 4.0),
        n * shape.d / 3 * 60.0,
        (_deviation(ops.shift_pixels(x[:2], seed=0, stream=1, first=0, reach=float(k)), few), 0.0),
        goals={"best": 2},
    )


def count_changes(shape: Shape, dtype: torch.dtype, device: torch.device, compiled: bool) -> Case:
    """The statistics of a perturbation, against NumPy."""
    n, side = shape.n, shape.side
    clean = pixels(n, shape.d, U8, device).view(n, side, side, 3)
    poisoned = (clean.int() + torch.randint(-8, 9, clean.shape, device=device)).clamp(0, 255).to(U8)
    a, b = clean.cpu().numpy(), poisoned.cpu().numpy()

    def plain() -> None:
        size = np.abs(a.astype(np.int16) - b)
        changed = size > 0
        changed.any(3).sum((1, 2)), changed.sum((1, 2, 3)), (changed & ((b == 0) | (b == 255))).sum((1, 2, 3))
        size.max((1, 2, 3)), np.square(size, dtype=np.int32).sum((1, 2, 3))

    exact = reference.count_changes(clean, poisoned)
    return Case(
        f"count_changes {n} x {side} px",
        {"kernel": lambda: ops.count_changes(clean, poisoned)},
        {"NumPy": plain},
        2.0 * n * shape.d,
        10.0 * n * shape.d,
        (_deviation(ops.count_changes(clean, poisoned), exact), 0.0),
    )


def _small_lsp(small: Small) -> dict[str, tuple[Any, ...]]:
    centroids, mixing = 10 * small.normals(4, 12), small.normals(4, 12, 12)
    return {"perturb_lsp": (small.labels, centroids, mixing, 5, 2, 16, 16, 3, 8, 1.0)}


def _small_ar(small: Small) -> dict[str, tuple[Any, ...]]:
    windows = small.normals(4, 3, 3, 3).abs()
    windows[..., 2, 2] = 0
    windows /= windows.sum((2, 3), keepdim=True)
    return {"perturb_ar": (small.labels, windows, 5, 2, 16, 16, 1.0, "linf")}


def _small_moments(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"class_moments": (small.images, small.labels, 4)}


def _small_convolution(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"perturb_convolution": (small.images, small.labels, small.normals(4, 3, 3).abs())}


def _small_linear(small: Small) -> dict[str, tuple[Any, ...]]:
    row = small.normals(768).sign() / 10
    weight = torch.stack([row, -row])  # no gradient is zero up to rounding, where its sign would be arbitrary
    return {"perturb_linear": (small.images, small.labels % 2, weight, 3, 0.8 / 255, 8 / 255, 0.9)}


def _small_patch_filter(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"patch_filter": (small.x, small.normals(3, 3, 3, 3, 3, 3) / 3)}


def _small_filter_images(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"filter_images": (small.images, small.normals(33, 3, 3) / 3, True)}


def _small_shift(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"shift_pixels": (small.images, 5, 1, 2, 2.0)}


def _small_changes(small: Small) -> dict[str, tuple[Any, ...]]:
    return {"count_changes": (small.images, small.images.flip(0))}


GENERATORS: dict[str, Operator] = {
    "perturb_lsp": Operator(perturb_lsp, _small_lsp, "classes", (U8,)),
    "perturb_ar": Operator(perturb_ar, _small_ar, "classes", (U8,)),
    "class_moments": Operator(class_moments, _small_moments, "classes", (U8,)),
    "perturb_convolution": Operator(
        perturb_convolution, _small_convolution, "side of the filter", (U8,), Shape(2048, 3072, 3)
    ),
    "perturb_linear": Operator(perturb_linear, _small_linear, "steps", (U8,), Shape(512, 3072, 10)),
    "filter_images": Operator(
        filter_images, _small_filter_images, "side of the filter", (U8, F32), Shape(512, 3072, 3)
    ),
    "shift_pixels": Operator(shift_pixels, _small_shift, "pixels", (U8, F32), Shape(512, 3072, 2)),
    "count_changes": Operator(count_changes, _small_changes, "-", (U8,)),
    "patch_filter": Operator(patch_filter, _small_patch_filter, "side of the patch", (F32,), Shape(64, 3072, 7)),
}
