"""`dc`: DeepConfuse, a generator trained so that a classifier's step on its noise raises the loss on clean images."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import distributed
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .base import Workplace
from .generator import Generator, GeneratorPoison, normal, shared
from .surrogate import Images, Surrogate, check_finite, new_surrogate, part, shuffled

JUDGED = 500  # images per batch where a classifier is judged


@dataclass(frozen=True)
class DeepConfuse(GeneratorPoison):
    """In each round a new classifier is trained on the noise of a frozen generator. Before each of its steps, a second
    generator takes one of Adam: up the loss on the clean batch of a classifier that has taken its step on the second
    generator's noise. At the end of the round it becomes the frozen one.

    Kept is the generator whose classifier, at the end of its round, was right on the fewest clean images; a last
    classifier is trained to judge the last generator.

    The published classifier is VGG-11, on pixels that are not normalised.
    """

    name = "dc"
    summary = "noise from a generator trained through a classifier's step, for unseen images too"
    source = "Feng, Cai and Zhou, Learning to Confuse, NeurIPS 2019"
    aliases = ("deepconfuse", "deep-confuse")

    rounds: int = parameter(1000, "times that the generator is renewed", at_least=1)
    epochs: int = parameter(20, "passes over the images in each", at_least=1)
    batch_size: int = parameter(256, "images per step", at_least=2)
    lr: float = parameter(0.01, "the classifier's learning rate, SGD", at_least=0)
    generator_lr: float = parameter(1e-4, "the generator's learning rate, Adam", at_least=0)

    def train(self, dataset: Dataset, seed: int, work: Workplace) -> Generator:
        device = torch.device(work.device)
        images = Images(dataset, device)
        size = min(self.batch_size, images.n)
        if size < distributed.size():
            raise InputError(f"batches of {size} images for {distributed.size()} processes: give fewer")

        def classifier(number: int) -> Surrogate:
            return new_surrogate(self.surrogate, dataset, seed * 1_000_003 + number, device)

        torch.manual_seed(seed % (1 << 63))
        generator = Generator(dataset.image_shape[2], self.width).to(device)
        surrogate = classifier(0)
        networks = nn.ModuleDict(
            {
                "generator": generator,
                "frozen": copy.deepcopy(generator),
                "best": copy.deepcopy(generator),
                "classifier": surrogate.model,
            }
        )
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.generator_lr)
        steps, total = images.n // size, (self.rounds + 1) * self.epochs

        def epoch_of(rows: list[dict[str, float]]) -> dict[str, float]:
            at = len(rows)
            number, epoch = divmod(at, self.epochs)
            if epoch == 0 and number:
                networks["frozen"].load_state_dict(generator.state_dict())
                surrogate.model.load_state_dict(classifier(number).model.state_dict())
            networks.train()
            networks["frozen"].eval()
            losses = torch.zeros(2, dtype=torch.float64)
            for step in range(steps):
                index, _ = part(shuffled(images.n, size, seed, at * steps + step))
                x, y = images.pixels(index), images.labels[index.to(device)]
                share = len(index) / size
                if number < self.rounds:
                    losses[0] += _confuse(self, surrogate, generator, optimizer, x, y, share)
                losses[1] += _learn(self, surrogate, networks["frozen"], x, y, share)
                work.tell_often("epochs", at + (step + 1) / steps, total)
            for buffer in networks.buffers():
                buffer.copy_(distributed.same(buffer))
            row = dict(zip(("loss_clean", "loss_noisy"), (losses / steps).tolist(), strict=True))
            check_finite(sum(row.values()), f"epoch {at + 1}")
            if number == self.rounds:
                del row["loss_clean"]  # the generator has not moved
            if epoch + 1 == self.epochs and number:
                row["clean_accuracy"] = _accuracy(surrogate, images)
                if row["clean_accuracy"] <= min(_judged([*rows, row])):
                    networks["best"].load_state_dict(networks["frozen"].state_dict())
            return row

        history = self.kept(dataset, seed, work, networks, optimizer, total, epoch_of)
        judged = _judged(history)
        work.facts |= {"epochs": history, "round": judged.index(min(judged)) + 1}
        best = networks["best"]
        assert isinstance(best, Generator)
        return best


def _judged(history: list[dict[str, float]]) -> list[float]:
    """Accuracy on the clean images at the end of each round, from the second on."""
    return [row["clean_accuracy"] for row in history if "clean_accuracy" in row]


def _confuse(
    poison: DeepConfuse,
    surrogate: Surrogate,
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    share: float,  # of the whole batch that these images are
) -> float:  # loss on the clean batch after the classifier's step
    """One step of the generator.

    The loss after the step depends on the noise through the classifier's gradient g alone. So the gradient of the loss
    with respect to the generator is that of -lr <v, g>, where v, the slope of the loss at the new weights, is constant.
    """
    names, theta = zip(*surrogate.model.named_parameters(), strict=True)
    buffers = {name: value.clone() for name, value in surrogate.model.named_buffers()}

    def loss(pixels: Tensor, weights: Any) -> Tensor:
        network: Any = functools.partial(
            functional_call, surrogate.model, (dict(zip(names, weights, strict=True)), buffers)
        )
        return nn.functional.cross_entropy(surrogate.forward(normal(surrogate, pixels), network), y)

    noisy = (x + poison.eps * generator(x)).clamp(0, 1)
    own = torch.autograd.grad(loss(noisy, theta), theta, create_graph=True)
    whole = shared([g.detach() for g in own], share)
    stepped = [(p - poison.lr * g).detach().requires_grad_() for p, g in zip(theta, whole, strict=True)]
    after = loss(x, stepped)
    slope = shared(torch.autograd.grad(after, stepped), share)
    product = torch.stack([(g * v).sum() for g, v in zip(own, slope, strict=True)]).sum()
    phi = list(generator.parameters())
    for p, g in zip(phi, shared(torch.autograd.grad(product, phi), share), strict=True):
        p.grad = poison.lr * g  # of the loss's negative, which Adam descends
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(distributed.sum_(after.detach().double().cpu() * share))


def _learn(poison: DeepConfuse, surrogate: Surrogate, frozen: nn.Module, x: Tensor, y: Tensor, share: float) -> float:
    """One step of the classifier on the frozen generator's noise; the loss before it."""
    with torch.no_grad():
        noisy = (x + poison.eps * frozen(x)).clamp(0, 1)
    theta = list(surrogate.model.parameters())
    loss = nn.functional.cross_entropy(surrogate.forward(surrogate.normalised(noisy)), y)
    for p, g in zip(theta, shared(torch.autograd.grad(loss, theta), share), strict=True):
        p.data.sub_(poison.lr * g)
    return float(distributed.sum_(loss.detach().double().cpu() * share))


@torch.no_grad()
def _accuracy(surrogate: Surrogate, images: Images) -> float:
    """On all clean images, in evaluation mode."""
    surrogate.model.eval()
    right = torch.zeros((), dtype=torch.float64)
    for _, index, _ in images.chunks(JUDGED):
        if len(index):
            right += surrogate.judge(images.pixels(index), images.labels[index.to(images.device)])[1].sum().cpu()
    return float(distributed.sum_(right)) / images.n
