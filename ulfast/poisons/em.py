"""`em` and `aue`: error-minimising noise, found while the surrogate trains on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import distributed, ops
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .augment import shown
from .base import Perturb, Workplace
from .rem import RobustErrorMinimising
from .store import PerturbationStore
from .surrogate import (
    Augment,
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

# Augmentation draws for the surrogate's training are numbered from here, those for the search from zero.
TRAINING = 1 << 28


@dataclass(frozen=True)
class MinMin(SurrogatePoison):
    """Shared by the min-min methods: some training steps of the surrogate on the perturbed images, then steps of the
    noise down its loss, until hardly any perturbed image is misclassified. Noise starts at zero.
    """

    weight_decay: ClassVar[float] = 5e-4
    clip: ClassVar[float] = 5.0  # largest norm of the surrogate's gradient; 0: unlimited
    cosine: ClassVar[bool] = False  # the learning rate falls to zero instead of staying constant

    wise: str = parameter("sample", "one perturbation per sample or one per class", choices=("sample", "class"))
    alpha: float | None = parameter(None, "step size of the noise (default eps / 10)", at_least=0)
    steps: int | None = parameter(None, "steps of the noise per round (default 20; class-wise 1 per batch)", at_least=1)
    batch_size: int | None = parameter(None, "images per step (default 128; class-wise 512)", at_least=1)
    subset: float = parameter(0.2, "share of each class on which class-wise noise is searched", at_least=0)
    train_steps: int | None = parameter(None, "steps of the surrogate per round (default 10)", at_least=1)
    rounds: int | None = parameter(None, "largest number of rounds (default 100)", at_least=1)
    stop: float | None = parameter(
        None, "error on perturbed images that ends it (default 0.01; class-wise 0.1)", at_least=0
    )
    lr: float = parameter(0.1, "the surrogate's learning rate", at_least=0)
    strength: float | None = parameter(
        None, "strength of crop, mirroring and jitter in training and search, in [0, 1] (default 0: none)", at_least=0
    )

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        classwise = self.wise == "class"
        return {
            **self.parameters(),
            "alpha": self.eps / 10 if self.alpha is None else self.alpha,
            "steps": self.steps or (1 if classwise else 20),
            "train_steps": self.train_steps or 10,
            "rounds": self.rounds or 100,
            "stop": self.stop if self.stop is not None else 0.1 if classwise else 0.01,
            "batch_size": self.batch_size or (512 if classwise else 128),
            "strength": self.strength or 0.0,
        }

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if not 0 < self.subset <= 1:
            raise InputError(f"subset must be above 0 and at most 1, got {self.subset:g}")
        if self.strength is not None and self.strength > 1:
            raise InputError(f"strength must be between 0 and 1, got {self.strength:g}")
        return super().prepare(dataset, seed, work)

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        values, device = self.resolved(dataset), torch.device(work.device)
        images, surrogate = Images(dataset, device), new_surrogate(self.surrogate, dataset, seed, device)
        optimizer = torch.optim.SGD(
            surrogate.model.parameters(), lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
        most, each, strength = values["rounds"], values["train_steps"], values["strength"]
        classwise = self.wise == "class"
        store = self.open_store(dataset, work, dataset.num_classes if classwise else None)
        search = Search(work, store, self.identity(dataset, seed), (surrogate.model, optimizer))
        history: list[dict[str, float]] = search.begin({"rounds": []})["rounds"]
        subset = share_of_classes(images.labels.cpu(), self.subset, seed) if classwise else None
        with surrogate.learning(min(values["batch_size"], images.n)):
            while len(history) < most and not (history and history[-1]["error"] < values["stop"]):
                number = len(history)
                # Of networks that drop out, not alike in all parts of a batch.
                torch.manual_seed((seed * 1_000_003 + number + (distributed.rank() << 48)) % (1 << 63))
                surrogate.model.train()
                for at in range(number * each, (number + 1) * each):
                    batch = shuffled(images.n, values["batch_size"], seed, at)
                    index, begin = part(batch)
                    y = images.labels[index.to(device)]
                    x = _perturbed(images, store, index, classwise)
                    if strength:
                        x, _ = shown(x, strength, seed, TRAINING + at, begin)
                    if self.cosine:
                        for group in optimizer.param_groups:
                            group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * at / (most * each)))
                    loss = surrogate.learn(x, y, optimizer, len(batch), clip=self.clip)
                check_finite(float(distributed.sum_(loss)), f"round {number + 1}")
                with searching(surrogate):
                    if subset is None:
                        row = self._sample_round(surrogate, images, store, values, work, number, seed)
                    else:
                        row = self._class_round(surrogate, images, store, values, work, number, subset, seed)
                check_finite(row["loss_after"], f"round {number + 1}")
                history.append(row)
                search.commit({"rounds": history})
                work.tell("rounds", len(history), most, loss=row["loss_after"], accuracy=1 - row["error"])
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
        seed: int,
    ) -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        alphas = [-values["alpha"]] * values["steps"]
        for together, index, at in images.chunks(values["batch_size"]):
            start, y = images.pixels(index), images.labels[index.to(images.device)]
            x = (start + store.read(index, images.device)).clamp_(0, 1)
            if len(index):
                augment = self._augment(values, seed, number * values["steps"], int(index[0]))
                before = descend([surrogate], x, start, y, alphas=alphas, eps=self.eps, augment=augment)
                after, correct = surrogate.judge(x, y)
                totals += torch.stack([before.sum(), after.sum(), correct.sum()]).cpu()
            store.write(together, x - start, at)
            work.tell_often("rounds", number + (int(together[-1]) + 1) / images.n, values["rounds"])
        return _row(distributed.sum_(totals), images.n)

    def _class_round(
        self,
        surrogate: Surrogate,
        images: Images,
        store: PerturbationStore,
        values: dict[str, Any],
        work: Workplace,
        number: int,
        subset: Tensor,
        seed: int,
    ) -> dict[str, float]:
        totals = torch.zeros(3, dtype=torch.float64)
        classes, n = torch.arange(store.rows), len(subset)
        delta = store.read(classes, images.device)
        size = min(values["batch_size"], n)
        batches = n // size  # an incomplete last batch is dropped
        for step in range(batches):
            index, begin = part(subset[shuffled(n, size, seed, number * batches + step)])
            total, count = torch.zeros_like(delta), torch.zeros(store.rows, device=images.device)
            if len(index):
                y = images.labels[index.to(images.device)]
                augment = self._augment(values, seed, (number * batches + step) * values["steps"], begin)
                noise, losses = self._stepped(surrogate, images.pixels(index), delta[y], y, values, augment)
                total.index_add_(0, y, noise)
                count += torch.bincount(y, minlength=store.rows)
                totals[0] += losses.double().sum().cpu() * (n / (size * batches))
            distributed.sum_(total)
            distributed.sum_(count)
            mean = (total / count.clamp_min(1)[:, None, None, None]).clamp_(-self.eps, self.eps)
            delta = torch.where((count > 0)[:, None, None, None], mean, delta)
            work.tell_often("rounds", number + (step + 1) / batches, values["rounds"])
        mine, at = part(classes)
        store.write(classes, delta[mine], at)
        delta = store.read(classes, images.device)
        mine, _ = part(subset)
        for index in mine.split(values["batch_size"]):
            if len(index):
                y = images.labels[index.to(images.device)]
                losses, correct = surrogate.judge((images.pixels(index) + delta[y]).clamp_(0, 1), y)
                totals[1:] += torch.stack([losses.sum(), correct.sum()]).cpu()
        return _row(distributed.sum_(totals), n)

    def _augment(self, values: dict[str, Any], seed: int, number: int, first: int) -> Augment | None:
        """The surrogate's view in the steps of a batch, which are numbered from `number`."""
        if not values["strength"]:
            return None
        return lambda x, step: shown(x, values["strength"], seed, number + step, first)

    def _stepped(
        self,
        surrogate: Surrogate,
        start: Tensor,
        noise: Tensor,
        y: Tensor,
        values: dict[str, Any],
        augment: Augment | None,
    ) -> tuple[Tensor, Tensor]:
        """Each image's noise after its steps, and the losses (b,) before them.

        The network sees pixels in [0, 1]; after the last step the noise may point outside that range, as published.
        """
        x, first = start + noise, None
        for step in range(values["steps"]):
            x.clamp_(0, 1)
            seen, back = (x, None) if augment is None else augment(x, step)
            gradient, losses, _ = surrogate.gradient(seen, y)
            gradient = gradient if back is None else back(gradient)
            first = losses if first is None else first
            ops.pgd_step(x, gradient, start, alpha=-values["alpha"], eps=self.eps, clamp=False)
        assert first is not None
        return x - start, first


