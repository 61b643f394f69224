"""`none`: standard training, the baseline of every other attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Attack, Context, Plan


@dataclass(frozen=True)
class NoAttack(Attack):
    """Train on the images as they are."""

    summary = "standard training"
    alone: ClassVar[bool] = True
    aliases = ("standard", "clean")

    def apply(self, plan: Plan, context: Context) -> None:
        return None
