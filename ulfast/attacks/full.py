"""`orthogonal-full`: deconvolution, both projections and the noise, each only where the data calls for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..analysis.detail import fine_detail
from ..analysis.evidence import Evidence, has_pattern, is_its_own, linear_model, pixel_space
from ..parameters import parameter
from ..projection.mean_noise import noise_scale
from ..projection.patches import PATCH
from .base import Context, Plan
from .deconvolve import undo_convolution
from .noise import ClassMeanNoise
from .orthogonal import OrthogonalProjection
from .patch import OrthogonalPatch


@dataclass(frozen=True)
class OrthogonalFull(OrthogonalProjection):
    """Removes any poison that a linear map can remove: by `deconvolve` if borders are dark, by `orthogonal+mean-noise`,
    in part, if the fine detail of the images says more about their classes than that of photographs does, then by
    `orthogonal-patch`.

    The scale of the noise follows what remains (`ulfast.noise_scale`); a poison that is each image's own gets none.
    Clean data does not change, while `orthogonal` alone removes what the classes really differ by. All are fitted to
    the images as they then are.
    """

    summary = "deconvolve, both projections and mean-noise, each only where the data calls for it"
    source = "ulfast, docs/research/orthogonal-patch.md"
    aliases: ClassVar[tuple[str, ...]] = ("full",)
    excludes: ClassVar[dict[str, str]] = dict.fromkeys(
        ("deconvolve", "orthogonal", "orthogonal-classwise", "orthogonal-patch", "mean-noise"),
        "do the same: orthogonal-full is enough",
    )

    patch: int = parameter(PATCH, "side of the patches in pixels", at_least=2)
    patch_rank: int | None = parameter(None, "patch directions to remove (default: chosen from the data)", at_least=0)
    noise_scale: float | None = parameter(
        None, "deviation of the noise over that of the class means (default: 0 to 2, from the data)", at_least=0
    )
    partial: bool = parameter(True, "remove a direction only as far as the class means differ along it")

    def apply(self, plan: Plan, context: Context) -> None:
        if undo_convolution(plan, context):
            plan.diagnosis = None  # it was of the images before
        found = plan.diagnosis
        with plan.timed("diagnose"):
            linear = found.linear if found else linear_model(plan.train, context.seed, context.progress)
            detail = found.detail if found else fine_detail(plan.train, context.seed)
            evidence = pixel_space(linear, detail, plan.train)
        plan.notes |= {"held_out_accuracy": linear.accuracy, "detail_accuracy": detail.accuracy}
        if context.basis is not None or has_pattern(evidence):
            # Without the noise, what remains of a direction would show.
            whole = self.fit == "leace" or self.noise_scale == 0
            OrthogonalProjection.apply(replace(self, partial=False) if whole else self, plan, context)
            scale = self.noise_scale
            if scale is None:
                plan.notes["noise_scale"] = scale = self.hiding(plan, evidence)
            ClassMeanNoise(scale).apply(plan, context)
        OrthogonalPatch(self.patch, self.patch_rank).apply(plan, context)

    @staticmethod
    def hiding(plan: Plan, evidence: tuple[Evidence, ...]) -> float:
        """The scale of the noise. Of a poison that is each image's own, the class means have nothing to hide."""
        if is_its_own(evidence, len(np.unique(plan.train.labels))):
            return 0.0
        return 1.0 if plan.removal.rows is None else noise_scale(plan.removal.rows)
