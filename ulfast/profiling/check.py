"""Runs every operator once, on small inputs, against its twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import reference
from .cases import Small
from .registry import OPERATORS

TOLERANCE = 1e-4  # for floats; integers must be equal


def samples() -> dict[str, tuple[Any, ...]]:
    """{name in `torch.ops.ulfast`: arguments of a small call} for every operator."""
    small = Small()
    return {name: given for row in OPERATORS.values() for name, given in row.small(small).items()}


def deviation(ours: Callable[..., Any], twin: Callable[..., Any], given: tuple[Any, ...]) -> float:
    """The largest difference between what the two return or change in place; `given` itself is not changed."""

    def after(run: Callable[..., Any]) -> list[Tensor]:
        mine = [value.clone() if isinstance(value, Tensor) else value for value in given]
        got = run(*mine)
        every = [*mine, *(got if isinstance(got, tuple) else (got,))]
        return [value.double() for value in every if isinstance(value, Tensor)]

    pairs = zip(after(ours), after(twin), strict=True)
    # A NaN anywhere makes it infinite.
    return max((float((a - b).abs().nan_to_num(torch.inf).max()) for a, b in pairs if a.numel()), default=0.0)


def wrong_operators() -> dict[str, str]:
    """{name: what is wrong} for the operators that disagree with their twins on the CPU level in use."""
    found = {}
    for name, given in samples().items():
        try:
            off = deviation(getattr(torch.ops.ulfast, name), getattr(reference, name), given)
        except Exception as problem:  # whatever the error, the report names it
            found[name] = f"{type(problem).__name__}: {problem}"
        else:
            if off > TOLERANCE:
                found[name] = f"off by {off:.2g}"
    return found