@dataclass(frozen=True)
class ErrorMinimising(MinMin):
    """Min-min: a few training steps of the surrogate on the perturbed images, then steps of the noise down its loss,
    until hardly any perturbed image is misclassified. Noise starts at zero; there is no augmentation.

    Class-wise noise is searched on a fifth of every class, with one step per batch: each image's noise takes a step
    from that of its class, and the class noise becomes the mean over its images in the batch.

    The preset "fu" is the search with which the authors of `rem` compare: for each of 5,000 steps of the surrogate the
    noise of its batch is searched again from a random start with ten steps of eps / 5, and in the end the noise of
    every image. It does not stop at an error; `rounds` is its number of steps, and `train_steps`, `stop` and `subset`
    have no effect.
    """

    summary = "error-minimising noise (min-min)"
    source = "Huang et al., Unlearnable Examples: Making Personal Data Unexploitable, ICLR 2021"
    aliases = ("error-minimizing", "error-minimising", "unlearnable-examples")

    preset: str = parameter(
        "huang", "huang: until the error is small; fu: a number of steps, from random starts", choices=("huang", "fu")
    )

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        values = super().resolved(dataset)
        if self.preset == "fu":
            return {
                **values,
                "alpha": self.eps / 5 if self.alpha is None else self.alpha,
                "steps": self.steps or 10,
                "train_steps": 1,
                "rounds": self.rounds or 5000,
                "stop": 0.0,
            }
        return values

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        if self.preset == "huang":
            return super().find(dataset, seed, work)
        if self.wise == "class" or self.strength:
            raise InputError("the preset fu is sample-wise and has no augmentation: leave wise and strength out")
        values = self.resolved(dataset)
        search = RobustErrorMinimising(
            iterations=values["rounds"],
            steps_a=0,
            samples=1,
            moves=False,
            **{key: values[key] for key in ("eps", "surrogate", "store", "alpha", "steps", "batch_size", "lr")},
        )
        return search.find(dataset, seed, work)


