"""`early-stop`, `finetune`, `linear-probe` and `dfr`: methods that need a few clean images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.classes import matched
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from ..training import refit
from .base import NETWORK, Attack, Context, Plan

MOST, SHARE = 5000, 0.1  # clean images used by default: this many, but at most this share of those given
ONE_HEAD = "both refit the last layer: choose one"


@dataclass(frozen=True)
class NeedsClean(Attack):
    """Base of the four: draws clean images, class-balanced, by the seed."""

    stage: ClassVar[int] = NETWORK
    needs_clean: ClassVar[bool] = True

    clean_images: int | None = parameter(
        None, "clean training images to use (default 5,000, at most a tenth)", at_least=1
    )

    def trusted(self, plan: Plan, context: Context) -> Dataset:
        if context.clean is None:
            raise InputError("this method needs some clean training images: give --clean PATH|NAME")
        clean = matched(plan.train, context.clean, names=("training images", "clean images"))
        count = self.clean_images or max(clean.num_classes, min(MOST, int(SHARE * len(clean))))
        return clean.balanced(count, context.seed)


@dataclass(frozen=True)
class EarlyStop(NeedsClean):
    """Keep the epoch with the best accuracy on the clean images."""

    summary = "stop at the epoch that is best on some clean images"
    source = "Sandoval-Segura et al., Autoregressive Perturbations, NeurIPS 2022 (appendix), and common practice"

    def apply(self, plan: Plan, context: Context) -> None:
        plan.select = self.trusted(plan, context)


@dataclass(frozen=True)
class FineTune(NeedsClean):
    """Continue training all layers on the clean images."""

    summary = "after training, train all layers on some clean images"
    source = "Sandoval-Segura et al., NeurIPS 2023, section 4.2 (discussion)"
    aliases = ("fine-tune",)

    finetune_epochs: int = parameter(10, "epochs on the clean images", at_least=1)
    finetune_lr: float = parameter(0.01, "largest learning rate", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        plan.refits.append(refit.finetune(self.trusted(plan, context), self.finetune_epochs, self.finetune_lr))


@dataclass(frozen=True)
class LinearProbe(NeedsClean):
    """Retrain the last linear layer by SGD on the features of the clean images."""

    summary = "after training, retrain the last layer by SGD on some clean images"
    source = "Sandoval-Segura et al., NeurIPS 2023, section 4.2 (discussion)"

    probe_epochs: int = parameter(20, "passes over the features", at_least=1)
    probe_lr: float = parameter(0.1, "learning rate", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        clean = self.trusted(plan, context)
        plan.refits.append(refit.linear_probe(clean, lr=self.probe_lr, epochs=self.probe_epochs))


@dataclass(frozen=True)
class DeepFeatureReweighting(NeedsClean):
    """Refit the last linear layer by LBFGS on the features of the clean images."""

    summary = "after training, refit the last layer by LBFGS to some clean images"
    source = "Kirichenko et al., ICLR 2023; Sandoval-Segura et al., NeurIPS 2023, section 4.2"
    aliases = ("deep-feature-reweighting",)
    excludes: ClassVar[dict[str, str]] = {"linear-probe": ONE_HEAD}

    dfr_augment: bool = parameter(True, "crops and flips, from the trained layer (published); false: plain, from zero")
    dfr_passes: int = parameter(15, "passes over the features, in batches of 1,024", at_least=1)
    dfr_lr: float = parameter(0.5, "learning rate of LBFGS", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        clean = self.trusted(plan, context)
        plan.refits.append(refit.dfr(clean, augment=self.dfr_augment, lr=self.dfr_lr, passes=self.dfr_passes))
