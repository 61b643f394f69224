"""`adversarial` and `ueraser`: train on the hardest version of each image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..parameters import parameter
from ..training import adversaries
from .base import SEARCH, Attack, Context, Plan
from .squeeze import JPEG

LINF_STEP = 2 / 255  # as published, whatever the bound
BEST_JPEG = 99


@dataclass(frozen=True)
class AdversarialTraining(Attack):
    """Perturbs every batch by PGD against the current network. It costs as much as steps + 1 trainings."""

    stage: ClassVar[int] = SEARCH
    summary = "adversarial training, PGD-10"
    source = "Madry et al., ICLR 2018; against poisons: Tao et al., NeurIPS 2021"
    aliases = ("at", "adv", "pgd")

    norm: str = parameter("linf", "norm of the bound", choices=("linf", "l2"))
    at_eps: float | None = parameter(None, "bound, pixels in [0, 1] (default 8/255, or 0.5 in L2)", at_least=0)
    at_steps: int = parameter(10, "PGD steps", at_least=1)
    at_alpha: float | None = parameter(
        None, "step size (default 2/255; in L2, 2.5 bounds divided by the number of steps)", at_least=0
    )
    at_start: str = parameter(
        "uniform", "start: in the bound, or a step times normal noise (APBench)", choices=("uniform", "normal")
    )

    def apply(self, plan: Plan, context: Context) -> None:
        eps = self.at_eps if self.at_eps is not None else 8 / 255 if self.norm == "linf" else 0.5
        alpha = self.at_alpha
        if alpha is None:
            alpha = LINF_STEP if self.norm == "linf" else 2.5 * eps / self.at_steps
        clamp = not plan.removal  # pixels in [0, 1] stay there
        plan.hooks.append(adversaries.pgd(eps, self.at_steps, alpha, self.norm, clamp, self.at_start))


@dataclass(frozen=True)
class UEraser(Attack):
    """Strong augmentations; in the first epochs, the worst of several copies of each image."""

    stage: ClassVar[int] = SEARCH
    summary = "plasma, channel shuffle, TrivialAugment; at first the worst of 5 copies"
    source = "Qin et al., Learning the Unlearnable, 2023 (arXiv 2303.15127)"
    excludes: ClassVar[dict[str, str]] = {"adversarial": "both search for the hardest images: choose one"}

    copies: int = parameter(5, "copies of each image to compare", at_least=1)
    search_epochs: int | None = parameter(
        None, "epochs with the search (default a quarter; published 50 of 200)", at_least=0
    )
    search_mode: str = parameter(
        "training", "mode of the network during the search", choices=("training", "evaluation")
    )
    plasma: float = parameter(0.5, "probability of plasma brightness and contrast (APBench: 1)", at_least=0)
    jpeg: str = parameter(
        "none",
        "as published for tap and ar: at jpeg_quality after the rest (fixed), or before it, drawn from there to 99",
        choices=("none", "fixed", "drawn"),
    )
    jpeg_quality: int = parameter(10, "lowest quality of `jpeg`", at_least=1)

    def apply(self, plan: Plan, context: Context) -> None:
        if plan.train.image_shape[2] != 3:
            raise InputError("ueraser shuffles colour channels, and gray images have none: leave it out")
        if self.jpeg_quality > BEST_JPEG:
            raise InputError(f"ueraser: jpeg_quality must be at most {BEST_JPEG}, got {self.jpeg_quality}")
        if self.plasma > 1:
            raise InputError(f"ueraser: plasma must be at most 1, got {self.plasma:g}")
        epochs = self.search_epochs if self.search_epochs is not None else max(1, plan.recipe.epochs // 4)
        low = self.jpeg_quality
        hook = adversaries.worst_augmentation(
            self.copies,
            epochs,
            training=self.search_mode == "training",
            plasma=self.plasma,
            before=_compressed(low, BEST_JPEG) if self.jpeg == "drawn" else None,
            after=_compressed(low, low) if self.jpeg == "fixed" else None,
        )
        plan.hooks.append(hook)


def _compressed(low: int, high: int) -> adversaries.PixelMap:
    """JPEG compression at one quality per batch, drawn each time from torch's CPU generator."""

    def through(x: Tensor) -> Tensor:
        quality = int(torch.randint(low, high + 1, ()))
        levels = (255 * x).round().clamp(0, 255).permute(0, 2, 3, 1).contiguous().to("cpu", torch.uint8)
        images = torch.from_numpy(JPEG(quality=quality).image_map(x.shape[1])(levels.numpy()))
        return images.to(x.device).permute(0, 3, 1, 2).to(x.dtype) / 255

    return through
