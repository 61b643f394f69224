"""`hypo`: hypocritical perturbations, which make a clean network more certain of the correct class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Workplace
from .store import PerturbationStore
from .surrogate import Images, Search, SurrogatePoison, sweep, trained_surrogates


@dataclass(frozen=True)
class Hypocritical(SurrogatePoison):
    """Error-minimising noise against a fixed network trained on the clean images."""

    summary = "noise that a clean network finds easy"
    source = "Tao et al., Better Safe Than Sorry: Preventing Delusive Adversaries with Adversarial Training, 2021"
    aliases = ("hypocritical",)
    clean_surrogate: ClassVar[bool] = True

    alpha: float | None = parameter(None, "step size (default eps / 10)", at_least=0)
    batch_size: int = parameter(128, "images per step", at_least=1)
    steps: int = parameter(100, "steps per image", at_least=1)
    epochs: int | None = parameter(None, "epochs of the clean network (default: the quick recipe's)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**self.parameters(), "alpha": self.eps / 10 if self.alpha is None else self.alpha}

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        surrogates = trained_surrogates(self.surrogate, dataset, self.epochs, seed, work)
        store = self.open_store(dataset, work)
        alpha = self.resolved(dataset)["alpha"]
        sweep(
            surrogates,
            Images(dataset, surrogates[0].device),
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: y,
            alphas=[-alpha] * self.steps,
            batch_size=self.batch_size,
        )
        return store
