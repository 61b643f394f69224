"""Every operator's schema, shape rule (fake) and derivative, in one place.

The operators live in `torch.ops.ulfast`. `Library.define/impl` is used rather than the `custom_op` decorator because
its call costs a third (a few microseconds matter to somebody who projects small batches in a loop).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from .reference import projected_dtype

LIBRARY = Library("ulfast", "DEF")

LIBRARY.define("project(Tensor x, Tensor basis) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
# Mutating operators return nothing: torch.compile accepts no result that is one of the arguments.
LIBRARY.define("project_out(Tensor x, Tensor basis, Tensor(a!) out) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define("project_(Tensor(a!) x, Tensor basis) -> ()", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    "project_classwise(Tensor x, Tensor bases, Tensor labels) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
LIBRARY.define(
    "project_classwise_out(Tensor x, Tensor bases, Tensor labels, Tensor(a!) out) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "ingest(Tensor images, Tensor? basis, Tensor mean, Tensor std, ScalarType dtype,"
    " Tensor? index=None, Tensor? shift=None, Tensor? flip=None, Tensor? labels=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "softmax_regression_step(Tensor x, Tensor labels, Tensor(a!) weight, float lr, Tensor? index=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "apply_perturbation(Tensor images, Tensor delta, Tensor? index=None, bool truncate=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "pgd_step(Tensor(a!) x, Tensor grad, Tensor start, float alpha, float eps, str norm, bool clamp=True) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "philox_uniform(int seed, int stream, int first, int n, int d, *, Device? device=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "philox_normal(int seed, int stream, int first, int n, int d, *, Device? device=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "perturb_lsp(Tensor labels, Tensor centroids, Tensor mixing, int seed, int first,"
    " int height, int width, int channels, int patch, float norm,"
    " Tensor? images=None, bool truncate=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "perturb_ar(Tensor labels, Tensor coefficients, int seed, int first, int height, int width, float norm, str kind,"
    " Tensor? images=None, bool truncate=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "class_moments(Tensor images, Tensor labels, int classes) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define(
    "perturb_convolution(Tensor images, Tensor labels, Tensor kernels) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
LIBRARY.define("patch_filter(Tensor x, Tensor filters) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
LIBRARY.define(
    "perturb_linear(Tensor images, Tensor labels, Tensor weight, int steps, float alpha, float eps, float share)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# --- shape rules ---------------------------------------------------------------------------------------------


@torch.library.register_fake("ulfast::project", lib=LIBRARY)
def _(x: Tensor, basis: Tensor) -> Tensor:
    torch._check(basis.dim() == 2, lambda: f"project: basis must be (k, d), got {tuple(basis.shape)}")
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


@torch.library.register_fake("ulfast::project_out", lib=LIBRARY)
def _(x: Tensor, basis: Tensor, out: Tensor) -> None:
    torch._check(out.shape == x.shape, lambda: f"project: out must be {tuple(x.shape)}, got {tuple(out.shape)}")


@torch.library.register_fake("ulfast::project_", lib=LIBRARY)
def _(x: Tensor, basis: Tensor) -> None:
    torch._check(basis.dim() == 2, lambda: f"project_: basis must be (k, d), got {tuple(basis.shape)}")


@torch.library.register_fake("ulfast::project_classwise", lib=LIBRARY)
def _(x: Tensor, bases: Tensor, labels: Tensor) -> Tensor:
    torch._check(bases.dim() == 3, lambda: f"project_classwise: bases must be (c, r, d), got {tuple(bases.shape)}")
    return torch.empty(x.shape, dtype=projected_dtype(x.dtype), device=x.device)


@torch.library.register_fake("ulfast::project_classwise_out", lib=LIBRARY)
def _(x: Tensor, bases: Tensor, labels: Tensor, out: Tensor) -> None:
    torch._check(out.shape == x.shape, lambda: f"project: out must be {tuple(x.shape)}, got {tuple(out.shape)}")


@torch.library.register_fake("ulfast::ingest", lib=LIBRARY)
def _(images, basis, mean, std, dtype, index=None, shift=None, flip=None, labels=None):
    torch._check(images.dim() == 4, lambda: f"ingest: images must be (N, H, W, C), got {tuple(images.shape)}")
    n = images.shape[0] if index is None else index.shape[0]
    return images.new_empty((n, *images.shape[1:]), dtype=dtype).permute(0, 3, 1, 2)


@torch.library.register_fake("ulfast::softmax_regression_step", lib=LIBRARY)
def _(x, labels, weight, lr, index=None):
    return x.new_empty((2,), dtype=torch.float64)


@torch.library.register_fake("ulfast::apply_perturbation", lib=LIBRARY)
def _(images, delta, index=None, truncate=False):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


@torch.library.register_fake("ulfast::pgd_step", lib=LIBRARY)
def _(x, grad, start, alpha, eps, norm, clamp=True) -> None:
    torch._check(grad.shape == x.shape, lambda: f"pgd_step: grad must be {tuple(x.shape)}, got {tuple(grad.shape)}")
    torch._check(start.shape == x.shape, lambda: f"pgd_step: start must be {tuple(x.shape)}, got {tuple(start.shape)}")


@torch.library.register_fake("ulfast::philox_uniform", lib=LIBRARY)
def _(seed, stream, first, n, d, *, device=None):
    return torch.empty((n, d), dtype=torch.float32, device=device)


@torch.library.register_fake("ulfast::philox_normal", lib=LIBRARY)
def _(seed, stream, first, n, d, *, device=None):
    return torch.empty((n, d), dtype=torch.float32, device=device)


@torch.library.register_fake("ulfast::perturb_lsp", lib=LIBRARY)
def _(labels, centroids, mixing, seed, first, height, width, channels, patch, norm, images=None, truncate=False):
    dtype = torch.float32 if images is None else torch.uint8
    return centroids.new_empty((labels.shape[0], height, width, channels), dtype=dtype)


@torch.library.register_fake("ulfast::perturb_ar", lib=LIBRARY)
def _(labels, coefficients, seed, first, height, width, norm, kind, images=None, truncate=False):
    dtype = torch.float32 if images is None else torch.uint8
    return coefficients.new_empty((labels.shape[0], height, width, coefficients.shape[1]), dtype=dtype)


@torch.library.register_fake("ulfast::class_moments", lib=LIBRARY)
def _(images, labels, classes):
    shape = (classes, *images.shape[1:])
    return images.new_empty(shape, dtype=torch.int64), images.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("ulfast::perturb_convolution", lib=LIBRARY)
def _(images, labels, kernels):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


@torch.library.register_fake("ulfast::patch_filter", lib=LIBRARY)
def _(x, filters):
    return x.new_empty(x.shape)


@torch.library.register_fake("ulfast::perturb_linear", lib=LIBRARY)
def _(images, labels, weight, steps, alpha, eps, share):
    return torch.empty(images.shape, dtype=torch.uint8, device=images.device)


# --- derivatives ---------------------------------------------------------------------------------------------


def _project_setup(ctx, inputs, output):
    x, basis = inputs
    ctx.save_for_backward(x if basis.requires_grad else None, basis)


def _project_backward(ctx, grad: Tensor):
    """The projector is symmetric, so the gradient of x is the same operator; the basis gets the product rule."""
    x, basis = ctx.saved_tensors
    grad_x = torch.ops.ulfast.project(grad.contiguous(), basis) if ctx.needs_input_grad[0] else None
    grad_basis = None
    if ctx.needs_input_grad[1]:
        rows = x.reshape(x.shape[0], -1).to(basis.dtype) / (255 if x.dtype == torch.uint8 else 1)
        g = grad.reshape(grad.shape[0], -1).to(basis.dtype)
        grad_basis = -((basis @ rows.T) @ g + (basis @ g.T) @ rows)
    return grad_x, grad_basis


torch.library.register_autograd("ulfast::project", _project_backward, setup_context=_project_setup, lib=LIBRARY)


def _project_vmap(info, in_dims, x: Tensor, basis: Tensor):
    if in_dims[1] is not None:
        raise ValueError("project: vmap over the basis is not supported; loop over the bases instead")
    x = x.movedim(in_dims[0], 0)
    out = torch.ops.ulfast.project(x.reshape(-1, *x.shape[2:]), basis)
    return out.reshape(x.shape), 0


torch.library.register_vmap("ulfast::project", _project_vmap, lib=LIBRARY)


def _classwise_setup(ctx, inputs, output):
    x, bases, labels = inputs
    ctx.save_for_backward(x if bases.requires_grad else None, bases, labels)


def _classwise_backward(ctx, grad: Tensor):
    """As for `project`, class by class."""
    x, bases, labels = ctx.saved_tensors
    grad_x = torch.ops.ulfast.project_classwise(grad.contiguous(), bases, labels) if ctx.needs_input_grad[0] else None
    grad_bases = None
    if ctx.needs_input_grad[1]:
        rows = x.reshape(x.shape[0], -1).to(bases.dtype) / (255 if x.dtype == torch.uint8 else 1)
        g = grad.reshape(grad.shape[0], -1).to(bases.dtype)
        parts = []
        for c in range(bases.shape[0]):
            mine = (labels == c).to(bases.dtype)[:, None]
            parts.append(-((bases[c] @ (rows * mine).T) @ g + (bases[c] @ (g * mine).T) @ rows))
        grad_bases = torch.stack(parts) if parts else torch.zeros_like(bases)
    return grad_x, grad_bases, None


torch.library.register_autograd(
    "ulfast::project_classwise", _classwise_backward, setup_context=_classwise_setup, lib=LIBRARY
)


def _classwise_vmap(info, in_dims, x: Tensor, bases: Tensor, labels: Tensor):
    if in_dims[1] is not None:
        raise ValueError("project_classwise: vmap over the bases is not supported; loop over them instead")
    size = info.batch_size
    x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(size, *x.shape)
    labels = labels.movedim(in_dims[2], 0) if in_dims[2] is not None else labels.expand(size, *labels.shape)
    out = torch.ops.ulfast.project_classwise(x.reshape(-1, *x.shape[2:]), bases, labels.reshape(-1))
    return out.reshape(x.shape), 0


torch.library.register_vmap("ulfast::project_classwise", _classwise_vmap, lib=LIBRARY)
