"""What every poison is: a frozen set of parameters that makes a function from clean images to poisoned ones."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..data.dataset import Dataset
from ..devices import resolve_device

# (first, images (b, H, W, C) uint8, labels (b,) int64) -> (b, H, W, C) uint8. Image i of the batch is image number
# first + i of the data set, and what is added to it depends on (seed, method, first + i, its label) alone.
Perturb = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Workplace:
    """Where a poison that has to be computed keeps what it has so far, and whom it tells.

    Attributes:
        folder: for networks and perturbations; None: a temporary one, which goes with this object.
        resume: go on with what the folder holds.
        device: "auto", "cpu", "cuda" or a torch.device.
        progress: called as ``progress(stage, done, total, **info)``.
        facts: what the poison says of its making, for the manifest; the same bytes for the same run.
    """

    folder: Path | None = None
    resume: bool = False
    device: str | torch.device = "auto"
    progress: Callable[..., None] | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = resolve_device(self.device)
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="ulfast-"))
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)

    def tell(self, stage: str, done: float, total: float, **info: float) -> None:
        if self.progress:
            self.progress(stage, done, total, **info)


@dataclass(frozen=True)
class Poison:
    """Base of all poisons. A subclass is a frozen dataclass whose fields are its parameters.

    `prepare` looks at the data set once, draws what belongs to whole classes, and returns the function that perturbs
    batches in any order.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False  # a network first: minutes to days, not seconds

    def prepare_in(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        """`prepare`, with a place to work in; most poisons need none."""
        return self.prepare(dataset, seed)

    def prepare(self, dataset: Dataset, seed: int) -> Perturb:
        raise TypeError(f"{type(self).__name__} does not say how to perturb")

    def parameters(self) -> dict[str, Any]:
        """Names and values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        """The parameters with defaults that depend on the data filled in, for the manifest."""
        return self.parameters()
