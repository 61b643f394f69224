"""Signs that a data set is poisoned: individual measurements, each with the range of clean data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data.dataset import Dataset, chunks
from ..data.mapped import decoded
from ..projection.basis import Basis
from ..projection.fit import fit_basis
from ..runtime.progress import Progress
from .detail import Detail

# Evidence counts as clean below the first value and as poisoned from the second on. docs/research/diagnosis.md has the
# measurements behind these values.
LINEAR = 0.42
DETAIL = (0.35, 0.48)
MARKED = (0.005, 0.01)
# Noise made with a network: detail tells 0.17 to 0.41 more than the linear model, 0.64 to 0.92 in all, and marks up to
# 0.45 of a class. Class patterns: detail tells up to 0.13 more, or 0.96 or more in all, or marks 0.62 or more.
NOT_LINEAR, OWN_DETAIL, OWN_MARKED = 0.15, 0.945, 0.5
# 8-bit levels. Classes of photographs, poisoned or not, differ by 1 to 22 along the weights of a linear model; larger
# values come from the images' content (digits: 35 to 46).
PERTURBATION = 25.0
# Images, and their bytes, that the linear model is fitted to and measured on.
LINEAR_IMAGES, LINEAR_BYTES = 50_000, 2 << 30


@dataclass(frozen=True)
class Evidence:
    """One measurement: `value`, the range of clean sets (`clean_below`), where poisons begin (`poisoned_from`).

    `poisoned_from` is None if no value alone is a sign of poison. `doubt` gives the reason, if any, why even a value
    above `poisoned_from` is not a sign of poison.
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


def pixel_space(linear: LinearModel, detail: Detail, dataset: Dataset) -> tuple[Evidence, Evidence, Evidence]:
    """The evidence of a linear model, fine detail and marked images."""
    classes = len(np.unique(dataset.labels))
    low, high = (_for_classes(bound, classes) for bound in DETAIL)
    return (
        Evidence(
            "linear model",
            linear.accuracy,
            _for_classes(LINEAR, classes),
            None,
            "accuracy of a linear model on held-out images; easy classes can be told as well as poison",
            linear.doubt,
        ),
        Evidence(
            "fine detail",
            detail.accuracy,
            low,
            high,
            "accuracy of the differences of neighbouring pixels at fixed places, on held-out images",
            linear.doubt,
        ),
        Evidence(
            "marked images",
            detail.marked,
            *MARKED,
            f"share of class {detail.name!r} in which one pattern stands out, and not of others",
            linear.doubt,
        ),
    )


def has_pattern(evidence: tuple[Evidence, ...]) -> bool:
    """Whether, by these three, enough images carry a class pattern for its removal to pay."""
    linear, detail, marked = (e.finding for e in evidence)
    return detail == "poisoned" or (marked == "poisoned" and "unclear" in (linear, detail))


def is_its_own(evidence: tuple[Evidence, ...], classes: int = 10) -> bool:
    """Whether the noise is individual to each image and made with a network: fine detail tells the class better than a
    linear model, though not of nearly every image, and no single pattern stands out in most images. A projection then
    recovers less than JPEG. With more than ten `classes`, an image has more of them to be mistaken for.
    """
    linear, detail, marked = (e.value for e in evidence)
    return detail > linear + NOT_LINEAR and detail < OWN_DETAIL ** max(1, (classes - 1) / 9) and marked < OWN_MARKED


def _for_classes(bound: float, classes: int) -> float:
    """Converts a bound on the accuracy for ten classes to another number, at the same share above chance."""
    return 1 / classes + (bound - 0.1) / 0.9 * (1 - 1 / classes)


@dataclass(frozen=True)
class LinearModel:
    """A linear model of a data set.

    Attributes:
        accuracy: accuracy on held-out images of the set, averaged over classes.
        levels: distance of a class from the others along its own weights, in 8-bit levels per value (root mean square),
            median over classes; a perturbation with a bound of 8 levels moves it by no more than that.
        basis: basis of the weights.
    """

    accuracy: float
    levels: float
    basis: Basis

    @property
    def doubt(self) -> str:
        """The reason why an accuracy, however high, is not a sign of poison; empty if it may be one."""
        if self.levels <= PERTURBATION:
            return ""
        return f"the classes differ by {self.levels:.0f} levels, more than a perturbation: by what the images show"


def linear_model(dataset: Dataset, seed: int = 0, progress: Progress | None = None) -> LinearModel:
    """Fits a linear model to four fifths of the images and measures it on the rest.

    Images are held out because few images are always separable. The accuracy is averaged over classes because guessing
    a large class would score well.
    """
    most = min(LINEAR_IMAGES, LINEAR_BYTES // int(np.prod(dataset.image_shape)))
    # Its thousand steps would decode most of them many times.
    some = decoded(dataset.balanced(max(most, dataset.num_classes), seed), progress)
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
