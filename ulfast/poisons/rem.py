"""`rem`: noise that stays easy under adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed, ops
from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Workplace
from .store import PerturbationStore
from .surrogate import (
    Images,
    Search,
    Surrogate,
    SurrogatePoison,
    check_finite,
    new_surrogate,
    part,
    searching,
    shuffled,
)


@dataclass(frozen=True)
class Moved:
    """A crop with padding and a mirroring, the same for a whole batch, and the way back.

    The published augmentation draws for each image; a draw a batch keeps both ways a copy without an index.
    """

    dy: int
    dx: int
    flip: bool

    @classmethod
    def draw(cls, padding: int, seed: int, at: int) -> Moved:
        """From (seed, number of the draw) alone."""
        u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, (1 << 50) + at, 1, 3)[0].tolist()
        span = 2 * padding + 1
        return cls(int(u[0] * span) - padding, int(u[1] * span) - padding, u[2] < 0.5)

    def there(self, x: Tensor) -> Tensor:
        """out[y, x] = image[y + dy, x + dx], black outside, then mirrored."""
        out = _shift(x, self.dy, self.dx)
        return out.flip(3) if self.flip else out

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient of what went `there`."""
        return _shift(gradient.flip(3) if self.flip else gradient, -self.dy, -self.dx)


