"""What every poison is: a frozen set of parameters that makes a function from clean images to poisoned ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..data.dataset import Dataset

# (first, images (b, H, W, C) uint8, labels (b,) int64) -> (b, H, W, C) uint8. Image i of the batch is image number
# first + i of the data set, and what is added to it depends on (seed, method, first + i, its label) alone.
Perturb = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


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
