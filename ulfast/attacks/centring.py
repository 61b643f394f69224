"""`class-centring`: subtract from every image what the mean of its class has beyond that of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.mapped import map_rows
from ..projection.centring import fit_class_patterns
from .base import IMAGES, Attack, Context, Plan


@dataclass(frozen=True)
class ClassCentring(Attack):
    """Subtracts a pattern from all images of a class: the part of their mean that photographs of one class do not
    account for. It takes nothing else out of the images, however many classes there are, but it needs the labels and a
    poison that marks all images of a class alike. Combined with `mean-noise`, which then hides what remains at coarse
    structure, it is a rival of `orthogonal+mean-noise`.
    """

    stage: ClassVar[int] = IMAGES
    summary = "what a class's mean image has beyond photographs', subtracted"
    source = "ulfast, docs/research/centring.md"
    aliases: ClassVar[tuple[str, ...]] = ("class-centering", "centring")

    def apply(self, plan: Plan, context: Context) -> None:
        train = plan.train
        with plan.timed("fit"):
            found = fit_class_patterns(train, context.seed, progress=context.progress)
        with plan.timed("project"):
            plan.train = map_rows(train, lambda index: found.undo(train, index), context.progress)
        plan.notes["class_patterns"] = found.metadata
