"""`diagnose`: is a data set poisoned, how, and which attack to try; without a clean image.

Six pieces of evidence, each with the range that clean data gives and the range that poisons give. A data set is called
poisoned if one of them lies where no clean set of ours was, clean if all lie where only clean ones were, and unknown in
between. Where the classes differ by more than a perturbation could make them, nothing counts as poison.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ..data.dataset import Dataset, balanced_indices, chunks
from ..errors import InputError
from ..projection.basis import Basis
from ..projection.fit import fit_basis
from ..projection.patches import PATCH, PRESENT, PatchBasis, fit_patches
from .detail import Detail, fine_detail

# Below the first value evidence counts as clean, from the second on as poisoned. The measurements behind them stand in
# docs/diagnose.md.
LINEAR = 0.42
DETAIL = (0.35, 0.48)
PATCHES = (12.0, PRESENT)
CONSTANT = (0.20, 0.35)
MARKED = (0.005, 0.01)
# Measured: 0.17 to 0.41 and up to 0.02 for noise made with a network; for patterns up to 0.13, or more marked images.
NOT_LINEAR, FEW_MARKED = 0.15, 0.05
# 8-bit levels. Classes of photographs, poisoned or not, differ by 1 to 22 along the weights of a linear model; more is
# what the images show (digits: 35 to 46).
PERTURBATION = 25.0
# Images a class that constant pixels are looked for in, and of all classes that the linear model is fitted to.
CONSTANT_IMAGES, LINEAR_IMAGES = 500, 50_000


@dataclass(frozen=True)
class Evidence:
    """One measurement: `value`, the range of clean sets (`clean_below`), where poisons begin (`poisoned_from`).

    `poisoned_from` is None if no value alone is a sign of poison. `doubt` says why, if there is a reason, even a value
    from there on is none.
    """

    name: str
    value: float
    clean_below: float
    poisoned_from: float | None
    text: str
    doubt: str = ""

    @property
    def finding(self) -> str:
        """ "poisoned", "clean" or "unclear"."""
        if self.value < self.clean_below:
            return "clean"
        if self.poisoned_from is None or self.doubt or self.value < self.poisoned_from:
            return "unclear"
        return "poisoned"


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found.

    Attributes:
        verdict: "poisoned", "clean" or "unknown".
        suggested_attack: name of an attack.
        evidence: the measurements.
        seconds: that it took.
        detail: with the indices of the images that stand out.
        linear, patches: what was fitted on the way, for pictures and for the attack that follows.
    """

    verdict: str
    suggested_attack: str
    evidence: tuple[Evidence, ...]
    seconds: float
    linear: LinearModel
    patches: PatchBasis
    detail: Detail

    @property
    def doubt(self) -> str:
        """Why nothing counts as poison, if there is a reason."""
        return next((e.doubt for e in self.evidence if e.doubt), "")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict,
            "suggested_attack": self.suggested_attack,
            "evidence": [{**asdict(e), "finding": e.finding} for e in self.evidence],
            "marked_images": len(self.detail.images),
            "seconds": self.seconds,
        }


def diagnose(dataset: Dataset, *, seed: int = 0, progress: Callable[..., None] | None = None) -> Diagnosis:
    """Look for the traces of known kinds of poison.

    Args:
        dataset: training images with labels.
        seed: draws the images looked at.
        progress: called with the stages "fit" and "patches".

    Returns:
        Diagnosis. It finds what fine detail, patch statistics, constant pixels or a class's pattern in some images
        show; a poison made with a network may show in none of them and be called clean or unknown. Images that a linear
        model can classify by what they show (digits, for example) are called unknown, poisoned or not.

    Raises:
        InputError: images of one class, which leaves nothing to compare.

    Example:
        >>> ulfast.diagnose(ulfast.load_dataset("poisoned/")).verdict
        'poisoned'
    """
    start = time.perf_counter()
    if len(np.unique(dataset.labels)) < 2:
        raise InputError(f"{dataset.name} holds images of one class: diagnose tells classes apart and needs two")
    linear = linear_model(dataset, seed, progress)
    small = min(PATCH, *dataset.image_shape[:2])
    patches = fit_patches(dataset, patch=small, seed=seed, progress=progress)
    share, where, name = constant_pixel(dataset, seed)
    detail = fine_detail(dataset, seed)
    evidence = (
        *pixel_space(linear, detail, dataset),
        Evidence("smooth patches", patches.metadata["largest"], *PATCHES,
                 "largest difference of the classes' statistics in their smooth patches", linear.doubt),
        Evidence("all patches", patches.metadata["largest_whole"], *PATCHES,
                 "the same of all their patches", linear.doubt),
        Evidence("constant pixel", share, *CONSTANT,
                 f"share of class {name!r} with one colour at row {where[0]}, column {where[1]}, and not of others",
                 linear.doubt),
    )  # fmt: skip
    verdict, attack = conclude(evidence)
    return Diagnosis(verdict, attack, evidence, time.perf_counter() - start, linear, patches, detail)


