"""`orthogonal-full`: deconvolution, both projections and noise, each only where the data calls for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from ..analysis.detail import fine_detail
from ..analysis.evidence import Evidence, has_pattern, is_its_own, linear_model, pixel_space
from ..parameters import parameter
from ..projection.mean_noise import SCALE, noise_scale
from ..projection.other_fits import share_taken
from ..projection.patches import PATCH
from .base import Context, Plan
from .centring import ClassCentring
from .deconvolve import undo_convolution
from .noise import ClassMeanNoise
from .orthogonal import OrthogonalProjection
from .patch import OrthogonalPatch

# The share of the variance within classes that a projection may take. With ten classes it takes 0.01 to 0.03, with a
# hundred 0.28 to 0.42 (docs/research/centring.md).
DEAR = 0.1


@dataclass(frozen=True)
class OrthogonalFull(OrthogonalProjection):
    """Removes any poison that a linear map can remove: by `deconvolve` if borders are dark, by a partial
    `orthogonal+mean-noise` if the fine detail of the images says more about their classes than in photographs, then by
    `orthogonal-patch`.

    The noise is scaled to what remains (`ulfast.noise_scale`); if the poison is individual to each image, there is no
    noise. With many classes the directions are also those of the photographs: where the projection would take more than
    a tenth of what images of a class differ by, `class-centring+mean-noise` takes its place. Clean data does not
    change, whereas `orthogonal` alone removes real differences between the classes. Each step is fitted to the images
    left by the previous one.
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
    partial: bool = parameter(True, "remove a direction only to the extent that the class means differ along it")

    def apply(self, plan: Plan, context: Context) -> None:
        if undo_convolution(plan, context):
            plan.diagnosis = None  # it described the images before the change
        found = plan.diagnosis
        with plan.timed("diagnose"):
            linear = found.linear if found else linear_model(plan.train, context.seed, context.progress)
            detail = found.detail if found else fine_detail(plan.train, context.seed)
            evidence = pixel_space(linear, detail, plan.train)
        plan.notes |= {"held_out_accuracy": linear.accuracy, "detail_accuracy": detail.accuracy}
        if context.basis is not None or has_pattern(evidence):
            # Without noise, the remainder of a direction would show.
            whole = self.fit == "leace" or self.noise_scale == 0
            OrthogonalProjection.apply(replace(self, partial=False) if whole else self, plan, context)
            dear, scale = self.too_dear(plan, context), self.noise_scale
            if dear:
                plan.remove(rows=None)
                ClassCentring().apply(plan, context)
            if scale is None:
                plan.notes["noise_scale"] = scale = self.hiding(plan, evidence, centred=dear)
            ClassMeanNoise(scale).apply(plan, context)
        OrthogonalPatch(self.patch, self.patch_rank).apply(plan, context)

    def too_dear(self, plan: Plan, context: Context) -> bool:
        """Whether the projection would take so much of the photographs that subtracting the classes' patterns is
        better. A projection that was asked for by a basis, a rank or for the test images stays.
        """
        rows = plan.removal.rows
        if context.basis is not None or rows is None or self.rank is not None or self.project_test:
            return False
        with plan.timed("fit"):
            share = share_taken(rows, plan.train, device=context.device, shared=True)
        plan.notes["projection_takes"] = share
        return share > DEAR

    @staticmethod
    def hiding(plan: Plan, evidence: tuple[Evidence, ...], *, centred: bool = False) -> float:
        """The scale of the noise. If a poison is individual to each image, the class means have nothing to hide."""
        if is_its_own(evidence, len(np.unique(plan.train.labels))):
            return 0.0
        if centred:
            return SCALE
        return 1.0 if plan.removal.rows is None else noise_scale(plan.removal.rows)
