"""`cutout`, `mixup` and `cutmix`: augmentations of whole batches that were proposed against poisons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from ..parameters import parameter
from ..training import mixing
from .base import BATCHES, Attack, Context, Plan

ONE_MIX = "both mix labels: choose one"


@dataclass(frozen=True)
class Cutout(Attack):
    """Puts a black square at a random place in every image, clipped at the border."""

    stage: ClassVar[int] = BATCHES
    summary = "a random square of every image is blackened"
    source = "DeVries and Taylor, Improved Regularization with Cutout, 2017"

    length: int | None = parameter(None, "side of the square (default: half the image, 16 at 32 px)", at_least=1)

    def apply(self, plan: Plan, context: Context) -> None:
        height, width, _ = plan.train.image_shape
        plan.hooks.append(mixing.cutout(self.length or min(height, width) // 2))


@dataclass(frozen=True)
class MixUp(Attack):
    """Blends images and labels with others of the batch."""

    stage: ClassVar[int] = BATCHES
    summary = "images and labels blended in pairs"
    source = "Zhang et al., mixup, ICLR 2018"
    excludes: ClassVar[dict[str, str]] = {"cutmix": "both mix labels: choose one"}

    alpha: float = parameter(1.0, "parameter of the Beta distribution of the share", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        plan.hooks.append(mixing.mixup(plan.train.num_classes, self.alpha))


@dataclass(frozen=True)
class CutMix(Attack):
    """Replaces a rectangle of every image by one from another image; labels are mixed by area."""

    stage: ClassVar[int] = BATCHES
    summary = "rectangles and labels exchanged in pairs"
    source = "Yun et al., CutMix, ICCV 2019"

    probability: float = parameter(0.5, "probability that a batch is mixed", at_least=0)
    beta: float = parameter(1.0, "parameter of the Beta distribution of the area", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        if self.probability > 1:
            raise InputError(f"cutmix: probability must be at most 1, got {self.probability:g}")
        if plan.recipe.cutmix:
            raise InputError(f"recipe {plan.recipe.name} has CutMix already: leave cutmix out, or take another recipe")
        plan.hooks.append(mixing.cutmix(plan.train.num_classes, self.probability, self.beta))