@dataclass(frozen=True)
class AugmentedErrorMinimising(MinMin):
    """Min-min with the augmentation of contrastive learning in the training and inside the noise's gradient, so that
    the noise survives it: sixty training passes, each followed by a few steps of every image's noise. It does not stop
    at an error. Jitter is applied in a fixed order, and hue is rotated in NTSC's colour plane.
    """

    summary = "error-minimising noise through strong augmentation, against contrastive learning too"
    source = "Wang et al., Efficient Availability Attacks against Supervised and Contrastive Learning, NeurIPS 2024"
    aliases = ("augmented-unlearnable-examples",)
    weight_decay: ClassVar[float] = 1e-4
    clip: ClassVar[float] = 0.0
    cosine: ClassVar[bool] = True

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        values = super().resolved(dataset)
        return {
            **values,
            "steps": self.steps or (1 if self.wise == "class" else 5),
            "train_steps": self.train_steps or math.ceil(len(dataset) / values["batch_size"]),
            "rounds": self.rounds or 60,
            "stop": self.stop or 0.0,
            "strength": (1.0 if dataset.num_classes >= 100 else 0.6) if self.strength is None else self.strength,
        }


def share_of_classes(labels: Tensor, share: float, seed: int) -> Tensor:
    """Sorted indices (m,) int64 of a share of every class's images, at least one, drawn from the seed."""
    draw = ops.philox_uniform(seed, ops.philox.STREAM_SURROGATE, 1 << 62, len(labels), 1)[:, 0]
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        chosen[rows[draw[rows].argsort(stable=True)[: max(1, round(share * len(rows)))]]] = True
    return chosen.nonzero()[:, 0]


def _perturbed(images: Images, store: PerturbationStore, index: Tensor, classwise: bool) -> Tensor:
    rows = images.labels[index.to(images.device)] if classwise else index
    return (images.pixels(index) + store.read(rows, images.device)).clamp_(0, 1)


def _row(totals: Tensor, n: int) -> dict[str, float]:
    """Mean loss of the n images of a round's search, before and after it, and their error after it."""
    before, after, correct = (totals / n).tolist()
    return {"loss_before": before, "loss_after": after, "error": 1 - correct}
