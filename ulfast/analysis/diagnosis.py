"""`diagnose`: whether a data set is poisoned, how, and which attack to try, without a clean image.

The verdict is *poisoned* if any of seven measurements is outside the range of every clean set we tried, *clean* if all
are inside it, and otherwise *unknown*. If the classes differ by more than a perturbation could cause, nothing counts as
poison.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.dataset import Dataset, balanced_indices, chunks
from ..errors import InputError
from ..ops.state import ordinary
from ..projection.patches import PATCH, PRESENT, PatchBasis, fit_patches
from ..runtime.progress import Progress
from .border import BORDER, Border, dark_border
from .detail import Detail, fine_detail
from .evidence import Evidence, LinearModel, has_pattern, is_its_own, linear_model, pixel_space

# As in evidence.py: clean below the first value, poisoned from the second on.
PATCHES = (15.0, PRESENT)
CONSTANT = (0.20, 0.35)
FEWEST = 2  # fewest images of a class
# Images per class searched for constant pixels.
CONSTANT_IMAGES = 500
BLOCK = 1 << 20  # pixels compared at a time; they stay in a cache


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `diagnose`.

    Attributes:
        verdict: "poisoned", "clean" or "unknown".
        suggested_attack: name of an attack.
        evidence: the measurements.
        seconds: the duration.
        detail: fine detail, with the indices of the images that stand out.
        border: dark borders, with the indices of the images that have one.
        linear, patches: the fitted models, for pictures and for the attack that follows.
    """

    verdict: str
    suggested_attack: str
    evidence: tuple[Evidence, ...]
    seconds: float
    linear: LinearModel
    patches: PatchBasis
    detail: Detail
    border: Border

    @property
    def doubt(self) -> str:
        """The reason why nothing counts as poison, if there is one."""
        return next((e.doubt for e in self.evidence if e.doubt), "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable values."""
        return {
            "verdict": self.verdict,
            "suggested_attack": self.suggested_attack,
            "evidence": [{**asdict(e), "finding": e.finding} for e in self.evidence],
            "marked_images": len(self.detail.images),
            "dark_borders": len(self.border.images),
            "seconds": self.seconds,
        }


@ordinary
def diagnose(
    dataset: Dataset, *, seed: int = 0, centre: int | None = None, progress: Progress | None = None
) -> Diagnosis:
    """Look for the traces of known kinds of poison.

    Args:
        dataset: training images with labels.
        seed: seed for drawing the images to examine.
        centre: side in pixels of the central square to which the linear model and the patches are fitted, for a quick
            look at large images (default: the whole image).
        progress: called with the stages "fit" and "patches".

    Returns:
        Diagnosis. It finds poisons that show in fine detail, patch statistics, constant pixels, dark borders or a class
        pattern in some images. A poison made with a network may show in none of these and be called clean or unknown.
        Images whose content a linear model can classify (digits, for example) are called unknown, poisoned or not.

    Raises:
        InputError: there is only one class, or a class has too few images.

    Example:
        >>> ulfast.diagnose(ulfast.load_dataset("poisoned/")).verdict
        'poisoned'
    """
    start = time.perf_counter()
    if len(np.unique(dataset.labels)) < 2:
        raise InputError(f"{dataset.name} holds images of one class: diagnose compares classes and needs at least two")
    counts = np.bincount(dataset.labels)
    if counts[counts > 0].min() < FEWEST:
        raise InputError(
            f"{dataset.name or 'the data set'} has too few images to look for poison, {counts[counts > 0].min()} of a"
            f" class: {FEWEST} of each are the least"
        )
    try:
        return _measured(dataset, start, seed, centre, progress)
    except torch.linalg.LinAlgError:
        raise InputError(
            f"{dataset.name or 'the data set'} has images too few or too alike to look for poison: give more of each"
        ) from None


def _measured(dataset: Dataset, start: float, seed: int, centre: int | None, progress: Progress | None) -> Diagnosis:
    fitted = dataset if centre is None else _centres(dataset, centre)
    linear = linear_model(fitted, seed, progress)
    small = min(PATCH, *fitted.image_shape[:2])
    patches = fit_patches(fitted, patch=small, seed=seed, progress=progress)
    share, where, name = constant_pixel(dataset, seed)
    detail, border = fine_detail(dataset, seed), dark_border(dataset, seed)
    evidence = (
        *pixel_space(linear, detail, dataset),
        Evidence(
            "smooth patches",
            patches.metadata["largest"],
            *PATCHES,
            "largest difference of the classes' statistics in their smooth patches",
            linear.doubt,
        ),
        Evidence(
            "all patches", patches.metadata["largest_whole"], *PATCHES, "the same of all their patches", linear.doubt
        ),
        Evidence(
            "constant pixel",
            share,
            *CONSTANT,
            f"share of class {name!r} with one colour at row {where[0]}, column {where[1]}, and not of others",
            linear.doubt,
        ),
        Evidence(
            "dark border",
            border.share,
            *BORDER,
            "share of images whose four sides are darker than the pixels next to them, as a convolution leaves them",
        ),
    )
    verdict, attack = conclude(evidence, len(np.unique(dataset.labels)))
    return Diagnosis(verdict, attack, evidence, time.perf_counter() - start, linear, patches, detail, border)


def _centres(dataset: Dataset, side: int) -> Dataset:
    """The central `side` x `side` of larger images, as stored."""
    height, width = dataset.image_shape[:2]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    if not (top or left):
        return dataset
    parts = (dataset.images[begin:stop] for begin, stop in chunks(dataset.images))
    images = np.concatenate([part[:, top : top + side, left : left + side] for part in parts])
    return replace(dataset, images=images)


def conclude(evidence: tuple[Evidence, ...], classes: int = 10) -> tuple[str, str]:
    """Verdict and suggested attack for images of so many classes."""
    findings = *_, smooth, whole, constant, border = tuple(e.finding for e in evidence)
    if border == "poisoned":  # anything else shows once the convolution is undone
        return "poisoned", "orthogonal-full"
    if set(findings) == {"clean"}:
        return "clean", "none"
    if "poisoned" not in findings:  # with a doubt, a projection would remove real differences between the classes
        return "unknown", "none" if any(e.doubt for e in evidence) else "orthogonal-full"
    if has_pattern(evidence[:3]):
        alone = "poisoned" not in (smooth, whole, constant)
        return "poisoned", "iss-jpeg" if alone and is_its_own(evidence[:3], classes) else "orthogonal-full"
    if smooth == "poisoned":
        return "poisoned", "orthogonal-patch"
    if "poisoned" in (whole, constant):  # a constant pixel also shows in the patches that hold it
        return "poisoned", "orthogonal"
    return "poisoned", "orthogonal-full"  # only few marked images, so perhaps there is nothing to remove


def constant_pixel(dataset: Dataset, seed: int = 0) -> tuple[float, tuple[int, int], str]:
    """The largest share of a class's images that agree on a pixel's colour, minus two standard errors and minus the
    share of all others that have it.

    Returns:
        The share, (row, column), and the class name. Black borders that every class has do not count.
    """
    classes = dataset.num_classes
    limit = max(classes, min(len(dataset), CONSTANT_IMAGES * classes, 20_000))
    rows = balanced_indices(dataset.labels, classes, limit, seed)
    images, labels = dataset.images[rows], dataset.labels[rows]
    best, place, name = -1.0, (0, 0), dataset.classes[0]
    there = np.unique(labels)
    medians = _packed(np.stack([_medians(images[labels == c]) for c in there]))
    same = np.zeros(medians.shape, np.int64)  # images of any class with that colour, and of the class itself
    mine = np.zeros_like(same)
    at_once = max(1, BLOCK // int(np.prod(images.shape[1:3])))
    for k, c in enumerate(there):
        own = np.flatnonzero(labels == c)
        for begin in range(0, len(own), at_once):
            packed = _packed(images[own[begin : begin + at_once]])
            for j, median in enumerate(medians):
                count = _count(packed == median)
                same[j] += count
                if j == k:
                    mine[j] += count
    members = np.bincount(labels, minlength=classes)[there]
    for k, c in enumerate(there):
        # Less two standard errors: of seven images four may have a black corner.
        own = (mine[k] - 2 * np.sqrt(mine[k])) / members[k]
        share = own - (same[k] - mine[k]) / (members.sum() - members[k])
        at = np.unravel_index(int(share.argmax()), share.shape)
        if share[at] > best:
            best, place, name = float(share[at]), (int(at[0]), int(at[1])), dataset.classes[c]
    return best, place, name


def _medians(images: np.ndarray) -> np.ndarray:
    """The upper median of every value of (n, H, W, C) uint8, computed bit by bit: the largest level that half of the
    images reach.
    """
    most = len(images) - len(images) // 2
    found = np.zeros(images.shape[1:], np.uint8)
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        found |= np.where(_count(images >= (found | bit)) >= most, np.uint8(bit), np.uint8(0))
    return found


def _count(flags: np.ndarray) -> np.ndarray:
    """Counts the set values of (n, ...) bool over n, (...) uint16, for n up to 65,535."""
    return np.add.reduce(flags.view(np.uint8), axis=0, dtype=np.uint16 if len(flags) < 1 << 16 else np.int64)


def _packed(images: np.ndarray) -> np.ndarray:
    """(n, H, W) uint32: a pixel's colour as one number."""
    colours = np.zeros(images.shape[:3], np.uint32)
    for channel in range(images.shape[3]):
        colours = (colours << 8) | images[..., channel]
    return colours
