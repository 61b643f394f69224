"""`orthogonal` and `orthogonal-classwise`: train on what a linear model did not learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..data.loaders.removal import Removal
from ..errors import InputError
from ..parameters import parameter
from ..projection.basis import Basis
from ..projection.fit import fit_basis
from ..projection.other_fits import FITS, fit_weights, leace, partial_rows
from .base import FIT_FILE, Attack, Context, Plan

SOURCE = "Sandoval-Segura et al., What Can We Learn from Unlearnable Datasets?, NeurIPS 2023, section 4.4"

SAME_FIT = "both project off the same fit: choose one"
REFILLED = "do not go together: the noise fills what each class has lost"


@dataclass(frozen=True)
class LinearFit(Attack):
    """Base of the two: the linear model and its options."""

    init: str = parameter("zero", "start of the linear fit (torch in the paper)", choices=("zero", "torch"))
    fit_steps: int | None = parameter(None, "SGD steps of the fit (default 1,000)", at_least=1)
    fit_epochs: int | None = parameter(None, "epochs of the fit, instead of steps", at_least=1)
    fit_lr: float = parameter(0.1, "learning rate of the fit", at_least=0)

    def sgd(self, plan: Plan, context: Context, rank: int | None = None) -> Basis:
        """The basis fitted to the images, or the one from the context."""
        if context.basis is None:
            return fit_basis(
                plan.train,
                steps=self.fit_steps,
                epochs=self.fit_epochs,
                lr=self.fit_lr,
                init=self.init,
                rank=rank,
                seed=context.seed,
                device=context.device,
                progress=context.progress,
                checkpoint=context.folder / FIT_FILE if context.folder else None,
                resume=context.resume,
            )
        if context.basis.image_shape != plan.train.image_shape:
            raise InputError(
                f"the basis is for images of shape {context.basis.image_shape}, the data has {plan.train.image_shape}:"
                " fit one to this data"
            )
        return context.basis

    def note(self, plan: Plan, basis: Basis) -> None:
        """The result's notes on the fit."""
        plan.basis = basis
        plan.notes |= {"rank": basis.rank, "fit_accuracy": basis.metadata.get("train_accuracy")}


@dataclass(frozen=True)
class OrthogonalProjection(LinearFit):
    """Fit a linear model to the poisoned images, project every training image onto the orthogonal complement of its
    weights, and train on that. Test images are not projected unless `project_test` is set.
    """

    summary = "projection off a linear model's weights"
    source = SOURCE
    aliases: ClassVar[tuple[str, ...]] = ("op", "ortho", "orthogonal-projection")
    excludes: ClassVar[dict[str, str]] = {"orthogonal-classwise": SAME_FIT}

    fit: str = parameter("sgd", "how the directions are found", choices=("sgd", *FITS, "leace"))
    rank: int | None = parameter(None, "directions to remove (default: what the weights span)", at_least=1)
    project_test: bool = parameter(False, "project the test images too")
    partial: bool = parameter(False, "remove a direction only to the extent that the class means differ along it")

    def apply(self, plan: Plan, context: Context) -> None:
        with plan.timed("fit"):
            self.note(plan, self.fitted(plan, context))

    def fitted(self, plan: Plan, context: Context) -> Basis:
        """Returns the directions, and adds what is to be removed to the plan."""
        if self.fit == "leace":
            if self.rank is not None or self.project_test or self.partial:
                raise InputError("fit leace takes no --rank, --project-test or partial: leave them out")
            erasure, basis = leace(plan.train)
            plan.remove(transform=erasure)
        else:
            sgd = self.fit == "sgd" or context.basis is not None
            basis = (
                self.sgd(plan, context, self.rank)
                if sgd
                else fit_weights(plan.train, self.fit, self.rank, context.seed)
            )
            rows = basis.rows
            if self.partial:
                rows = partial_rows(basis, plan.train, device=context.device, shared=True)
            plan.remove(rows=rows)
            if self.project_test:
                plan.test_removal = Removal(rows)
        return basis


@dataclass(frozen=True)
class ClassWiseProjection(LinearFit):
    """Project only its own class's weight vector out of every training image. The label selects the vector, so the
    result can carry a new mark of the label; docs/research/directions.md measures it.
    """

    summary = "projection off the weight vector of the image's class (uses the label)"
    source = SOURCE + " (rank-one form)"
    aliases = ("op-classwise", "classwise")
    excludes: ClassVar[dict[str, str]] = {"mean-noise": REFILLED}

    def apply(self, plan: Plan, context: Context) -> None:
        with plan.timed("fit"):
            basis = self.sgd(plan, context)
        if basis.weights is None:
            raise InputError("this basis has no weights per class: fit one with `ulfast fit`")
        rows = torch.nn.functional.normalize(basis.weights.double(), dim=1).float()[:, None].contiguous()
        plan.remove(rows=rows)
        self.note(plan, basis)
