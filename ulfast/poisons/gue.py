"""`gue`: a network that maps any image to its noise, found as the leader of a game with a classifier."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .base import Workplace
from .generator import Generator, GeneratorPoison, normal, shared
from .surrogate import Images, Surrogate, check_finite, new_surrogate, part, shuffled

ETA = 1.5  # how fast the classifier's own optimum must be approached


@dataclass(frozen=True)
class GameUnlearnable(GeneratorPoison):
    """In this game the leader is a generator of noise and the follower a classifier that trains on the noisy images;
    the leader wants wrong labels to be likely on clean images. A value function couples the two: how much the
    classifier could still gain on a batch of noisy images in a few steps of Adam. Only first derivatives are needed.

    The generator is saved to a file and also poisons unseen images (`--generator`).
    """

    summary = "noise from a generator, which poisons unseen images too"
    source = "Liu et al., Game-Theoretic Unlearnable Example Generator, AAAI 2024"
    aliases = ("game-unlearnable-examples",)

    name = "gue"

    epochs: int = parameter(50, "passes over the images", at_least=1)
    batch_size: int = parameter(256, "images per step", at_least=2)
    inner_steps: int = parameter(10, "steps of the classifier's copy towards its optimum", at_least=1)
    inner_lr: float = parameter(1e-4, "learning rate of these steps (Adam)", at_least=0)
    lr: float = parameter(0.01, "the classifier's learning rate", at_least=0)
    generator_lr: float = parameter(0.1, "the generator's learning rate", at_least=0)

    def train(self, dataset: Dataset, seed: int, work: Workplace) -> Generator:
        device = torch.device(work.device)
        images, surrogate = Images(dataset, device), new_surrogate(self.surrogate, dataset, seed, device)
        size = min(self.batch_size, images.n)
        if size < distributed.size():
            raise InputError(f"batches of {size} images for {distributed.size()} processes: give fewer")
        torch.manual_seed(seed % (1 << 63))
        generator = Generator(dataset.image_shape[2], self.width).to(device)
        both = nn.ModuleDict({"generator": generator, "classifier": surrogate.model})
        groups: list[dict[str, Any]] = [
            {"params": list(generator.parameters()), "lr": self.generator_lr},
            {"params": list(surrogate.model.parameters()), "lr": self.lr},
        ]
        optimizer = torch.optim.SGD(groups)
        steps = images.n // size

        def epoch_of(rows: list[dict[str, float]]) -> dict[str, float]:
            epoch = len(rows)
            both.train()
            totals = torch.zeros(2, dtype=torch.float64)
            for step in range(steps):
                index, _ = part(shuffled(images.n, size, seed, epoch * steps + step))
                x, y = images.pixels(index), images.labels[index.to(device)]
                totals += _step(self, surrogate, generator, optimizer, x, y, len(index) / size)
                work.tell_often("epochs", epoch + (step + 1) / steps, self.epochs)
            for buffer in both.buffers():
                buffer.copy_(distributed.same(buffer))
            noisy, clean = (totals / steps).tolist()
            check_finite(noisy + clean, f"epoch {epoch + 1}")
            return {"loss_noisy": noisy, "loss_wrong": clean}

        work.facts |= {"epochs": self.kept(dataset, seed, work, both, optimizer, self.epochs, epoch_of)}
        return generator


def _step(
    poison: GameUnlearnable,
    surrogate: Surrogate,
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    share: float,  # fraction of the whole batch that these images form
) -> Tensor:  # losses on the noisy images, and towards wrong labels on the clean ones, (2,) float64
    classifier = surrogate.model
    theta, phi = list(classifier.parameters()), list(generator.parameters())

    def loss(network: nn.Module, pixels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(surrogate.forward(normal(surrogate, pixels), network), y)

    noisy = (x + poison.eps * generator(x)).clamp(0, 1)
    best = copy.deepcopy(classifier)
    inner = torch.optim.Adam(best.parameters(), lr=poison.inner_lr)
    for _ in range(poison.inner_steps):
        gradients = torch.autograd.grad(loss(best, noisy.detach()), list(best.parameters()))
        for p, g in zip(best.parameters(), shared(gradients, share), strict=True):
            p.grad = g
        inner.step()
    best.requires_grad_(False)
    now = loss(classifier, noisy)
    gain = now - loss(best, noisy)  # theta* is a constant, the noise is not
    of_both = shared(torch.autograd.grad(gain, [*theta, *phi]), share)
    q_theta, q_phi = of_both[: len(theta)], of_both[len(theta) :]
    logits = surrogate.forward(normal(surrogate, x))
    wrong = -logits.log_softmax(1)
    wrong = wrong.masked_fill(nn.functional.one_hot(y, logits.shape[1]).bool(), -math.inf).amax(1).mean()
    f_theta = shared(torch.autograd.grad(wrong, theta), share)
    square = sum(float(g.double().square().sum()) for g in of_both)
    inside = sum(float((f.double() * q.double()).sum()) for f, q in zip(f_theta, q_theta, strict=True))
    weight = max(0.0, (ETA * square - inside) / square) if square else 0.0
    for p, g in zip(phi, q_phi, strict=True):
        p.grad = weight * g
    for p, f, q in zip(theta, f_theta, q_theta, strict=True):
        p.grad = f + weight * q
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return distributed.sum_(torch.stack([now.detach(), wrong.detach()]).double().cpu() * share)
