"""`em`: error-minimising noise, found while the surrogate trains on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    descend,
    new_surrogate,
    part,
    searching,
    shuffled,
)


@dataclass(frozen=True)
class ErrorMinimising(SurrogatePoison):
    """Min-min: a few training steps of the surrogate on the perturbed images, then steps of the noise down its loss,
    until hardly any perturbed image is classified wrong. Noise starts at zero; there is no augmentation.

    Class-wise noise takes one step a round, along the sign of the gradient summed over the class's images.
    """

    summary = "error-minimising noise (min-min)"
    source = "Huang et al., Unlearnable Examples: Making Personal Data Unexploitable, ICLR 2021"
    aliases = ("error-minimizing", "error-minimising", "unlearnable-examples")

    wise: str = parameter("sample", "one perturbation per sample or one per class", choices=("sample", "class"))
    alpha: float | None = parameter(None, "size of a step of the noise (default eps / 10)", at_least=0)
    steps: int | None = parameter(None, "steps of the noise a round (default 20; class-wise 1)", at_least=1)
    train_steps: int = parameter(10, "steps of the surrogate a round", at_least=1)
    rounds: int = parameter(100, "most rounds", at_least=1)
    stop: float | None = parameter(
        None, "error on perturbed images that ends it (default 0.01; class-wise 0.1)", at_least=0
    )
    lr: float = parameter(0.1, "the surrogate's learning rate", at_least=0)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        classwise = self.wise == "class"
        return {
            **self.parameters(),
            "alpha": self.eps / 10 if self.alpha is None else self.alpha,
            "steps": self.steps or (1 if classwise else 20),
            "stop": self.stop if self.stop is not None else 0.1 if classwise else 0.01,
        }

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        values, device = self.resolved(dataset), torch.device(work.device)
        images, surrogate = Images(dataset, device), new_surrogate(self.surrogate, dataset, seed, device)
        optimizer = torch.optim.SGD(surrogate.model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        classwise = self.wise == "class"
        store = self.open_store(dataset, work, dataset.num_classes if classwise else None)
        search = Search(work, store, self.identity(dataset, seed), (surrogate.model, optimizer))
        history: list[dict[str, float]] = search.begin({"rounds": []})["rounds"]
        one_round = self._class_round if classwise else self._sample_round
        with surrogate.learning(min(self.batch_size, images.n)):
            while len(history) < self.rounds and not (history and history[-1]["error"] < values["stop"]):
                number = len(history)
                # Of networks that drop out, not alike in all parts of a batch.
                torch.manual_seed((seed * 1_000_003 + number + (distributed.rank() << 48)) % (1 << 63))
                surrogate.model.train()
                for step in range(self.train_steps):
                    batch = shuffled(images.n, self.batch_size, seed, number * self.train_steps + step)
                    index, _ = part(batch)
                    y = images.labels[index.to(device)]
                    x = _perturbed(images, store, index, classwise)
                    loss = surrogate.learn(x, y, optimizer, len(batch), clip=5.0)
                check_finite(float(distributed.sum_(loss)), f"round {number + 1}")
                with searching(surrogate):
                    row = one_round(surrogate, images, store, values, work, number)
                check_finite(row["loss_after"], f"round {number + 1}")
                history.append(row)
                search.commit({"rounds": history})
                work.tell("rounds", len(history), self.rounds, loss=row["loss_after"], accuracy=1 - row["error"])
        search.commit({"rounds": history}, last=True)
        work.facts |= {"rounds": history}
        return store

    def _sample_round(
        self,
        surrogate: Surrogate,
        images: Images,
        store: PerturbationStore,
        values: dict[str, Any],
        work: Workplace,
        number: int,
    ) -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        alphas = [-values["alpha"]] * values["steps"]
        for together, index, at in images.chunks(self.batch_size):
            start, y = images.pixels(index), images.labels[index.to(images.device)]
            x = (start + store.read(index, images.device)).clamp_(0, 1)
            if len(index):
                before = descend([surrogate], x, start, y, alphas=alphas, eps=self.eps)
                after, correct = surrogate.judge(x, y)
                totals += torch.stack([before.sum(), after.sum(), correct.sum()]).cpu()
            store.write(together, x - start, at)
            work.tell_often("rounds", number + (int(together[-1]) + 1) / images.n, self.rounds)
        return _row(distributed.sum_(totals), images.n)

    def _class_round(
        self,
        surrogate: Surrogate,
        images: Images,
        store: PerturbationStore,
        values: dict[str, Any],
        work: Workplace,
        number: int,
    ) -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        classes = torch.arange(store.rows)
        delta = store.read(classes, images.device)
        for _ in range(values["steps"]):
            before = torch.zeros((), dtype=torch.float64)
            gradient = torch.zeros_like(delta)
            for together, index, _ in images.chunks(self.batch_size):
                if len(index):
                    y = images.labels[index.to(images.device)]
                    each, losses, _ = surrogate.gradient((images.pixels(index) + delta[y]).clamp_(0, 1), y)
                    gradient.index_add_(0, y, each)
                    before += losses.double().sum().cpu()
                work.tell_often("rounds", number + (int(together[-1]) + 1) / images.n, self.rounds)
            totals[0] = totals[0] or before
            distributed.sum_(gradient)
            ops.pgd_step(delta, gradient, torch.zeros_like(delta), alpha=-values["alpha"], eps=self.eps, clamp=False)
        mine, at = part(classes)
        store.write(classes, delta[mine], at)
        delta = store.read(classes, images.device)
        for _, index, _ in images.chunks(self.batch_size):
            if len(index):
                y = images.labels[index.to(images.device)]
                losses, correct = surrogate.judge((images.pixels(index) + delta[y]).clamp_(0, 1), y)
                totals[1:] += torch.stack([losses.sum(), correct.sum()]).cpu()
        return _row(distributed.sum_(totals), images.n)


def _perturbed(images: Images, store: PerturbationStore, index: Tensor, classwise: bool) -> Tensor:
    rows = images.labels[index.to(images.device)] if classwise else index
    return (images.pixels(index) + store.read(rows, images.device)).clamp_(0, 1)


def _row(totals: Tensor, n: int) -> dict[str, float]:
    """Mean loss of the round's search before and after it, and the error after it."""
    before, after, correct = (totals / n).tolist()
    return {"loss_before": before, "loss_after": after, "error": 1 - correct}
