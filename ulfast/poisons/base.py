"""The interface of poisons: frozen parameters from which a function from clean to poisoned images is prepared."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..runtime.devices import resolve_device
from ..runtime.files import drop, temporary_folder
from ..runtime.progress import Progress

# (first, images (b, H, W, C) uint8, labels (b,) int64) -> (b, H, W, C) uint8. Image i of the batch is image number
# first + i of the data set, and what is added to it depends on (seed, method, first + i, its label) alone.
Perturb = Callable[[int, np.ndarray, np.ndarray], np.ndarray]

# Values of a method's parameter `preset`: settings that belong together; parameters given explicitly override them.
PRESETS = ("quick", "published")

REPORT_SECONDS = 0.2  # between two reports from a fast loop


class Workplace:
    """Where a poison that must be computed keeps its intermediate state, and where it reports progress.

    Args:
        folder: for networks and perturbations; None: a temporary folder, created on first use (by all processes of
            `distributed.joined`, which share it) and removed with this object.
        resume: continue from what the folder holds.
        device: "auto", "cpu", "cuda" or a torch.device.
        progress: called as ``progress(stage, done, total, **info)``.
        surrogate_data: clean images on which to train the network, instead of those to poison.

    Attributes:
        device: where networks are trained.
        noise_device: where a poison without a network is computed: on `device` if it was named explicitly; with "auto",
            on the CPU, since most take less time there than copying the images to a GPU and back.
        facts: facts about the computation, for the manifest; identical for identical runs.
    """

    def __init__(
        self,
        folder: Path | None = None,
        resume: bool = False,
        device: str | torch.device = "auto",
        progress: Progress | None = None,
        surrogate_data: Dataset | None = None,
    ) -> None:
        self.surrogate_data = surrogate_data
        self.resume, self.device, self.progress = resume, resolve_device(device), progress
        self.noise_device = torch.device("cpu") if device == "auto" else self.device
        self.facts: dict[str, Any] = {}
        self._given, self._told = folder, time.monotonic()

    @cached_property
    def folder(self) -> Path:
        if self._given is not None:
            self._given.mkdir(parents=True, exist_ok=True)
            return self._given
        folder = Path(distributed.agreed(str(temporary_folder()) if distributed.is_main() else ""))
        folder.mkdir(exist_ok=True)  # missing on another machine
        if distributed.first_here() == distributed.rank():
            weakref.finalize(self, drop, folder)
        return folder

    def place(self, values: np.ndarray | Tensor) -> Tensor:
        """The values on `noise_device`; not copied if they are there already."""
        return (values if isinstance(values, Tensor) else as_tensor(values)).to(self.noise_device)

    def tell(self, stage: str, done: float, total: float, **info: float) -> None:
        if self.progress:
            self.progress(stage, done, total, **info)

    def tell_often(self, stage: str, done: float, total: float, **info: float) -> None:
        """`tell` for a fast loop: passes a report on a few times per second."""
        now = time.monotonic()
        if now - self._told > REPORT_SECONDS:
            self._told = now
            self.tell(stage, done, total, **info)


@dataclass(frozen=True)
class Poison:
    """Base of all poisons. Subclasses are frozen dataclasses whose fields are their parameters.

    `prepare` looks at the data set once, draws what belongs to whole classes, and returns a function that perturbs
    batches in any order.
    """

    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False  # trains a network first: minutes to days, not seconds
    clean_surrogate: ClassVar[bool] = False  # the network is trained on clean images, before the search

    @property
    def by_class(self) -> bool:
        """Whether an image's perturbation depends on its label."""
        return True

    @property
    def for_others(self) -> bool:
        """Whether images outside the data set can be poisoned too."""
        return self.by_class

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        """Returns the function that perturbs batches.

        Args:
            dataset: clean images and labels.
            seed: seed of all random draws.
            work: where a poison that must be computed keeps its state; it must outlive the function. Most poisons need
                none.
        """
        raise TypeError(f"{type(self).__name__} does not say how to perturb")

    def parameters(self) -> dict[str, Any]:
        """Names and values of the parameters."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        """The parameters with defaults that depend on the data filled in, for the manifest."""
        return self.parameters()
