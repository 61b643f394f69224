"""`mean-noise`: hide the differences between the class means under noise along the same directions."""

from __future__ import annotations

from dataclasses import dataclass

from ..parameters import parameter
from ..projection.mean_noise import SCALE, fit_mean_noise
from .base import Attack, Context, Plan


@dataclass(frozen=True)
class ClassMeanNoise(Attack):
    """Adds to every training image a random mixture of the class means, redrawn every epoch. Combined with `orthogonal`
    it hides what the projection leaves.
    """

    summary = "random mixtures of the class means, redrawn every epoch"
    source = "ulfast, docs/research/noise.md"

    noise_scale: float = parameter(SCALE, "standard deviation of the noise over that of the class means", at_least=0)

    def apply(self, plan: Plan, context: Context) -> None:
        if not self.noise_scale:
            return
        with plan.timed("fit"):
            noise = fit_mean_noise(plan.train, self.noise_scale, progress=context.progress, shared=True)
        plan.remove(noise=noise)
        plan.notes |= {"noise_norm": float(noise.norm())}
