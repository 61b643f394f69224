"""The interface of attacks: each changes the plan of a training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..data.dataset import Dataset
from ..data.loaders.removal import Drawn, Removal
from ..projection.basis import Basis
from ..runtime.progress import Progress
from ..training.mixing import BatchHook
from ..training.recipes import Recipe
from ..training.refit import Refit

if TYPE_CHECKING:
    from ..analysis.diagnosis import Diagnosis

# The stage at which an attack works: on stored images, on their projection, on training batches, on the search for the
# hardest images, on the trained network. Combined attacks run in this order.
IMAGES, PROJECTION, BATCHES, SEARCH, NETWORK = range(5)
# Files that a fit keeps in the run's folder while it runs.
FIT_FILE = "fit.pt"


@dataclass
class Plan:
    """A planned training. Attacks change it one after the other; then it is carried out.

    Attributes:
        train: the data the attacker has.
        test: clean test images.
        poisoned_test: perturbed test images, on which the network is also measured, or None.
        recipe: the training recipe.
        removal: what is removed from every training image, and the noise that hides the rest. Before training, the same
            is removed from the noise.
        test_removal: what is removed from every test image.
        hooks: functions applied to every training batch, in order.
        select: clean images by whose accuracy the best epoch is chosen, or None for the last epoch.
        refits: functions applied to the trained network, in order.
        basis: the fitted basis, for pictures and files.
        diagnosis: the findings of `auto`, for reuse by the suggested attack.
        notes: facts for the result (fit accuracy, chosen settings).
        seconds: duration of the steps before training, by name.
    """

    train: Dataset
    test: Dataset
    recipe: Recipe
    removal: Removal = field(default_factory=Removal)
    test_removal: Removal = field(default_factory=Removal)
    hooks: list[BatchHook] = field(default_factory=list)
    select: Dataset | None = None
    poisoned_test: Dataset | None = None
    refits: list[Refit] = field(default_factory=list)
    basis: Basis | None = None
    diagnosis: Diagnosis | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def remove(self, **parts: Any) -> None:
        """Replaces parts of `removal`."""
        self.removal = replace(self.removal, **parts)

    def draw(self, step: Drawn) -> None:
        """Appends a filter that is redrawn in every pass."""
        self.remove(drawn=(*self.removal.drawn, step))

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Adds the duration of a block to the `seconds` of a step."""
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Context:
    """Further inputs of an attack besides the plan."""

    seed: int
    device: torch.device
    progress: Progress | None = None
    basis: Basis | None = None  # fitted earlier by an interrupted run, or given by the user
    clean: Dataset | None = None  # clean training images, for methods that need them
    folder: Path | None = None  # of the run, for files that a fit keeps while it runs
    resume: bool = False


@dataclass(frozen=True)
class Attack:
    """Base of all attacks. Subclasses are frozen dataclasses whose fields are their parameters.

    Class variables: `stage`, where it works; `excludes`, the attacks it cannot be combined with, each with the rest of
    a sentence that says why (only one of the two lists the other); `alone`, whether it cannot be combined at all;
    `needs_clean`, whether it needs some clean images.
    """

    stage: ClassVar[int] = PROJECTION
    excludes: ClassVar[dict[str, str]] = {}
    alone: ClassVar[bool] = False
    needs_clean: ClassVar[bool] = False
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    def apply(self, plan: Plan, context: Context) -> str | None:
        """Changes the plan. May return the name of an attack to run next."""
        raise TypeError(f"{type(self).__name__} does not say what to do")
