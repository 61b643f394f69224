"""`sep`: targeted noise against many checkpoints of one training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Workplace
from .store import PerturbationStore
from .surrogate import Images, Search, SurrogatePoison, sweep, trained_surrogates


@dataclass(frozen=True)
class SelfEnsemble(SurrogatePoison):
    """Steps down the loss towards the next class (y + 1), mean over checkpoints at even distances of one training on
    the clean images. This is the variant with the cross-entropy, without feature alignment or variance reduction.
    """

    summary = "targeted noise against the checkpoints of a training"
    source = "Chen et al., Self-Ensemble Protection: Training Checkpoints Are Good Data Protectors, ICLR 2023"
    aliases = ("self-ensemble", "self-ensemble-protection")

    alpha: float | None = parameter(None, "size of a step (default eps / 10)", at_least=0)
    batch_size: int = parameter(128, "images per step", at_least=1)
    steps: int = parameter(30, "steps of each image", at_least=1)
    checkpoints: int = parameter(15, "checkpoints of the training; no more than it has epochs", at_least=1)
    epochs: int | None = parameter(None, "epochs of the training (default: the quick recipe's)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**self.parameters(), "alpha": self.eps / 10 if self.alpha is None else self.alpha}

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        surrogates = trained_surrogates(self.surrogate, dataset, self.epochs, seed, work, self.checkpoints)
        work.facts |= {"checkpoints": len(surrogates)}
        store = self.open_store(dataset, work)
        alpha = self.resolved(dataset)["alpha"]
        sweep(
            surrogates,
            Images(dataset, surrogates[0].device),
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + 1) % dataset.num_classes,
            alphas=[-alpha] * self.steps,
            batch_size=self.batch_size,
        )
        return store
