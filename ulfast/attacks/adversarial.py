"""`adversarial` and `ueraser`: train on the hardest version of every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..parameters import parameter
from ..training import adversaries
from .base import SEARCH, Attack, Context, Plan


@dataclass(frozen=True)
class AdversarialTraining(Attack):
    """Every batch is perturbed by PGD against the network as it is. Costs steps + 1 trainings."""

    stage: ClassVar[int] = SEARCH
    summary = "adversarial training, PGD-10"
    source = "Madry et al., ICLR 2018; against poisons: Tao et al., NeurIPS 2021"
    aliases = ("at", "adv", "pgd")

    norm: str = parameter("linf", "of the bound", choices=("linf", "l2"))
    at_eps: float | None = parameter(None, "bound, pixels in [0, 1] (default 8/255, or 0.5 in L2)", at_least=0)
    at_steps: int = parameter(10, "PGD steps", at_least=1)
    at_alpha: float | None = parameter(None, "size of a step (default 2.5 bounds over the number of steps)", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        eps = self.at_eps if self.at_eps is not None else 8 / 255 if self.norm == "linf" else 0.5
        alpha = self.at_alpha if self.at_alpha is not None else 2.5 * eps / self.at_steps
        clamp = not plan.removal  # pixels of [0, 1] stay there
        plan.hooks.append(adversaries.pgd(eps, self.at_steps, alpha, self.norm, clamp))


@dataclass(frozen=True)
class UEraser(Attack):
    """Strong augmentations, and for the first epochs the worst of several copies of each image."""

    stage: ClassVar[int] = SEARCH
    summary = "plasma, channel shuffle, TrivialAugment; the worst of 5 copies at first"
    source = "Qin et al., Learning the Unlearnable, 2023 (arXiv 2303.15127)"
    excludes: ClassVar[dict[str, str]] = {"adversarial": "both search for the hardest images: choose one"}

    copies: int = parameter(5, "of each image that are compared", at_least=1)
    search_epochs: int | None = parameter(
        None, "epochs with the search (default a quarter; published 50 of 200)", at_least=0
    )

    def apply(self, plan: Plan, context: Context) -> None:
        if plan.train.image_shape[2] != 3:
            raise InputError("ueraser shuffles colour channels: gray images have none")
        epochs = self.search_epochs if self.search_epochs is not None else max(1, plan.recipe.epochs // 4)
        plan.hooks.append(adversaries.worst_augmentation(self.copies, epochs))
