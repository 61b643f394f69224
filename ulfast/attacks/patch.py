"""`orthogonal-patch`: remove from small patches the directions along which the classes differ in variance."""

from __future__ import annotations

from dataclasses import dataclass

from ..parameters import parameter
from ..projection.patches import PATCH, PatchProjection, fit_patches
from .base import Attack, Context, Plan


@dataclass(frozen=True)
class OrthogonalPatch(Attack):
    """Removes noise that has no direction in pixel space but distinct patch statistics, such as autoregressive
    perturbations. If the data shows none of it, nothing is removed.
    """

    summary = "projection in patch space, for noise drawn anew for each image (ar)"
    source = "ulfast, docs/research/orthogonal-patch.md"
    aliases = ("patch",)

    patch: int = parameter(PATCH, "side of the patches in pixels", at_least=2)
    patch_rank: int | None = parameter(None, "directions to remove (default: chosen from the data)", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        found = plan.diagnosis
        if found and (self.patch, self.patch_rank) == (found.patches.metadata["patch"], None):
            basis = found.patches
        else:
            with plan.timed("fit"):
                basis = fit_patches(
                    plan.train, patch=self.patch, rank=self.patch_rank, seed=context.seed, progress=context.progress
                )
        if basis.rank:
            plan.remove(patches=PatchProjection(basis))
        plan.notes |= {"patch_rank": basis.rank, "patch_largest": basis.metadata["largest"]}