def pixel_space(linear: LinearModel, detail: Detail, dataset: Dataset) -> tuple[Evidence, Evidence, Evidence]:
    """What a linear model, fine detail and marked images say."""
    classes = len(np.unique(dataset.labels))
    low, high = (_for_classes(bound, classes) for bound in DETAIL)
    return (
        Evidence("linear model", linear.accuracy, _for_classes(LINEAR, classes), None,
                 "accuracy of a linear model on held-out images; easy classes can be told as well as poison",
                 linear.doubt),
        Evidence("fine detail", detail.accuracy, low, high,
                 "accuracy of the differences of neighbouring pixels at fixed places, on held-out images",
                 linear.doubt),
        Evidence("marked images", detail.marked, *MARKED,
                 f"share of class {detail.name!r} in which one pattern stands out, and not of others",
                 linear.doubt),
    )  # fmt: skip


def has_pattern(evidence: tuple[Evidence, ...]) -> bool:
    """Whether so many images carry a pattern of their class, by these three, that it is worth taking out."""
    linear, detail, marked = (e.finding for e in evidence)
    return detail == "poisoned" or (marked == "poisoned" and "unclear" in (linear, detail))


def is_its_own(evidence: tuple[Evidence, ...]) -> bool:
    """Whether each image's noise is its own, made with a network: fine detail tells the class better than a linear
    model does, and no image stands out. A projection recovers less there than JPEG.
    """
    linear, detail, marked = (e.value for e in evidence)
    return detail > linear + NOT_LINEAR and marked < FEW_MARKED


def _for_classes(bound: float, classes: int) -> float:
    """A bound on an accuracy for ten classes, as the same share above chance for another number."""
    return 1 / classes + (bound - 0.1) / 0.9 * (1 - 1 / classes)


@dataclass(frozen=True)
class LinearModel:
    """A linear model of a data set.

    Attributes:
        accuracy: on held-out images of the set, mean over classes.
        levels: how far a class lies from the others along its own weights, in 8-bit levels a value (root mean square),
            median over classes: a perturbation of a bound of 8 levels moves it by no more than that.
        basis: of the weights.
    """

    accuracy: float
    levels: float
    basis: Basis

    @property
    def doubt(self) -> str:
        """Why an accuracy, however high, is no sign of poison; empty if it may be one."""
        if self.levels <= PERTURBATION:
            return ""
        return f"the classes differ by {self.levels:.0f} levels, more than a perturbation: by what the images show"


def linear_model(dataset: Dataset, seed: int = 0, progress: Callable[..., None] | None = None) -> LinearModel:
    """Fits a linear model to four fifths of the images and measures it on the rest.

    Held out, because few images are always separable; averaged over classes, because a large class is a good guess.
    """
    some = dataset.balanced(max(LINEAR_IMAGES, dataset.num_classes), seed)
    order = np.random.default_rng(seed).permutation(len(some))
    test, train = np.sort(order[: len(some) // 5]), np.sort(order[len(some) // 5 :])
    basis = fit_basis(some.subset(train), seed=seed, progress=progress)
    assert basis.weights is not None
    held, classes = some.subset(test), some.num_classes
    hits, counts, sums = np.zeros(classes), np.zeros(classes), np.zeros((classes, classes))
    for begin, stop in chunks(held.images):
        labels = held.labels[begin:stop]
        scores = (torch.from_numpy(held.images[begin:stop]).flatten(1).float().div_(255) @ basis.weights.T).numpy()
        np.add.at(hits, labels, scores.argmax(1) == labels)
        np.add.at(counts, labels, 1)
        np.add.at(sums, labels, scores)
    seen = counts > 0
    own = sums.diagonal()[seen] / counts[seen]
    others = (sums.sum(0) - sums.diagonal())[seen] / (len(held) - counts[seen]).clip(1)
    lengths = basis.weights.norm(dim=1).numpy()[seen].clip(1e-12)
    levels = 255 * np.median((own - others) / lengths) / basis.weights.shape[1] ** 0.5
    return LinearModel(float((hits[seen] / counts[seen]).mean()), float(levels), basis)


def conclude(evidence: tuple[Evidence, ...]) -> tuple[str, str]:
    """Verdict and suggested attack."""
    findings = *_, smooth, whole, constant = tuple(e.finding for e in evidence)
    if set(findings) == {"clean"}:
        return "clean", "none"
    if "poisoned" not in findings:  # with a doubt, a projection would take away what the classes really differ by
        return "unknown", "none" if any(e.doubt for e in evidence) else "orthogonal-full"
    if has_pattern(evidence[:3]):
        alone = "poisoned" not in (smooth, whole, constant)
        return "poisoned", "iss-jpeg" if alone and is_its_own(evidence[:3]) else "orthogonal-full"
    if smooth == "poisoned":
        return "poisoned", "orthogonal-patch"
    if "poisoned" in (whole, constant):  # a constant pixel shows in the patches that hold it, too
        return "poisoned", "orthogonal"
    return "poisoned", "orthogonal-full"  # few marked images alone, so perhaps nothing to take away


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
    for c in np.unique(labels):
        own = labels == c
        median = np.sort(images[own], axis=0)[own.sum() // 2]
        same = (images == median).all(axis=3)
        share = same[own].mean(0) - same[~own].mean(0)
        at = np.unravel_index(int(share.argmax()), share.shape)
        if share[at] > best:
            best, place, name = float(share[at]), (int(at[0]), int(at[1])), dataset.classes[c]
    return best, place, name
