"""The interface of every operator: its public function, its schema and its shape rule (fake).

The operators live in `torch.ops.ulfast`. `Library.define/impl` is used rather than the `custom_op` decorator because a
call then costs a third (a few microseconds matter when small batches are projected in a loop).

`patch_filter` is the one to copy for a new operator (CONTRIBUTING.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.library import Library

from . import arguments, reference
from .reference import projected_dtype
from .state import exact

__all__ = [
    "apply_perturbation",
    "class_moments",
    "count_changes",
    "filter_images",
    "ingest",
    "patch_filter",
    "perturb_ar",
    "perturb_convolution",
    "perturb_linear",
    "perturb_lsp",
    "pgd_step",
    "philox_normal",
    "philox_uniform",
    "project",
    "project_",
    "project_classwise",
    "shift_pixels",
    "softmax_regression_step",
]

LIBRARY = Library("ulfast", "DEF")
F = TypeVar("F", bound=Callable[..., Any])
_ops = torch.ops.ulfast


def define(schema: str, twin: bool = True) -> None:
    """Defines an operator. Its checked twin serves every device for which `kernel` registers nothing better."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if twin:
        LIBRARY.impl(name, checked_twin(name), "CompositeExplicitAutograd")


def checked_twin(name: str) -> Callable[..., Any]:
    """The twin of an operator, preceded by the check of its arguments."""
    twin, check = getattr(reference, name), getattr(arguments, f"check_{name}")

    @functools.wraps(twin)
    def function(*args: Any, **options: Any) -> Any:
        check(*args, **options)
        return twin(*args, **options)

    return counted(exact(function), name)


def counted(function: F, name: str) -> F:
    """Wraps an implementation so that an operator that changes a tensor bumps the tensor's version, which lets a
    backward pass that saved its old values notice, and refuses if a gradient would be lost.

    This is not done in an autograd kernel, which adds 5 us to a small call (`pgd_step`: 7.4) where this adds 1.3.
    """
    arguments_ = getattr(_ops, name).default._schema.arguments
    written = [i for i, argument in enumerate(arguments_) if argument.is_write]
    if not written:
        return function

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        changed = args[written[0]]
        if torch.is_grad_enabled():
            for value in args:
                if isinstance(value, Tensor) and value.requires_grad:
                    raise RuntimeError(_refusal(name, changed))
        got = function(*args, **options)
        if not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
        return got

    return run  # type: ignore[return-value]


def _refusal(name: str, changed: Tensor) -> str:
    if changed.requires_grad and changed.is_leaf:
        return "a leaf Variable that requires grad is being used in an in-place operation."
    return (
        f"{name} has no derivative, but one of its arguments requires grad: detach it, use the form that returns a new"
        " tensor, or use torch.no_grad()"
    )


def kernel(device: str) -> Callable[[F], F]:
    """Registers a function as the implementation of the operator of its name for one type of device ("CPU", "CUDA").

    PyTorch's redispatch leaves autocast on, so a matrix product within an implementation would be cast. Every
    implementation is therefore made `exact`: here, and for the twins in `define`.
    """

    def register(function: F) -> F:
        function = counted(exact(function), function.__name__)
        LIBRARY.impl(function.__name__, function, device)
        return function

    return register


def shape_rule(name: str) -> Callable[[F], F]:
    """Registers the fake of an operator. One argument on the meta device is enough to dispatch to it, and it computes
    nothing, so all arguments must be on the meta device.
    """

    def register(function: F) -> F:
        @functools.wraps(function)
        def rule(*args: Any, **options: Any) -> Any:
            devices = {value.device.type for value in (*args, *options.values()) if isinstance(value, Tensor)}
            if "meta" in devices and len(devices) > 1:
                others = ", ".join(sorted(devices - {"meta"}))
                raise ValueError(f"{name}: one argument is on the meta device, the others are on {others}")
            return function(*args, **options)

        torch.library.register_fake(f"ulfast::{name}", rule, lib=LIBRARY)
        return function

    return register


class Directions(Protocol):
    """The part of `ulfast.Basis` that an operator uses: rows, and the shape of the images that they belong to."""

    @property
    def rows(self) -> Tensor: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...


