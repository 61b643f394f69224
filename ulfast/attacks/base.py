"""What an attack is: something that changes the plan of a training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..data.dataset import Dataset
from ..projection.basis import Basis
from ..projection.patches import PatchBasis
from ..training.mixing import BatchHook
from ..training.recipes import Recipe
from ..training.refit import Refit

if TYPE_CHECKING:
    from ..analysis.diagnosis import Diagnosis

# Where in the course of things an attack works: on the stored images, on their projection, on training batches, on the
# search for the hardest of them, on the trained network. Attacks that are joined are carried out in this order.
IMAGES, PROJECTION, BATCHES, SEARCH, NETWORK = range(5)
# What a fit keeps in the run's folder while it lasts.
FIT_FILE = "fit.pt"


@dataclass
class Plan:
    """A training about to happen. Attacks change it in turn; then it is carried out.

    Attributes:
        train: the data the attacker has.
        test: clean test images.
        recipe: how to train.
        project: (k, d) rows that every training image loses, (c, r, d) rows of each image's class, or None.
        transform: (b, C, H, W) float32 pixels -> the same, of every training image after that, or None.
        patches: what every training image loses of its patches, after that.
        noise: (k, d) rows of which every training image gets random mixtures, anew in every pass, after that. What they
            have of `project` and `patches` they lose too.
        project_test: whether test images lose them too.
        hooks: applied to every training batch, in order.
        select: clean images by whose accuracy the best epoch is chosen, or None for the last epoch.
        refits: what happens to the trained network, in order.
        basis: what was fitted, for pictures and files.
        diagnosis: what `auto` found, so that what it suggests need not look again.
        notes: facts for the result (fit accuracy, chosen settings).
        seconds: of the steps before training, by name.
    """

    train: Dataset
    test: Dataset
    recipe: Recipe
    project: Tensor | None = None
    transform: Callable[[Tensor], Tensor] | None = None
    patches: PatchBasis | None = None
    noise: Tensor | None = None
    project_test: bool = False
    hooks: list[BatchHook] = field(default_factory=list)
    select: Dataset | None = None
    refits: list[Refit] = field(default_factory=list)
    basis: Basis | None = None
    diagnosis: Diagnosis | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds what a block takes to the `seconds` of a step."""
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Context:
    """What an attack may need to know beside the plan."""

    seed: int
    device: torch.device
    progress: Callable[..., None] | None = None
    basis: Basis | None = None  # fitted before: by an interrupted run, or given by the user
    clean: Dataset | None = None  # clean training images, for methods that need some
    folder: Path | None = None  # of the run, for what a fit keeps while it lasts
    resume: bool = False


@dataclass(frozen=True)
class Attack:
    """Base of all attacks. A subclass is a frozen dataclass whose fields are its parameters.

    Class variables: `stage`, where it works; `excludes`, the names it cannot be joined with, and the rest of a
    sentence that says why; `needs_clean`, whether it takes some clean images.
    """

    stage: ClassVar[int] = PROJECTION
    excludes: ClassVar[dict[str, str]] = {}
    needs_clean: ClassVar[bool] = False
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    def apply(self, plan: Plan, context: Context) -> None:
        """Changes the plan."""
        raise TypeError(f"{type(self).__name__} does not say what to do")
