"""`orthogonal`: train on what is left of the images outside the span of a linear model's weights."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..errors import InputError
from ..fit import fit_basis
from ..parameters import parameter
from .base import Attack, Context, Plan


@dataclass(frozen=True)
class OrthogonalProjection(Attack):
    """Fit a linear model to the poisoned images, project every training image onto the orthogonal complement of its
    weights, and train on that. Test images are not projected unless `project_test` says so.
    """

    summary = "projection off a linear model's weights"
    source = "Sandoval-Segura et al., What Can We Learn from Unlearnable Datasets?, NeurIPS 2023, section 4.4"
    aliases = ("op", "ortho", "orthogonal-projection")

    init: str = parameter("zero", "start of the linear fit; torch is the paper's", choices=("zero", "torch"))
    fit_steps: int | None = parameter(None, "SGD steps of the fit (default 1,000)", at_least=1)
    fit_epochs: int | None = parameter(None, "passes of the fit, instead of steps", at_least=1)
    fit_lr: float = parameter(0.1, "learning rate of the fit", at_least=0)
    project_test: bool = parameter(False, "project the test images too")

    def apply(self, plan: Plan, context: Context) -> None:
        start = time.perf_counter()
        basis = context.basis
        if basis is None:
            basis = fit_basis(
                plan.train, steps=self.fit_steps, epochs=self.fit_epochs, lr=self.fit_lr, init=self.init,
                seed=context.seed, device=context.device, progress=context.progress,
            )  # fmt: skip
        elif basis.image_shape != plan.train.image_shape:
            raise InputError(
                f"the basis is for images of shape {basis.image_shape}, the data has {plan.train.image_shape}:"
                " fit one to this data"
            )
        plan.seconds["fit"] = plan.seconds.get("fit", 0.0) + time.perf_counter() - start
        plan.project, plan.project_test, plan.basis = basis.rows, self.project_test, basis
        plan.notes |= {"rank": basis.rank, "fit_accuracy": basis.metadata.get("train_accuracy")}