def rows_of(basis: Tensor | Directions, shape: Sequence[int]) -> Tensor:
    """The rows of a basis, checked against the shape of the images (without the batch dimension).

    Raises:
        ValueError: a `Basis` for images of another shape, such as NHWC rows and an NCHW batch.
    """
    if isinstance(basis, Tensor):
        return basis
    if len(shape) == 3 and tuple(shape) != tuple(basis.image_shape):
        raise ValueError(f"the basis is for images {tuple(basis.image_shape)} (H, W, C), the batch has {tuple(shape)}")
    return basis.rows


def project(x: Tensor, basis: Tensor | Directions, *, out: Tensor | None = None) -> Tensor:
    """Remove from every row of `x` its component in the span of `basis`.

    Equivalent to ``x - (x.flatten(1) @ basis.T @ basis).view_as(x)`` for orthonormal rows.

    Args:
        x: (n, ...) uint8 (read as x / 255), float16, bfloat16, float32 or float64; trailing dimensions are
            flattened in their logical order, so images must be given as (n, H, W, C) if the basis is NHWC.
        basis: (k, d) float with orthonormal rows, or a `ulfast.Basis`; d is the product of the trailing dimensions of
            `x`. The rows are not checked at each call: `OrthogonalProjection` does so once.
        out: contiguous tensor to write to, with the shape and dtype of the result. It saves the page faults of a large
            new result, which take longer than the kernel; not differentiable.

    Returns:
        Tensor of the shape of `x`, in its dtype (float32 for uint8 input). Differentiable in both arguments.

    Raises:
        ValueError: shapes that do not fit, or tensors on different devices.
        TypeError: a dtype that is not listed above.

    Source: Sandoval-Segura et al., "What Can We Learn from Unlearnable Datasets?", NeurIPS 2023, section 4.4.
    """
    rows = rows_of(basis, x.shape[1:])
    if out is None:
        return _ops.project(x, rows)
    _ops.project_out(x, rows, out)
    return out


define("project(Tensor x, Tensor basis) -> Tensor")
define("project_out(Tensor x, Tensor basis, Tensor(a!) out) -> ()")


@shape_rule("project")
def _(x: Tensor, basis: Tensor) -> Tensor:
    torch._check(basis.dim() == 2, lambda: f"project: basis must be (k, d), got {tuple(basis.shape)}")
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


@shape_rule("project_out")
def _(x: Tensor, basis: Tensor, out: Tensor) -> None:
    torch._check(out.shape == x.shape, lambda: f"project: out must be {tuple(x.shape)}, got {tuple(out.shape)}")


def project_(x: Tensor, basis: Tensor | Directions) -> Tensor:
    """`project` in place, for a floating x with contiguous rows; returns x. Not differentiable."""
    _ops.project_(x, rows_of(basis, x.shape[1:]))
    return x


define("project_(Tensor(a!) x, Tensor basis) -> ()")


@shape_rule("project_")
def _(x: Tensor, basis: Tensor) -> None:
    torch._check(basis.dim() == 2, lambda: f"project_: basis must be (k, d), got {tuple(basis.shape)}")


