"""Derivatives and vmap of the projections. The other operators have none."""

from __future__ import annotations

import torch
from torch import Tensor

from .schemas import LIBRARY
from .state import exact


def _project_setup(ctx, inputs, output):
    x, basis = inputs
    ctx.save_for_backward(x if basis.requires_grad else None, basis)


@exact
def _project_backward(ctx, grad: Tensor):
    """The projector is symmetric, so the gradient of x uses the same operator; the basis follows the product rule."""
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


@exact
def _classwise_backward(ctx, grad: Tensor):
    """As for `project`, per class."""
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