def _shift(x: Tensor, dy: int, dx: int) -> Tensor:
    height, width = x.shape[2:]
    padded = nn.functional.pad(x, (max(-dx, 0), max(dx, 0), max(-dy, 0), max(dy, 0)))
    top, left = max(dy, 0), max(dx, 0)
    return padded[:, :, top : top + height, left : left + width].contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class RobustErrorMinimising(SurrogatePoison):
    """Min-min-max: the noise goes down the loss that is left after an adversary within a smaller ball has gone up on
    the perturbed image, mean over augmentations; the surrogate trains on what the adversary made. In the end the noise
    of every image is searched once more against the final surrogate.
    """

    summary = "error-minimising noise that withstands adversarial training"
    source = "Fu et al., Robust Unlearnable Examples, ICLR 2022"
    aliases = ("robust-error-minimizing", "robust-error-minimising")

    iterations: int = parameter(5000, "steps of the surrogate, a search of its batch's noise at each", at_least=1)
    alpha: float | None = parameter(None, "size of a step of the noise (default eps / 5)", at_least=0)
    steps: int = parameter(10, "steps of the noise", at_least=1)
    eps_a: float | None = parameter(None, "the adversary's bound (default eps / 2)", at_least=0)
    alpha_a: float | None = parameter(None, "the adversary's step (default eps_a / 5)", at_least=0)
    steps_a: int = parameter(10, "the adversary's steps", at_least=0)
    samples: int = parameter(5, "augmentations of each image", at_least=1)
    padding: int = parameter(4, "of the random crop", at_least=0)
    lr: float = parameter(0.1, "the surrogate's learning rate (x0.1 after 40 and 80 %)", at_least=0)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        eps_a = self.eps / 2 if self.eps_a is None else self.eps_a
        return {
            **self.parameters(),
            "alpha": self.eps / 5 if self.alpha is None else self.alpha,
            "eps_a": eps_a,
            "alpha_a": eps_a / 5 if self.alpha_a is None else self.alpha_a,
        }

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        values, device = self.resolved(dataset), torch.device(work.device)
        images, surrogate = Images(dataset, device), new_surrogate(self.surrogate, dataset, seed, device)
        optimizer = torch.optim.SGD(surrogate.model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        store = self.open_store(dataset, work)
        search = Search(work, store, self.identity(dataset, seed), (surrogate.model, optimizer))
        state = search.begin({"iterations": 0, "done": 0, "recent": [], "before": 0.0, "after": 0.0})
        with surrogate.learning(min(self.batch_size, images.n)):
            for at in range(state["iterations"], self.iterations):
                self._iterate(surrogate, images, store, optimizer, values, seed, at, state)
                search.commit(state)
                work.tell_often("iterations", at + 1, self.iterations, loss=state["recent"][-1][1])
        with searching(surrogate):
            for together, index, begin in images.chunks(self.batch_size, state["done"]):
                draw = self.iterations * (self.samples + 1) + (int(together[0]) + begin) * self.samples
                x, losses = self._search(surrogate, images, store, index, values, seed, draw)
                store.write(together, x - images.pixels(index), begin)
                before, after = distributed.sum_(losses).tolist()
                state |= {
                    "done": int(together[-1]) + 1,
                    "before": state["before"] + before,
                    "after": state["after"] + after,
                }
                search.commit(state)
                work.tell("search", state["done"], images.n, loss=state["after"] / state["done"])
        search.commit(state, last=True)
        work.facts |= {
            "recent": state["recent"],
            "loss_before": state["before"] / images.n,
            "loss_after": state["after"] / images.n,
        }
        return store

    def _iterate(
        self,
        surrogate: Surrogate,
        images: Images,
        store: PerturbationStore,
        optimizer: torch.optim.Optimizer,
        values: dict[str, Any],
        seed: int,
        at: int,
        state: dict[str, Any],
    ) -> None:
        """A search of a batch's noise, and a step of the surrogate on what the adversary makes of it."""
        # Of networks that drop out, not alike in all parts of a batch.
        torch.manual_seed((seed * 1_000_003 + at + (distributed.rank() << 48)) % (1 << 63))
        batch = shuffled(images.n, self.batch_size, seed, at)
        index, begin = part(batch)
        y = images.labels[index.to(images.device)]
        with searching(surrogate):
            x, losses = self._search(surrogate, images, store, index, values, seed, at * (self.samples + 1))
            store.write(batch, x - images.pixels(index), begin)
            moved = Moved.draw(self.padding, seed, at * (self.samples + 1) + self.samples).there(x)
            hardest = self._adversary(surrogate, moved, y, values)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1.0 if at < 0.4 * self.iterations else 0.1 if at < 0.8 * self.iterations else 0.01)
        surrogate.model.train()
        surrogate.learn(hardest, y, optimizer, len(batch))
        before, after = (distributed.sum_(losses) / len(batch)).tolist()
        # The last few searches' mean losses, before and after.
        state["recent"] = [*state["recent"][-9:], [before, after]]
        state["iterations"] = at + 1
        if at % 10 == 0 or at + 1 == self.iterations:
            check_finite(after, f"iteration {at + 1}")

    def _adversary(self, surrogate: Surrogate, x: Tensor, y: Tensor, values: dict[str, Any]) -> Tensor:
        """x moved up the loss, within its own ball."""
        hardest = x.clone()
        for _ in range(self.steps_a):
            gradient, _, _ = surrogate.gradient(hardest, y)
            ops.pgd_step(hardest, gradient, x, alpha=values["alpha_a"], eps=values["eps_a"])
        return hardest

    def _search(
        self,
        surrogate: Surrogate,
        images: Images,
        store: PerturbationStore,
        index: Tensor,
        values: dict[str, Any],
        seed: int,
        draw: int,
    ) -> tuple[Tensor, Tensor]:
        """Steps of the noise of the images at `index`: the perturbed pixels, and the adversary's loss summed over the
        images, mean over the augmentations, at the first step and after the last, (2,) float64.
        """
        start, y = images.pixels(index), images.labels[index.to(images.device)]
        x = (start + store.read(index, images.device)).clamp_(0, 1)
        if not len(index):
            return x, torch.zeros(2, dtype=torch.float64)
        moves = [Moved.draw(self.padding, seed, draw + s) for s in range(self.samples)]
        first = last = torch.zeros(())
        for step in range(self.steps + 1):
            total, loss = torch.zeros_like(x), torch.zeros((), device=x.device)
            for move in moves:
                hardest = self._adversary(surrogate, move.there(x), y, values)
                if step == self.steps:
                    loss += surrogate.judge(hardest, y)[0].sum()
                else:
                    gradient, losses, _ = surrogate.gradient(hardest, y)
                    total += move.back(gradient)
                    loss += losses.sum()
            first, last = loss if step == 0 else first, loss
            if step < self.steps:
                ops.pgd_step(x, total, start, alpha=-values["alpha"], eps=self.eps)
        return x, torch.stack([first, last]).double().cpu() / self.samples
