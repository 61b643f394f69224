"""`linear-noise` and `sdaan`: hide what a simple model has learned under the noise that would mislead it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed, ops
from ..data.dataset import Dataset
from ..data.mapped import map_rows
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.reference import whole_levels
from ..parameters import parameter
from ..poisons.augment import DRAWS, augmented
from ..projection.fit import fit_basis
from ..training.mixing import BatchHook, Step
from .base import IMAGES, Attack, Context, Plan
from .side_network import shuffled, trained

# The two-layer network as published: SGD, and the search inside its training and after it.
BATCH, LR, MOMENTUM, DECAY, DROPS = 128, 0.01, 0.9, 5e-4, (0.75, 0.9)
SEARCH_STEPS, TRAIN_STEP, LAST_STEP = 10, 2 / 255, 1 / 255

# (b, d) float32 pixels in [0, 1], (b,) int64 labels -> the gradient of the cross-entropy, (b, d), up to a factor.
Gradient = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class HiddenNoise(Attack):
    """Base of the two: what is added to the stored images, once, as whole levels."""

    stage: ClassVar[int] = IMAGES

    noise_eps: float = parameter(8 / 255, "L-infinity bound of the noise, pixels in [0, 1]", at_least=0)

    def hide(self, plan: Plan, context: Context, gradient: Gradient, steps: int, alpha: float) -> None:
        """Adds to every image of the plan the noise that `steps` sign steps of `alpha` up the gradient find."""
        train, device, eps = plan.train, context.device, whole_levels(self.noise_eps) / 255

        def noisy(index: np.ndarray) -> np.ndarray:
            x = as_tensor(train.images[index]).to(device).flatten(1).float() / 255
            y = as_tensor(train.labels[index]).to(device)
            found = ascended(x, y, gradient, steps, alpha, eps)
            levels: np.ndarray = (255 * found).round().to(torch.uint8).cpu().numpy()
            return levels.reshape(-1, *train.image_shape)

        with plan.timed("project"):
            plan.train = map_rows(train, noisy, context.progress)


def ascended(x: Tensor, y: Tensor, gradient: Gradient, steps: int, alpha: float, eps: float) -> Tensor:
    """The images (b, d) in [0, 1] after sign steps up the loss, within `eps` of where they began and in [0, 1]."""
    original, x = x, x.clone()
    for _ in range(steps):
        ops.pgd_step(x, gradient(x, y), original, alpha=alpha, eps=eps, norm="linf", clamp=True)
    return x


@dataclass(frozen=True)
class LinearNoise(HiddenNoise):
    """Fits the linear model of `orthogonal` and adds to every image one sign step up its loss: the strongest noise
    within the bound, but for how the classes that are not the image's share its probability. Where `orthogonal`
    removes what the model has learned, this hides it.
    """

    summary = "a linear model's adversarial noise on every image"
    source = "ulfast; the linear form of sdaan"

    def apply(self, plan: Plan, context: Context) -> None:
        with plan.timed("fit"):
            basis = fit_basis(plan.train, seed=context.seed, device=context.device, progress=context.progress)
        assert basis.weights is not None  # those of SGD
        weight = distributed.same(basis.weights).to(context.device)

        def gradient(x: Tensor, y: Tensor) -> Tensor:
            return _residual(x @ weight.T, y) @ weight

        plan.notes |= {"fit_accuracy": basis.metadata["train_accuracy"]}
        self.hide(plan, context, gradient, 1, self.noise_eps)


@dataclass(frozen=True)
class StrongerAugmentation(HiddenNoise):
    """Trains a network of two layers adversarially, adds to every image the noise that would mislead it, and trains on
    that with the augmentation of contrastive learning in place of crop and flip.

    The published width is the number of an image's values (3,072 for CIFAR-10) and the published length 100 epochs:
    some 430 MFLOP per image and epoch.
    """

    summary = "noise against a two-layer network, and strong augmentation (SDAAN)"
    source = "Zhu, Yu and Gao, Detection and Defense of Unlearnable Examples, AAAI 2024"
    excludes: ClassVar[dict[str, str]] = {
        "linear-noise": "add noise of the same kind: choose one",
        "ueraser": "both replace crop and flip: choose one",
    }

    hidden: int | None = parameter(None, "width of the hidden layer (default: as many as values)", at_least=1)
    noise_epochs: int = parameter(100, "epochs of the two-layer network", at_least=1)
    strength: float = parameter(1.0, "of the augmentation, 0 to 1; 0: the recipe's own", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        if self.strength > 1:
            raise InputError(f"sdaan: strength must be at most 1, got {self.strength:g}")
        with plan.timed("fit"):
            network, history = self._trained(plan.train, context)
        plan.notes |= {"noise_network": {"hidden": network[0].out_features, "epochs": history}}
        self.hide(plan, context, gradient_of(network), SEARCH_STEPS, LAST_STEP)
        if self.strength:
            plan.recipe = replace(plan.recipe, augment=None, strong=False)
            plan.hooks.append(contrastive(self.strength))

    def _trained(self, data: Dataset, context: Context) -> tuple[nn.Sequential, list[dict[str, float]]]:
        """The two-layer network, and the loss and accuracy of each epoch on the noisy images."""
        device, seed = context.device, context.seed
        d = math.prod(data.image_shape)
        width = self.hidden or d
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, data.num_classes))
        network.to(device)
        optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY)
        gradient = gradient_of(network)

        def epoch_of(epoch: int) -> dict[str, float]:
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.1 ** sum(epoch >= share * self.noise_epochs for share in DROPS)
            total = torch.zeros(2, device=device)
            for x, y in _batches(data, seed, epoch, device):
                x = ascended(x, y, gradient, SEARCH_STEPS, TRAIN_STEP, self.noise_eps)
                out = network(x)
                loss = nn.functional.cross_entropy(out, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += torch.stack([loss.detach() * len(y), (out.argmax(1) == y).sum()])
            loss_sum, right = (total / len(data)).tolist()
            return {"loss": loss_sum, "accuracy": right}

        identity = {"data": data.fingerprint(), "hidden": width, "epochs": self.noise_epochs, "eps": self.noise_eps}
        return network, trained(
            network,
            optimizer,
            self.noise_epochs,
            epoch_of,
            name="sdaan",
            identity={**identity, "seed": seed},
            context=context,
        )


def gradient_of(network: nn.Sequential) -> Gradient:
    """Of a network of two layers."""
    first, _, last = network
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)

    @torch.no_grad()
    def gradient(x: Tensor, y: Tensor) -> Tensor:
        hidden = first(x).relu_()
        back = _residual(last(hidden), y) @ last.weight
        return (back * (hidden > 0)) @ first.weight

    return gradient


def _residual(logits: Tensor, y: Tensor) -> Tensor:
    """The gradient of each image's cross-entropy with respect to its logits."""
    probability = logits.softmax(1)
    probability[torch.arange(len(y), device=y.device), y] -= 1
    return probability


def _batches(data: Dataset, seed: int, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    order = shuffled(len(data), seed, epoch)
    for first in range(0, len(order), BATCH):
        index = order[first : first + BATCH]
        x = as_tensor(data.images[index]).to(device).flatten(1).float() / 255
        yield x, as_tensor(data.labels[index]).to(device)


def contrastive(strength: float) -> BatchHook:
    """Resized crop, flip, jitter and gray of `poisons.augment.augmented`, drawn for each image."""

    @torch.no_grad()
    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        draws = torch.rand(len(x), DRAWS).to(x.device)
        return step.normalised(augmented(step.pixels(x).clamp(0, 1), draws, strength)).to(x.dtype), y

    return hook
