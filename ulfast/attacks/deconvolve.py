"""`deconvolve`: undo the convolution of `cuda`, filter by filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..analysis.border import BORDER, dark_border
from ..data.mapped import map_rows
from ..errors import InputError
from ..parameters import parameter
from ..projection.deconvolution import fit_class_filters
from .base import IMAGES, Attack, Context, Plan


@dataclass(frozen=True)
class Deconvolve(Attack):
    """Divides the images of each class by the filter that was applied to them. The filter is inferred from how dark the
    images' borders are; if they are not dark, nothing changes. It needs the labels but no clean image.
    """

    stage: ClassVar[int] = IMAGES
    summary = "class-wise convolution (cuda) undone, its filters read off the images' borders"
    source = "ulfast, docs/research/deconvolution.md"

    border: int | None = parameter(None, "width of the dark border in pixels (default: from the data)", at_least=1)

    def apply(self, plan: Plan, context: Context) -> None:
        undo_convolution(plan, context, self.border)


def undo_convolution(plan: Plan, context: Context, width: int | None = None) -> bool:
    """Restores the plan's images if their borders are dark, or if a border is given; returns whether it did.

    Raises:
        InputError: the border leaves too little of the images inside.
    """
    train = plan.train
    if width is not None and 10 * width > min(train.image_shape[:2]):
        raise InputError(
            f"deconvolve: a border of {width} pixels needs images of {10 * width} pixels or more, got"
            f" {train.image_shape[0]} x {train.image_shape[1]}"
        )
    with plan.timed("fit"):
        if width is None:
            border = plan.diagnosis.border if plan.diagnosis else dark_border(train, context.seed)
            plan.notes["dark_border"] = border.share
            if border.share < BORDER[0]:
                return False
            width = border.width
        filters = fit_class_filters(train, width)
    with plan.timed("project"):
        plan.train = map_rows(train, lambda index: filters.undo(train, index), context.progress)
    plan.notes["deconvolved"] = {key: filters.metadata[key] for key in ("border", "convolved")}
    return True
