"""Linear separability of perturbations: how well a linear model predicts the class from the perturbation alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.progress import Progress

HIDDEN_WIDTH = 30
# LBFGS's iterations per step and history size: PyTorch's defaults, which the paper's program uses.
ITERATIONS, HISTORY = 20, 100
# A learning rate for `softmax_regression_step` so large that the weights are negligible: the result is the gradient,
# and dividing by a power of two is exact.
RATE = 2.0**30
PART = 1024  # inputs converted at a time

# () -> (mean cross-entropy, train accuracy); leaves the gradient in the parameters.
Evaluate = Callable[[], tuple[float, float]]


@dataclass(frozen=True)
class Separability:
    """How a classifier fits its training inputs.

    Attributes:
        accuracy: train accuracy at the end, 0 to 1.
        loss: mean cross-entropy at the end.
        steps: LBFGS steps taken.
        converged: whether it ended because the gradient was zero (largest entry up to 1e-7) rather than after the last
            step.
        curve: rows of `evaluation` (evaluations of loss and gradient, counted from 0), `loss` and `accuracy`.
    """

    accuracy: float
    loss: float
    steps: int
    converged: bool
    curve: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@ordinary
def separability(
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 500,
    lr: float = 0.5,
    hidden: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Separability:
    """Train accuracy of full-batch logistic regression by LBFGS, as in the paper's program.

    One evaluation of the linear model is one pass of the `softmax_regression_step` kernel over the inputs, which are
    stored as bytes if they are whole 8-bit levels.

    Args:
        inputs: (n, ...) perturbations or images in any unit; they are rescaled to [0, 1] over the whole tensor.
        labels: (n,) int64.
        steps: steps of LBFGS, each of up to 20 iterations with one evaluation of all inputs: 500 steps are 10,000
            evaluations. It ends earlier if the gradient is zero.
        lr: learning rate of LBFGS.
        hidden: number of tanh layers of width 30 in between; 0 is the linear model.
        seed: seed of the initialisation (PyTorch's default).
        progress: called as ``progress("separability", step, steps, loss=, accuracy=)``.

    Raises:
        InputError: the inputs have no variation, or the labels do not fit.

    Source: Sandoval-Segura et al., NeurIPS 2023, section 4.3.
    """
    if len(inputs) != len(labels) or not len(labels):
        raise InputError(f"{len(inputs)} inputs need as many labels, got {len(labels)}")
    rows = inputs.reshape(len(inputs), -1)
    low, high = (float(level) for level in rows.aminmax())
    if not high > low:
        raise InputError("all perturbations are the same, so there is nothing to separate: give others")
    y = labels.clone().to(device)  # a tensor made in inference mode could not be saved for backward
    parameters, evaluate = (_network if hidden else _linear)(rows, low, high, y, hidden, seed, torch.device(device))
    optimizer = torch.optim.LBFGS(parameters, lr=lr, max_iter=ITERATIONS, history_size=HISTORY)
    curve: list[dict[str, float]] = []

    def closure() -> float:
        loss, accuracy = evaluate()
        curve.append({"evaluation": len(curve), "loss": loss, "accuracy": accuracy})
        return loss

    step, converged = 0, False
    while step < steps and not converged:
        before = len(curve)
        optimizer.step(closure)
        step += 1
        # A step that ends at its first evaluation of the gradient changes nothing, and so would all further steps.
        converged = len(curve) == before + 1
        if progress:
            progress("separability", step, steps, loss=curve[-1]["loss"], accuracy=curve[-1]["accuracy"])
    loss, accuracy = evaluate()
    return Separability(accuracy, loss, step, converged, curve)


def _linear(
    rows: Tensor, low: float, high: float, y: Tensor, hidden: int, seed: int, device: torch.device
) -> tuple[list[nn.Parameter], Evaluate]:
    """Logistic regression with a bias: one parameter (classes, d + 1)."""
    x, scale = _levels(rows, low, high, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(rows.shape[1], int(y.max()) + 1)
    weight = nn.Parameter(torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().to(device))

    def evaluate() -> tuple[float, float]:
        # The kernel's weights are for inputs in its own units; the last column is the bias.
        own = weight.detach() * scale
        moved = own.clone()
        loss, correct = ops.softmax_regression_step(x, y, moved, RATE).tolist()
        weight.grad = (own - moved).div_(RATE).mul_(scale)
        return loss, correct / len(y)

    return [weight], evaluate


def _levels(rows: Tensor, low: float, high: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The inputs with an appended constant, in the form that the kernel takes, and the factors from weights for inputs
    rescaled to [0, 1] to the kernel's weights.

    Returns:
        x (n, d + 1) uint8 or float32, and (d + 1,) float32.
    """
    n, d = rows.shape
    scale = torch.ones(d + 1, device=device)
    unit = 1.0 if rows.dtype == torch.uint8 else 255.0
    if (high - low) * unit < 255.5:
        x = torch.empty(n, d + 1, dtype=torch.uint8, device=device)
        x[:, d] = 255
        if _as_bytes(rows, low, unit, x[:, :d]):
            scale[:d] = 255 / ((high - low) * unit)
            return x, scale
    x = torch.ones(n, d + 1, device=device)
    x[:, :d] = (rows.to(device, torch.float32) - low) / (high - low)
    return x, scale


def _as_bytes(rows: Tensor, low: float, unit: float, into: Tensor) -> bool:
    """Stores (n, d) rows from `low` up, in units of 1 / `unit`, into (n, d) uint8. False if they are not whole numbers,
    up to float32's rounding of multiples of 1/255.
    """
    levels, whole = torch.empty(2, min(PART, len(rows)), rows.shape[1], device=rows.device)
    for part, target in zip(rows.split(PART), into.split(PART), strict=True):
        x, rounded = levels[: len(part)].copy_(part), whole[: len(part)]
        torch.round(x.sub_(low).mul_(unit), out=rounded)
        target.copy_(rounded)
        if x.sub_(rounded).abs_().max() >= 1e-3:
            return False
    return True


def _network(
    rows: Tensor, low: float, high: float, y: Tensor, hidden: int, seed: int, device: torch.device
) -> tuple[list[nn.Parameter], Evaluate]:
    """A network with hidden layers, by autograd."""
    x = (rows.to(device, torch.float32) - low) / (high - low)
    widths = [x.shape[1], *[HIDDEN_WIDTH] * hidden]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], int(y.max()) + 1)).to(device)

    def evaluate() -> tuple[float, float]:
        model.zero_grad()
        with torch.enable_grad():
            out = model(x)
            loss = nn.functional.cross_entropy(out, y)
            loss.backward()
        return float(loss.detach()), float((out.detach().argmax(1) == y).float().mean())

    return list(model.parameters()), evaluate
