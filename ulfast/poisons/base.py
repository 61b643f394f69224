"""What every poison is: a frozen set of parameters that makes a function from clean images to poisoned ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..data.dataset import Dataset
from ..errors import InputError

# (first, images (b, H, W, C) uint8, labels (b,) int64) -> (b, H, W, C) uint8. Image i of the batch is image number
# first + i of the data set, and what is added to it depends on (seed, method, first + i, its label) alone.
Perturb = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

T = TypeVar("T")


def parameter(default: T, help: str, *, at_least: float | None = None) -> T:
    """A field of a poison or attack that the command line shows, with its help text and lower bound."""
    return field(default=default, metadata={"help": help, "at_least": at_least})


@dataclass(frozen=True)
class Poison:
    """Base of all poisons. A subclass is a frozen dataclass whose fields are its parameters.

    `prepare` looks at the data set once, draws what belongs to whole classes, and returns the function that perturbs
    batches in any order.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    def prepare(self, dataset: Dataset, seed: int) -> Perturb:
        raise TypeError(f"{type(self).__name__} does not say how to perturb")

    def parameters(self) -> dict[str, Any]:
        """Names and values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        """The parameters with defaults that depend on the data filled in, for the manifest."""
        return self.parameters()


def with_parameters(method: T, name: str, given: dict[str, Any]) -> T:
    """A poison or attack with some parameters replaced.

    Raises:
        InputError: a parameter that the method does not have, or one out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in fields:
            known = f"it takes {', '.join(fields)}" if fields else "it takes none"
            raise InputError(f"{name} has no parameter {key!r}: {known}")
        least = fields[key].metadata.get("at_least")
        if least is not None and isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{name}: {key} must be at least {least:g}, got {value:g}")
    return dataclasses.replace(method, **given)  # type: ignore[type-var]
