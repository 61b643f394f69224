"""Linear separability of perturbations: how well a linear model tells the classes from the perturbations alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.progress import Progress

HIDDEN_WIDTH = 30


@dataclass(frozen=True)
class Separability:
    """What a classifier made of its training inputs.

    Attributes:
        accuracy: train accuracy at the end, 0 to 1.
        loss: mean cross-entropy at the end.
        curve: rows of `evaluation` (of loss and gradient, counted from 0), `loss` and `accuracy`.
    """

    accuracy: float
    loss: float
    curve: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


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
    """Train accuracy of logistic regression, full batch, by LBFGS.

    Args:
        inputs: (n, ...) perturbations or images in any units: they are rescaled to [0, 1] over the whole tensor.
        labels: (n,) int64.
        steps: of LBFGS; it ends earlier where the gradient is zero.
        lr: of LBFGS.
        hidden: tanh layers of width 30 in between; 0 is the linear model.
        seed: of the hidden layers' start (PyTorch's default); the linear model starts at PyTorch's default too.
        progress: called as ``progress("separability", evaluations, steps, loss=, accuracy=)``.

    Raises:
        InputError: inputs without any variation, or labels that do not fit.

    Source: Sandoval-Segura et al., NeurIPS 2023, section 4.3.
    """
    if len(inputs) != len(labels) or not len(labels):
        raise InputError(f"{len(inputs)} inputs need as many labels, got {len(labels)}")
    x = inputs.reshape(len(inputs), -1).to(device, torch.float32)
    low, high = float(x.min()), float(x.max())
    if not high > low:
        raise InputError("the perturbations are all the same: there is nothing to separate")
    x = (x - low) / (high - low)
    y = labels.to(device)
    classes = int(y.max()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [x.shape[1], *[HIDDEN_WIDTH] * hidden]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.Tanh()]
        model = nn.Sequential(*layers, nn.Linear(widths[-1], classes)).to(device)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=lr, max_iter=steps, max_eval=2 * steps)
    curve: list[dict[str, float]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = model(x)
        loss = nn.functional.cross_entropy(out, y)
        loss.backward()
        accuracy = float((out.detach().argmax(1) == y).float().mean())
        curve.append({"evaluation": len(curve), "loss": float(loss.detach()), "accuracy": accuracy})
        if progress:
            progress("separability", min(len(curve), steps), steps, loss=curve[-1]["loss"], accuracy=accuracy)
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        out = model(x)
        loss, accuracy = float(nn.functional.cross_entropy(out, y)), float((out.argmax(1) == y).float().mean())
    return Separability(accuracy, loss, curve)