def project_classwise(x: Tensor, bases: Tensor, labels: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Remove from every row of `x` its component in the span of its own class's basis.

    Equivalent to ``torch.stack([x[i] - (x[i] @ B.T) @ B for i in range(n)])`` with ``B = bases[labels[i]]``.

    Args:
        x: (n, ...) as for `project`.
        bases: (c, r, d) float; the r rows of each class orthonormal.
        labels: (n,) int64 in [0, c), in any order.
        out: as for `project`.

    Returns:
        Tensor of the shape of `x`, in its dtype (float32 for uint8). Differentiable in `x` and `bases`.

    Raises:
        ValueError, TypeError: as for `project`.
        IndexError: a label out of range, on the CPU. On a GPU, which is not synchronised, the row becomes NaN.
    """
    if out is None:
        return _ops.project_classwise(x, bases, labels)
    _ops.project_classwise_out(x, bases, labels, out)
    return out


define("project_classwise(Tensor x, Tensor bases, Tensor labels) -> Tensor")
define("project_classwise_out(Tensor x, Tensor bases, Tensor labels, Tensor(a!) out) -> ()")


@shape_rule("project_classwise")
def _(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    torch._check(bases.dim() == 3, lambda: f"project_classwise: bases must be (c, r, d), got {tuple(bases.shape)}")
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


@shape_rule("project_classwise_out")
def _(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    torch._check(
        out.shape == x.shape, lambda: f"project_classwise: out must be {tuple(x.shape)}, got {tuple(out.shape)}"
    )


def ingest(
    images: Tensor,
    basis: Tensor | Directions | None,
    mean: Tensor | Sequence[float],
    std: Tensor | Sequence[float],
    *,
    dtype: torch.dtype = torch.float32,
    index: Tensor | None = None,
    shift: Tensor | None = None,
    flip: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Turns stored pixels into a training batch in one pass: gather, project, crop, flip, normalise, cast.

    The projection comes before the augmentation, because the basis knows unshifted pixels.

    Args:
        images: (N, H, W, C) uint8, or float16, bfloat16, float32 or float64 in units of [0, 1]; computed in float32.
        basis: (k, H*W*C) float32 with orthonormal rows, a `ulfast.Basis`, or None for no projection; (c, r, H*W*C)
            with labels.
        mean, std: C values in units of [0, 1]; numbers are cached on the device on first use.
        dtype: dtype of the result: float32, bfloat16 or float16.
        index: (n,) int64 rows of `images` that form the batch; None takes all, in order.
        shift: (n, 2) int32 (dy, dx): ``out[y, x] = image[y + dy, x + dx]``, black (zero) outside. A crop with
            padding p is a shift drawn from [-p, p].
        flip: (n,) bool, mirror left-right after the shift.
        labels: (n,) int64 class of each image of the batch, for a class-wise basis.

    Returns:
        (n, C, H, W) tensor in channels_last memory format.
    """
    mean, std = _values(mean, images.device), _values(std, images.device)
    rows = None if basis is None else rows_of(basis, images.shape[1:])
    return _ops.ingest(images, rows, mean, std, dtype, index, shift, flip, labels)


def _values(values: Tensor | Sequence[float], device: torch.device) -> Tensor:
    """Converts to a float32 tensor on the device; numbers are copied only once, as a copy waits for the GPU."""
    if (
        not isinstance(values, Tensor)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
    ):
        return _copied(tuple(map(float, values)), device)
    return torch.as_tensor(values, dtype=torch.float32, device=device)


@functools.lru_cache(maxsize=64)
def _copied(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the tensor outlives the caller's mode
        return torch.tensor(values, dtype=torch.float32, device=device)


define(
    "ingest(Tensor images, Tensor? basis, Tensor mean, Tensor std, ScalarType dtype,"
    " Tensor? index=None, Tensor? shift=None, Tensor? flip=None, Tensor? labels=None) -> Tensor"
)


@shape_rule("ingest")
def _(images, basis, mean, std, dtype, index=None, shift=None, flip=None, labels=None):
    torch._check(images.dim() == 4, lambda: f"ingest: images must be (N, H, W, C), got {tuple(images.shape)}")
    n = images.shape[0] if index is None else index.shape[0]
    return images.new_empty((n, *images.shape[1:]), dtype=dtype).permute(0, 3, 1, 2)


def patch_filter(x: Tensor, filters: Tensor) -> Tensor:
    """Subtract a filter's response from every pixel, exact up to the border, near which the filter's weights change.

    Away from the border it is equivalent to ``x - conv2d(x, filters[r, r])``, r = T // 2. `ulfast.PatchProjection`
    makes the filters for a projection of all patches, averaged where they overlap.

    Args:
        x: (n, H, W, C) float with sides of at least T; the kernel takes float32 with up to four channels.
        filters: (T, T, T, T, C, C): kind of row (0 to r - 1 at the upper border, r within, r + 1 to 2 r at the lower),
            kind of column, dy, dx, input channel, output channel.

    Returns:
        A new (n, H, W, C) tensor.
    """
    return _ops.patch_filter(x, filters)


define("patch_filter(Tensor x, Tensor filters) -> Tensor")


@shape_rule("patch_filter")
def _(x, filters):
    return x.new_empty(x.shape)


def filter_images(x: Tensor, kernels: Tensor, *, clamp: bool = False) -> Tensor:
    """Filter every image with its own kernel, the same for all channels.

    Equivalent to a `conv2d` of each image, padded by replicating its border, with ``kernels[i]`` for each channel.

    Args:
        x: (n, H, W, C) uint8 (read as x / 255) or float; the CPU kernel takes uint8 and float32.
        kernels: (n, K, K) float, K odd; correlated, not flipped, as in `conv2d`.
        clamp: keep the result in [0, 1].

    Returns:
        (n, H, W, C) in the dtype of `x`, float32 for uint8; new.

    Raises:
        ValueError: shapes that do not fit, or tensors on different devices.
        TypeError: a dtype that is not listed above.
    """
    return _ops.filter_images(x, kernels, clamp)


define("filter_images(Tensor x, Tensor kernels, bool clamp=False) -> Tensor")


@shape_rule("filter_images")
def _(x, kernels, clamp=False):
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


def shift_pixels(x: Tensor, *, seed: int, stream: int, first: int, reach: float) -> Tensor:
    """Read every pixel at its own random place up to `reach` pixels away along each axis, interpolated bilinearly.

    Args:
        x: (n, H, W, C) uint8 (read as x / 255) or float; the CPU kernel takes uint8 and float32.
        seed, stream, first: image i draws from (seed, stream, first + i) alone, as in `philox_uniform`: one uniform
            step across and one down for each pixel, the same for all channels.
        reach: the largest step in pixels, at most the shorter side. Borders wrap around.

    Returns:
        (n, H, W, C) in the dtype of `x`, float32 for uint8; new.

    Raises:
        ValueError: x is not a batch of images, or the reach is negative or too large.
        TypeError: a dtype that is not listed above.

    Source: Wang et al., "Corrupting Convolution-based Unlearnable Datasets with Pixel-based Image Transformations"
        (COIN), AAAI 2025.
    """
    return _ops.shift_pixels(x, seed, stream, first, reach)


define("shift_pixels(Tensor x, int seed, int stream, int first, float reach) -> Tensor")


@shape_rule("shift_pixels")
def _(x, seed, stream, first, reach):
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


def count_changes(clean: Tensor, poisoned: Tensor) -> Tensor:
    """Count how poisoned images differ from clean ones, in whole 8-bit levels.

    Args:
        clean, poisoned: (n, ..., C) uint8.

    Returns:
        (n, 5) int64, for each image: positions that differ in any channel, values that differ, how many of these are 0
        or 255 in `poisoned`, the largest difference, and the sum of squared differences.
    """
    return _ops.count_changes(clean, poisoned)


define("count_changes(Tensor clean, Tensor poisoned) -> Tensor")


@shape_rule("count_changes")
def _(clean, poisoned):
    return clean.new_empty((clean.shape[0], 5), dtype=torch.int64)


def softmax_regression_step(
    x: Tensor, labels: Tensor, weight: Tensor, lr: float, *, index: Tensor | None = None
) -> Tensor:
    """One in-place SGD step of softmax regression without bias, in one pass over the batch.

    Equivalent to ``weight -= lr * grad(cross_entropy(unit(x) @ weight.T, labels))`` with mean reduction.

    Args:
        x: (N, ...) uint8 (read as x / 255) or float32 rows.
        labels: (N,) int64 in [0, c).
        weight: (c, d) float32, updated in place.
        lr: learning rate.
        index: (n,) int64 rows that form the batch; None takes all.

    Returns:
        (2,) float64: mean cross-entropy before the update, and how many rows were classified correctly.
    """
    return _ops.softmax_regression_step(x, labels, weight, lr, index)


define("softmax_regression_step(Tensor x, Tensor labels, Tensor(a!) weight, float lr, Tensor? index=None) -> Tensor")


@shape_rule("softmax_regression_step")
def _(x, labels, weight, lr, index=None):
    return x.new_empty((2,), dtype=torch.float64)


def class_moments(images: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Exact sums and sums of squares of every value over the images of each class.

    Equivalent to ``torch.zeros(c, ...).index_add_(0, labels, images.long())``, and the same for the squares.

    Args:
        images: (n, ...) uint8.
        labels: (n,) int64 in [0, classes).

    Returns:
        Two (classes, ...) int64 tensors, in uint8 levels and their squares.
    """
    sums, squares = _ops.class_moments(images, labels, classes)
    return sums, squares


define("class_moments(Tensor images, Tensor labels, int classes) -> (Tensor, Tensor)")


@shape_rule("class_moments")
def _(images, labels, classes):
    shape = (classes, *images.shape[1:])
    return images.new_empty(shape, dtype=torch.int64), images.new_empty(shape, dtype=torch.int64)


def apply_perturbation(images: Tensor, delta: Tensor, *, index: Tensor | None = None, truncate: bool = False) -> Tensor:
    """``clamp(images + 255 * delta[index], 0, 255)`` as uint8, in one pass.

    Args:
        images: (n, ...) uint8.
        delta: (m, ...) float32 in units of [0, 1].
        index: (n,) int64 row of `delta` for each image (its label or its number); None: row i for image i.
        truncate: round towards zero, as in LSP and other published files, instead of to nearest.
    """
    return _ops.apply_perturbation(images, delta, index, truncate)


define("apply_perturbation(Tensor images, Tensor delta, Tensor? index=None, bool truncate=False) -> Tensor")


@shape_rule("apply_perturbation")
def _(images, delta, index=None, truncate=False):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


def pgd_step(
    x: Tensor, grad: Tensor, start: Tensor, *, alpha: float, eps: float, norm: str = "linf", clamp: bool = True
) -> Tensor:
    """One step of projected gradient ascent, in place; returns `x`.

    ``x = clamp(start + clamp(x + alpha * grad.sign() - start, -eps, eps), 0, 1)`` for "linf"; for "l2" the step is
    ``alpha * grad / |grad|`` and the difference to `start` is scaled down to a norm of `eps`, image by image.

    Args:
        x: (n, ...) float32, pixels in [0, 1].
        grad: like x; a negative `alpha` descends.
        start: like x; the unperturbed images.
        alpha, eps: step and bound, pixels in [0, 1].
        norm: "linf" or "l2".
        clamp: keep the result in [0, 1].

    Raises:
        TypeError, ValueError: other dtypes, shapes, devices or norms.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018.
    """
    _ops.pgd_step(x, grad, start, alpha, eps, norm, clamp)
    return x


define("pgd_step(Tensor(a!) x, Tensor grad, Tensor start, float alpha, float eps, str norm, bool clamp=True) -> ()")


@shape_rule("pgd_step")
def _(x, grad, start, alpha, eps, norm, clamp=True) -> None:
    torch._check(grad.shape == x.shape, lambda: f"pgd_step: grad must be {tuple(x.shape)}, got {tuple(grad.shape)}")
    torch._check(start.shape == x.shape, lambda: f"pgd_step: start must be {tuple(x.shape)}, got {tuple(start.shape)}")


def perturb_lsp(
    labels: Tensor,
    centroids: Tensor,
    mixing: Tensor,
    *,
    seed: int,
    first: int,
    size: tuple[int, int, int],
    patch: int,
    norm: float,
    images: Tensor | None = None,
    truncate: bool = False,
) -> Tensor:
    """Linearly separable perturbations: one Gaussian cluster per class, each latent value enlarged to a patch.

    Args:
        labels: (n,) int64; row i is image number ``first + i`` of the data set.
        centroids: (c, m) float32, m = ceil(H/patch) * ceil(W/patch) * C: every class's cluster centre.
        mixing: (c, m, m) float32: latent = normal @ mixing[label] + centroids[label].
        size: (H, W, C) of the images.
        patch: side of the squares that share one latent value.
        norm: L2 norm of each image's perturbation, in units of [0, 1].
        images: (n, H, W, C) uint8 to which the perturbation is added, in the same pass.
        truncate: with images, round towards zero as in `apply_perturbation`.

    Returns:
        (n, H, W, C): the perturbation, float32 in units of [0, 1], or the poisoned images, uint8.

    Source: Yu et al., "Availability Attacks Create Shortcuts", KDD 2022.
    """
    return _ops.perturb_lsp(labels, centroids, mixing, seed, first, *size, patch, norm, images, truncate)


define(
    "perturb_lsp(Tensor labels, Tensor centroids, Tensor mixing, int seed, int first,"
    " int height, int width, int channels, int patch, float norm,"
    " Tensor? images=None, bool truncate=False) -> Tensor"
)


@shape_rule("perturb_lsp")
def _(labels, centroids, mixing, seed, first, height, width, channels, patch, norm, images=None, truncate=False):
    dtype = torch.float32 if images is None else torch.uint8
    return centroids.new_empty((labels.shape[0], height, width, channels), dtype=dtype)


def perturb_ar(
    labels: Tensor,
    coefficients: Tensor,
    *,
    seed: int,
    first: int,
    size: tuple[int, int],
    norm: float = 1.0,
    kind: str = "l2",
    images: Tensor | None = None,
    truncate: bool = False,
) -> Tensor:
    """Autoregressive perturbations: every value is the weighted sum of the eight before it in its 3 x 3 window.

    Args:
        labels: (n,) int64; row i is image number ``first + i`` of the data set.
        coefficients: (c, channels, 3, 3) float32: the window of a class for each channel; the bottom-right entry is
            unused.
        size: (H, W) of the images.
        norm: norm of each image's perturbation, in units of [0, 1].
        kind: kind of norm: "l2", "linf", or "none" for unscaled noise.
        images: (n, H, W, channels) uint8 to which the perturbation is added, in the same pass.
        truncate: with images, round towards zero instead of to nearest.

    Returns:
        (n, H, W, channels): the perturbation, float32, or the poisoned images, uint8.

    Source: Sandoval-Segura et al., "Autoregressive Perturbations for Data Poisoning", NeurIPS 2022.
    """
    return _ops.perturb_ar(labels, coefficients, seed, first, *size, norm, kind, images, truncate)


define(
    "perturb_ar(Tensor labels, Tensor coefficients, int seed, int first, int height, int width, float norm, str kind,"
    " Tensor? images=None, bool truncate=False) -> Tensor"
)


@shape_rule("perturb_ar")
def _(labels, coefficients, seed, first, height, width, norm, kind, images=None, truncate=False):
    dtype = torch.float32 if images is None else torch.uint8
    return coefficients.new_empty((labels.shape[0], height, width, coefficients.shape[1]), dtype=dtype)


def perturb_convolution(images: Tensor, labels: Tensor, kernels: Tensor) -> Tensor:
    """Convolve every image with its class's filter, divide it by its largest value, truncate to uint8.

    Equivalent to ``y = conv2d(x, kernels[label], padding="same"); (y / y.max() * 255).byte()`` channel by channel.

    Args:
        images: (n, H, W, C) uint8.
        labels: (n,) int64.
        kernels: (c, side, side) float32, the same for all channels.

    Source: Sadasivan et al., "CUDA: Convolution-based Unlearnable Datasets", CVPR 2023.
    """
    return _ops.perturb_convolution(images, labels, kernels)


define("perturb_convolution(Tensor images, Tensor labels, Tensor kernels) -> Tensor")


@shape_rule("perturb_convolution")
def _(images, labels, kernels):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


def perturb_linear(
    images: Tensor,
    labels: Tensor,
    weight: Tensor,
    *,
    steps: int = 30,
    alpha: float = 0.8 / 255,
    eps: float = 8 / 255,
    share: float = 0.9,
) -> Tensor:
    """Images minus the noise that sign steps find against a linear classifier without bias.

    Every step descends ``share * CE(W noise, y) + (1 - share) * KL(uniform || softmax(W (x - noise)))`` by `alpha`
    along the sign of its gradient, starting from zero noise: the noise is easy to classify, the rest of the image is
    not. The noise is rounded to whole uint8 levels, and no pixel moves by more than `eps`.

    Args:
        images: (n, ...) uint8, read as x / 255.
        labels: (n,) int64 in [0, c).
        weight: (c, d) float32.
        steps, alpha, eps: number of steps, their size, and the bound of the noise; pixels in [0, 1].
        share: weight of the first term.

    Returns:
        uint8 tensor of the shape of `images`. The sign of a gradient that is zero up to rounding depends on the
        instruction level.

    Raises:
        TypeError, ValueError: other dtypes or shapes. IndexError: a label out of range.

    Source: perturbation-induced linearisation (PIL), ICLR 2026.
    """
    return _ops.perturb_linear(images, labels, weight, steps, alpha, eps, share)


define(
    "perturb_linear(Tensor images, Tensor labels, Tensor weight, int steps, float alpha, float eps, float share)"
    " -> Tensor"
)


@shape_rule("perturb_linear")
def _(images, labels, weight, steps, alpha, eps, share):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


def philox_uniform(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(n, d) float32 uniform in [0, 1). Row i depends on (seed, stream, first + i) alone, on any device."""
    return _ops.philox_uniform(seed, stream, first, n, d, device=torch.device(device))


define("philox_uniform(int seed, int stream, int first, int n, int d, *, Device? device=None) -> Tensor", twin=False)


@shape_rule("philox_uniform")
def _(seed, stream, first, n, d, *, device=None):
    return torch.empty((n, d), dtype=torch.float32, device=device)


def philox_normal(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | str = "cpu") -> Tensor:
    """(n, d) float32 standard normals. Row i depends on (seed, stream, first + i) alone, on any device."""
    return _ops.philox_normal(seed, stream, first, n, d, device=torch.device(device))


define("philox_normal(int seed, int stream, int first, int n, int d, *, Device? device=None) -> Tensor", twin=False)


@shape_rule("philox_normal")
def _(seed, stream, first, n, d, *, device=None):
    return torch.empty((n, d), dtype=torch.float32, device=device)
