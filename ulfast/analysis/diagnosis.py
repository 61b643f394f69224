"""`diagnose`: is a data set poisoned, how, and which attack to try; without a clean image.

Four pieces of evidence, each with the range that clean data gives and the range that poisons give. A data set is
called poisoned if one of them lies where no clean set of ours was, clean if all lie where only clean ones were, and
unknown in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..basis import Basis
from ..data.dataset import Dataset, balanced_indices, chunks
from ..fit import fit_basis
from ..patches import PATCH, PRESENT, PatchBasis, fit_patches

# Below the first value evidence counts as clean, from the second on as poisoned. The measurements behind them stand in
# docs/diagnose.md.
LINEAR = (0.42, 0.50)
PATCHES = (12.0, PRESENT)
CONSTANT = (0.20, 0.35)
# Images a class that constant pixels are looked for in, and of all classes that the linear model is fitted to.
CONSTANT_IMAGES, LINEAR_IMAGES = 500, 50_000


@dataclass(frozen=True)
class Evidence:
    """One measurement: `value`, the range of clean sets (`clean_below`), where poisons begin (`poisoned_from`)."""

    name: str
    value: float
    clean_below: float
    poisoned_from: float
    text: str

    @property
    def finding(self) -> str:
        """ "poisoned", "clean" or "unclear"."""
        if self.value >= self.poisoned_from:
            return "poisoned"
        return "clean" if self.value < self.clean_below else "unclear"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        verdict: "poisoned", "clean" or "unknown".
        suggested_attack: name of an attack.
        evidence: the measurements.
        seconds: that it took.
        basis, patches: what was fitted on the way, for pictures.
    """

    verdict: str
    suggested_attack: str
    evidence: tuple[Evidence, ...]
    seconds: float
    basis: Basis
    patches: PatchBasis

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict,
            "suggested_attack": self.suggested_attack,
            "evidence": [{**asdict(e), "finding": e.finding} for e in self.evidence],
            "seconds": self.seconds,
        }


def diagnose(dataset: Dataset, *, seed: int = 0, progress: Callable[..., None] | None = None) -> Diagnosis:
    """Look for the traces of known kinds of poison.

    Args:
        dataset: training images with labels.
        seed: draws the images looked at.
        progress: called with the stages "fit" and "patches".

    Returns:
        Diagnosis. It finds what a linear model, patch statistics or constant pixels show; a poison made with a network
        shows in none of them and is called clean or unknown. A clean data set that a linear model can classify (digits,
        for example) cannot be told from a linear poison and is called poisoned: know your data.

    Example:
        >>> ulfast.diagnose(ulfast.load_dataset("poisoned/")).verdict
        'poisoned'
    """
    start = time.perf_counter()
    accuracy, basis = linear_accuracy(dataset, seed, progress)
    small = min(PATCH, *dataset.image_shape[:2])
    patches = fit_patches(dataset, patch=small, seed=seed, progress=progress)
    share, where, name = constant_pixel(dataset, seed)
    evidence = (
        linear_evidence(accuracy, dataset.num_classes),
        Evidence("smooth patches", patches.metadata["largest"], *PATCHES,
                 "largest difference of the classes' statistics in their smooth patches"),
        Evidence("all patches", patches.metadata["largest_whole"], *PATCHES,
                 "the same of all their patches"),
        Evidence("constant pixel", share, *CONSTANT,
                 f"share of class {name!r} with one colour at row {where[0]}, column {where[1]}, and not of others"),
    )  # fmt: skip
    verdict, attack = conclude(evidence)
    return Diagnosis(verdict, attack, evidence, time.perf_counter() - start, basis, patches)


def linear_evidence(accuracy: float, classes: int) -> Evidence:
    """What an accuracy says. The bounds are for ten classes; with another number the share above chance is compared."""
    chance = 1 / classes
    bounds = [chance + (bound - 0.1) / 0.9 * (1 - chance) for bound in LINEAR]
    return Evidence(
        "linear model",
        accuracy,
        bounds[0],
        bounds[1],
        "mean over classes of a linear model's accuracy on held-out images of the set",
    )


def linear_accuracy(
    dataset: Dataset, seed: int = 0, progress: Callable[..., None] | None = None
) -> tuple[float, Basis]:
    """Fits a linear model to four fifths of the images and measures it on the rest.

    Held out, because few images are always separable; averaged over classes, because a large class is a good guess.
    """
    some = dataset.balanced(max(LINEAR_IMAGES, dataset.num_classes), seed)
    order = np.random.default_rng(seed).permutation(len(some))
    test, train = np.sort(order[: len(some) // 5]), np.sort(order[len(some) // 5 :])
    basis = fit_basis(some.subset(train), seed=seed, progress=progress)
    assert basis.weights is not None
    held = some.subset(test)
    hits, counts = np.zeros(some.num_classes), np.zeros(some.num_classes)
    for begin, stop in chunks(held.images):
        x = torch.from_numpy(held.images[begin:stop]).flatten(1).float().div_(255)
        right = (x @ basis.weights.T).argmax(1).numpy() == held.labels[begin:stop]
        np.add.at(hits, held.labels[begin:stop], right)
        np.add.at(counts, held.labels[begin:stop], 1)
    return float((hits[counts > 0] / counts[counts > 0]).mean()), basis


def conclude(evidence: tuple[Evidence, ...]) -> tuple[str, str]:
    """Verdict and suggested attack."""
    findings = linear, smooth, _, _ = tuple(e.finding for e in evidence)
    if "poisoned" not in findings:
        return ("clean", "none") if set(findings) == {"clean"} else ("unknown", "orthogonal-full")
    if smooth == "poisoned":
        return "poisoned", "orthogonal-full" if linear == "poisoned" else "orthogonal-patch"
    return "poisoned", "orthogonal"  # a constant pixel, too, shows in the patches that hold it


def constant_pixel(dataset: Dataset, seed: int = 0) -> tuple[float, tuple[int, int], str]:
    """The largest share of a class's images that agree on a pixel's colour, less the share of all others that has it.

    Returns:
        The share, (row, column), and the class's name. Black borders that every class has do not count.
    """
    classes = dataset.num_classes
    limit = max(classes, min(len(dataset), CONSTANT_IMAGES * classes, 20_000))
    rows = balanced_indices(dataset.labels, classes, limit, seed)
    images, labels = dataset.images[rows], dataset.labels[rows]
    best, place, name = -1.0, (0, 0), dataset.classes[0]
    for c in range(classes):
        own = labels == c
        median = np.sort(images[own], axis=0)[own.sum() // 2]
        same = (images == median).all(axis=3)
        share = same[own].mean(0) - same[~own].mean(0)
        at = np.unravel_index(int(share.argmax()), share.shape)
        if share[at] > best:
            best, place, name = float(share[at]), (int(at[0]), int(at[1])), dataset.classes[c]
    return best, place, name
