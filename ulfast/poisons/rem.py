"""`rem` and `sem`: noise that remains easy under adversarial training."""

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
    random_start,
    searching,
    shuffled,
)


@dataclass(frozen=True)
class Moved:
    """A padded crop and mirroring of each image of a batch, and its inverse.

    Args:
        dy, dx: (b,) int64 shifts in pixels, of at most `padding`.
        flip: (b,) bool.
    """

    padding: int
    dy: Tensor
    dx: Tensor
    flip: Tensor

    @classmethod
    def draw(cls, padding: int, seed: int, row: int, count: int, device: torch.device) -> Moved:
        """Draws the moves of `count` images, each from (seed, row + its place) alone."""
        u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, (1 << 62) + row, count, 3, device=device)
        dy, dx = ((u[:, :2] * (2 * padding + 1)).long() - padding).unbind(1)
        return cls(padding, dy, dx, u[:, 2] < 0.5)

    def there(self, x: Tensor) -> Tensor:
        """out[y, x] = image[y + dy, x + dx], black outside, then mirrored; x (b, C, H, W)."""
        return self._taken(x, 1)

    def back(self, gradient: Tensor) -> Tensor:
        """Maps the gradient of the result of `there` back to its input."""
        return self._taken(gradient, -1)

    def _taken(self, x: Tensor, sign: int) -> Tensor:
        height, width = x.shape[2:]
        # In a mirrored image the columns are reversed, so the inverse undoes a shift with the same sign.
        direction = 1 - 2 * self.flip.long()
        columns = torch.arange(width, device=x.device) * direction[:, None] + (width - 1) * self.flip[:, None]
        columns = columns + (self.dx * (direction if sign < 0 else 1) * sign)[:, None] + self.padding
        rows = torch.arange(height, device=x.device) + (sign * self.dy)[:, None] + self.padding
        padded = nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, *[self.padding] * 4))
        each = torch.arange(len(x), device=x.device)[:, None, None]
        return padded[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Draws:
    """Successive random draws for a batch of images; each image's part depends on (seed, number of the draw, first +
    its place in the batch) alone.

    Args:
        number: number of the next draw, below 2^29.
        first: place of the batch's first image, below 2^32.
    """

    def __init__(self, seed: int, number: int, first: int) -> None:
        self.seed, self._row = seed, (number << 32) + first

    def moved(self, padding: int, like: Tensor) -> Moved:
        self._row += 1 << 32
        return Moved.draw(padding, self.seed, self._row, len(like), like.device)

    def start(self, like: Tensor, eps: float) -> Tensor:
        self._row += 1 << 32
        return random_start(self.seed, self._row, like, eps)


@dataclass(frozen=True)
class RobustErrorMinimising(SurrogatePoison):
    """Min-min-max: an adversary within a smaller ball ascends the loss on the perturbed image, then the noise descends
    that loss, averaged over augmentations; the surrogate trains on the adversary's images. In the end the noise of
    every image is searched once more against the final surrogate.

    Noise and adversary start at random in their balls each time, and every image gets its own crop and mirroring at
    every step, as published. With `start=stored` the noise continues from its last search, and the adversary starts
    from the image itself.
    """

    summary = "error-minimising noise that withstands adversarial training"
    source = "Fu et al., Robust Unlearnable Examples, ICLR 2022"
    aliases = ("robust-error-minimizing", "robust-error-minimising")

    iterations: int = parameter(5000, "steps of the surrogate, with a search of its batch's noise at each", at_least=1)
    alpha: float | None = parameter(None, "size of a step of the noise (default eps / 5)", at_least=0)
    steps: int = parameter(10, "steps of the noise", at_least=1)
    eps_a: float | None = parameter(None, "the adversary's bound (default eps / 2)", at_least=0)
    alpha_a: float | None = parameter(None, "the adversary's step (default eps_a / 5)", at_least=0)
    steps_a: int = parameter(10, "the adversary's steps", at_least=0)
    inner: str = parameter(
        "adversarial",
        "what moves the perturbed image within eps_a: the adversary or a random draw",
        choices=("adversarial", "random"),
    )
    samples: int = parameter(5, "augmentations of each image", at_least=1)
    start: str = parameter(
        "random", "where a search begins: at random or at the stored noise", choices=("random", "stored")
    )
    padding: int = parameter(4, "padding of the random crop", at_least=0)
    moves: bool = parameter(True, "random crop and mirroring at every step; false: the unchanged image")
    batch_size: int = parameter(128, "images per step", at_least=1)
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
                draws = Draws(seed, self.iterations * self._draws, int(together[0]) + begin)
                x, losses = self._search(surrogate, images, store, index, values, draws)
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
        """A search for a batch's noise, and a surrogate step on the adversary's version of the batch."""
        # Of networks that drop out, not alike in all parts of a batch.
        torch.manual_seed((seed * 1_000_003 + at + (distributed.rank() << 48)) % (1 << 63))
        batch = shuffled(images.n, self.batch_size, seed, at)
        index, begin = part(batch)
        y = images.labels[index.to(images.device)]
        with searching(surrogate):
            draws = Draws(seed, at * self._draws, begin)
            x, losses = self._search(surrogate, images, store, index, values, draws)
            store.write(batch, x - images.pixels(index), begin)
            moved = self._moved(draws, x).there(x)
            hardest = self._adversary(surrogate, moved, y, values, draws)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * (1.0 if at < 0.4 * self.iterations else 0.1 if at < 0.8 * self.iterations else 0.01)
        surrogate.model.train()
        surrogate.learn(hardest, y, optimizer, len(batch))
        before, after = (distributed.sum_(losses) / len(batch)).tolist()
        # Mean losses of the last few searches, before and after.
        state["recent"] = [*state["recent"][-9:], [before, after]]
        state["iterations"] = at + 1
        if at % 10 == 0 or at + 1 == self.iterations:
            check_finite(after, f"iteration {at + 1}")

    @property
    def _draws(self) -> int:
        """Number of draws in a search and the surrogate step after it: a crop and a start for each adversary."""
        return 1 + 2 * self.samples * (self.steps + 1) + 2

    def _moved(self, draws: Draws, x: Tensor) -> Moved:
        if self.moves:
            return draws.moved(self.padding, x)
        still = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return Moved(0, still, still, still.bool())

    def _adversary(self, surrogate: Surrogate, x: Tensor, y: Tensor, values: dict[str, Any], draws: Draws) -> Tensor:
        """Moves x up the loss within the adversary's ball, or to a random place in it."""
        hardest = x.clone()
        if self.inner == "random":
            return hardest.add_(draws.start(x, values["eps_a"])).clamp_(0, 1)
        if self.steps_a and self.start == "random":
            hardest = hardest.add_(draws.start(x, values["eps_a"])).clamp_(0, 1)
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
        draws: Draws,
    ) -> tuple[Tensor, Tensor]:
        """Takes the noise steps for the images at `index`. Returns the perturbed pixels and the adversary's loss,
        summed over the images and averaged over the augmentations, at the first step and after the last, (2,) float64.
        """
        start, y = images.pixels(index), images.labels[index.to(images.device)]
        if not len(index):
            return start, torch.zeros(2, dtype=torch.float64)
        offset = draws.start(start, self.eps) if self.start == "random" else store.read(index, images.device)
        x = (start + offset).clamp_(0, 1)
        first = last = torch.zeros(())
        for step in range(self.steps + 1):
            total, loss = torch.zeros_like(x), torch.zeros((), device=x.device)
            for _ in range(self.samples):
                move = self._moved(draws, x)
                hardest = self._adversary(surrogate, move.there(x), y, values, draws)
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


@dataclass(frozen=True)
class StableErrorMinimising(RobustErrorMinimising):
    """The search of `rem` with a uniform draw in the smaller ball instead of the adversary: an eleventh of the passes
    through the surrogate.
    """

    summary = "rem with random noise instead of its adversary: cheaper"
    source = "Liu et al., Stable Unlearnable Example, AAAI 2024"
    aliases = ("stable-error-minimizing", "stable-error-minimising")

    inner: str = parameter(
        "random",
        "what moves the perturbed image within eps_a: the adversary or a random draw",
        choices=("adversarial", "random"),
    )
