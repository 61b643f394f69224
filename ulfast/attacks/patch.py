"""`orthogonal-patch`: take the directions out of small patches in which the classes differ by their variance."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..parameters import parameter
from ..patches import PATCH, fit_patches
from .base import Attack, Context, Plan


@dataclass(frozen=True)
class OrthogonalPatch(Attack):
    """Removes noise that has no direction in pixel space but its own patch statistics, such as autoregressive
    perturbations. Where the data shows none of it, nothing is removed.
    """

    summary = "projection in patch space, for noise drawn anew for each image (ar)"
    source = "ulfast, docs/orthogonal-patch.md"
    aliases = ("patch",)

    patch: int = parameter(PATCH, "side of the patches in pixels", at_least=2)
    patch_rank: int | None = parameter(None, "directions to remove (default: chosen from the data)", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        start = time.perf_counter()
        plan.patches = fit_patches(
            plan.train, patch=self.patch, rank=self.patch_rank, seed=context.seed, progress=context.progress
        )
        plan.seconds["fit"] = plan.seconds.get("fit", 0.0) + time.perf_counter() - start
        plan.notes |= {"patch_rank": plan.patches.rank, "patch_largest": plan.patches.metadata["largest"]}
