"""`auto`: diagnose the data, then run the suggested attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..analysis.diagnosis import diagnose
from .base import Attack, Context, Plan


@dataclass(frozen=True)
class Auto(Attack):
    """Looks for traces of poison and applies the suggested attack; the result's `notes` name it and the reason."""

    summary = "diagnose, then the suggested attack"
    source = "ulfast, docs/guide/diagnose.md"
    alone: ClassVar[bool] = True

    def apply(self, plan: Plan, context: Context) -> str:
        """Returns the name of the suggested attack."""
        with plan.timed("diagnose"):
            plan.diagnosis = found = diagnose(plan.train, seed=context.seed, progress=context.progress)
        plan.notes |= {"diagnosis": found.to_dict()}
        return found.suggested_attack
