"""Derivatives and vmap of the projections, and what autograd must know of operators that change a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .schemas import DEFINED, LIBRARY
from .state import exact


def _project_setup(ctx, inputs, output):
    x, basis = inputs
    ctx.save_for_backward(x if basis.requires_grad else None, basis)


@exact
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


@exact
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


def _changes(name: str, position: int) -> None:
    """An operator without a derivative that changes its argument at `position`: refused where that would be wrong, and
    counted in the tensor's version, so that a backward pass which had saved its old values notices."""
    operator = getattr(torch.ops.ulfast, name).default
    argument = operator._schema.arguments[position].name

    def run(*args: Any, **options: Any) -> Any:
        changed = args[position] if position < len(args) else options[argument]
        if torch.is_grad_enabled():
            if changed.requires_grad and changed.is_leaf:
                raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
            if any(isinstance(value, Tensor) and value.requires_grad for value in (*args, *options.values())):
                raise RuntimeError(
                    f"{name} has no derivative, but one of its arguments requires grad: detach it, take the form that"
                    " returns a new tensor, or torch.no_grad()"
                )
        with torch._C._AutoDispatchBelowAutograd():
            got = operator(*args, **options)
        if not changed.is_inference():
            torch.autograd.graph.increment_version(changed)
        return got

    LIBRARY.impl(name, run, "Autograd")


for _name in DEFINED:
    for _position, _argument in enumerate(getattr(torch.ops.ulfast, _name).default._schema.arguments):
        if _argument.is_write:
            _changes(_name, _position)
