"""What every poison is: a frozen set of parameters that makes a function from clean images to poisoned ones."""

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

# What a method's parameter `preset` may say: settings that belong together, which others given beside it replace.
PRESETS = ("quick", "published")

REPORT_SECONDS = 0.2  # between two reports from a quick loop


class Workplace:
    """Where a poison that has to be computed keeps what it has so far, and whom it tells.

    Args:
        folder: for networks and perturbations; None: a temporary one, made when it is first asked for (by all processes
            of `distributed.joined`, which share it), and which goes with this object.
        resume: continue from what the folder holds.
        device: "auto", "cpu", "cuda" or a torch.device.
        progress: called as ``progress(stage, done, total, **info)``.
        surrogate_data: clean images to train the network on, instead of those to poison.

    Attributes:
        device: where networks are trained.
        noise_device: where a poison without a network is computed: on `device` if that was named. With "auto" on the
            CPU, as most take less time there than the images do to a GPU and back.
        facts: what the poison says of its making, for the manifest; the same bytes for the same run.
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
        folder.mkdir(exist_ok=True)  # on another machine
        if distributed.first_here() == distributed.rank():
            weakref.finalize(self, drop, folder)
        return folder

    def place(self, values: np.ndarray | Tensor) -> Tensor:
        """The values on `noise_device`; there already, they are not copied."""
        return (values if isinstance(values, Tensor) else as_tensor(values)).to(self.noise_device)

    def tell(self, stage: str, done: float, total: float, **info: float) -> None:
        if self.progress:
            self.progress(stage, done, total, **info)

    def tell_often(self, stage: str, done: float, total: float, **info: float) -> None:
        """`tell` from a quick loop: it is passed on a few times a second."""
        now = time.monotonic()
        if now - self._told > REPORT_SECONDS:
            self._told = now
            self.tell(stage, done, total, **info)


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
    clean_surrogate: ClassVar[bool] = False  # the network is trained on clean images, before the search

    @property
    def by_class(self) -> bool:
        """Whether the label decides what an image gets."""
        return True

    @property
    def for_others(self) -> bool:
        """Whether images that were not there can be poisoned, too."""
        return self.by_class

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        """The function that perturbs batches.

        Args:
            dataset: clean images and labels.
            seed: of everything that is drawn.
            work: where a poison that has to be computed keeps what it has; it must outlive the function. Most poisons
                need none.
        """
        raise TypeError(f"{type(self).__name__} does not say how to perturb")

    def parameters(self) -> dict[str, Any]:
        """Names and values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        """The parameters with defaults that depend on the data filled in, for the manifest."""
        return self.parameters()
