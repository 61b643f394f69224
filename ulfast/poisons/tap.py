"""`tap`: targeted adversarial examples as a poison."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Workplace
from .store import PerturbationStore
from .surrogate import Images, Search, SurrogatePoison, sweep, trained_surrogates


@dataclass(frozen=True)
class TargetedAdversarial(SurrogatePoison):
    """Adversarial examples of a network trained on the clean images: towards the next class (y + 1), or, untargeted,
    away from the own one. Every image starts at random in the ball; the step size falls linearly to zero.

    The published crafting also crops and flips at every step; this one does not.
    """

    summary = "targeted adversarial examples of a clean network"
    source = "Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021"
    aliases = ("targeted-adversarial-poisoning", "adversarial-poisoning")

    targeted: bool = parameter(True, "towards class y + 1; false: away from y")
    alpha: float | None = parameter(None, "first step (default eps / 4)", at_least=0)
    steps: int = parameter(250, "steps of each image", at_least=1)
    batch_size: int = parameter(128, "images per step", at_least=1)
    restarts: int = parameter(1, "random starts, of which the best is kept (the paper: 8)", at_least=1)
    epochs: int | None = parameter(None, "of the clean network (default: the quick recipe's)", at_least=1)

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        surrogates = trained_surrogates(self.surrogate, dataset, self.epochs, seed, work)
        images = Images(dataset, surrogates[0].device)
        store = self.open_store(dataset, work)
        first = self.eps / 4 if self.alpha is None else self.alpha
        sign, shift = (-1, 1) if self.targeted else (1, 0)
        sweep(
            surrogates,
            images,
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + shift) % dataset.num_classes,
            alphas=[sign * first * (1 - step / self.steps) for step in range(self.steps)],
            batch_size=self.batch_size,
            restarts=self.restarts,
            seed=seed,
        )
        return store
