"""Fine detail at fixed positions, which predicts the class of poisoned images but hardly that of photographs.

A linear model of whole images finds what is bright and what is green, and so classifies poisons and easy photographs
alike. The differences between neighbouring pixels at a fixed position say next to nothing about a photograph's class,
and everything about that of a class-wise pattern. If only some images carry the pattern, they are too few to show in
the accuracy, but each of them is many standard deviations off, where no clean image is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.dataset import Dataset, balanced_indices, chunks

TILE, TILES = 8, 4  # differences per side of a tile, tiles per side
SCALE = 8.0  # 8-bit levels; larger differences are edges of the photograph and are squashed
RIDGE = 1e-2  # for the covariance of features between -1 and 1
FAR = 6.0  # standard deviations
COARSE = 32  # px to which larger images are also shrunk
# With more images per class the means of photographs differ too, so the bounds of `diagnose` would depend on the
# number.
PER_CLASS, IMAGES, FEWEST = 1_000, 20_000, 20
SHOWN = 200  # marked images of a class from which its pattern is drawn


@dataclass(frozen=True)
class Detail:
    """What the fine detail of images says about their class.

    Attributes:
        accuracy: accuracy of a discriminant on held-out images, averaged over classes.
        marked: share of the images of one class in which its pattern stands out by more than six standard deviations,
            minus two standard errors, minus the share of other classes' images, and minus what a class that lies off as
            a whole has there without a pattern in some of its images; given for the class where it is largest.
        name: that class.
        images: sorted indices of the examined images that stand out.
    """

    accuracy: float
    marked: float
    name: str
    images: np.ndarray


def fine_detail(dataset: Dataset, seed: int = 0) -> Detail:
    """Evaluates each half of the images with discriminants fitted to the other.

    Args:
        dataset: training images with labels; images of classes with fewer than 20 never count as marked.
        seed: splits the images into halves, and places the tiles in large ones.
    """
    classes = dataset.num_classes
    limit = max(classes, min(len(dataset), PER_CLASS * classes, IMAGES))
    rows = balanced_indices(dataset.labels, classes, limit, seed)
    labels = torch.from_numpy(dataset.labels[rows].astype(np.int64))
    total = torch.bincount(labels, minlength=classes)
    rng = np.random.default_rng(seed)
    tiles = _tiles(dataset, rows, rng)
    first = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(classes):
        members = rng.permutation(np.flatnonzero(labels.numpy() == c))
        first[members[: len(members) // 2]] = True
    right, marked, others, as_a_whole = (torch.zeros(classes) for _ in range(4))
    images = []
    halves = (first, ~first)
    sums = [torch.zeros(int((~fitted).sum()), classes) for fitted in halves]
    for tile in tiles:
        x = _features(tile)
        for scores, fitted in zip(sums, halves, strict=True):
            scores += _scores(x, labels, classes, fitted)
    for scores, fitted in zip(sums, halves, strict=True):
        held = labels[~fitted]
        right.index_add_(0, held, (scores.argmax(1) == held).float())
        for c in torch.nonzero((total >= FEWEST) & (total < len(labels))).flatten().tolist():
            own = held == c
            standardised = _standardised(scores[:, c], ~own)
            far = standardised > FAR
            marked[c] += far[own].sum()
            as_a_whole[c] += _beyond(standardised[own]) * float(own.sum()) / total[c]
            images.append(rows[~fitted.numpy()][(far & own).numpy()])
            others[c] += far[~own].float().mean() / 2
    share = (marked - 2 * marked.sqrt()) / total.clamp_min(1) - others - as_a_whole
    accuracy = (right / total)[total > 0].mean()
    name, found = dataset.classes[int(share.argmax())], np.sort(np.concatenate([*images, rows[:0]]))
    return Detail(float(accuracy), max(0.0, float(share.max())), name, found)


def patterns(dataset: Dataset, detail: Detail, seed: int = 0) -> dict[int, Tensor]:
    """The common pattern of the marked images of a class, for pictures: class -> (h, w, C) 8-bit levels around 0.

    It is the mean of their squashed differences minus that of the class's other images (or other classes', if it has
    too few), integrated by least squares. Images larger than 64 px are shrunk to about 32. Classes with fewer than ten
    marked images have no pattern.
    """
    rng = np.random.default_rng(seed)
    shrink = max(1, min(dataset.image_shape[:2]) // COARSE)
    marked = np.zeros(len(dataset), dtype=bool)
    marked[detail.images] = True
    found = {}
    for c in np.unique(dataset.labels[detail.images]).tolist():
        own = dataset.labels == c
        rows, others = np.flatnonzero(own & marked), np.flatnonzero(own & ~marked)
        if len(rows) < FEWEST // 2:
            continue
        if len(others) < SHOWN:
            others = np.flatnonzero(~own)
        parts = [np.sort(rng.permutation(some)[:most]) for some, most in ((rows, SHOWN), (others, 5 * SHOWN))]
        own_mean, other_mean = (_mean_differences(dataset, part, shrink) for part in parts)
        found[c] = _integrated(own_mean[0] - other_mean[0], own_mean[1] - other_mean[1])
    return found


def _mean_differences(dataset: Dataset, rows: np.ndarray, shrink: int) -> tuple[Tensor, Tensor]:
    """The differences (C, h, w - 1) to the right and (C, h - 1, w) downwards, in levels."""
    sums: list[Tensor] = []
    step = chunks(dataset.images)[0][1]
    for begin in range(0, len(rows), step):
        x = torch.from_numpy(dataset.images[rows[begin : begin + step]].astype(np.float32)).permute(0, 3, 1, 2)
        x = F.avg_pool2d(x, shrink)
        parts = [x.diff(dim=axis).div_(SCALE).tanh_().mul_(SCALE).sum(0) for axis in (3, 2)]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    return sums[0] / len(rows), sums[1] / len(rows)


def _integrated(right: Tensor, down: Tensor) -> Tensor:
    """The image (h, w, C) of mean 0 whose differences come closest. With mirrored borders this is a division by the
    eigenvalues of the Laplacian in Fourier space.
    """
    height, width = right.shape[1], down.shape[2]
    source = torch.zeros(len(right), height, width)
    source[:, :, 1:] += right
    source[:, :, :-1] -= right
    source[:, 1:] += down
    source[:, :-1] -= down
    whole = torch.cat([source, source.flip(2)], 2)
    whole = torch.cat([whole, whole.flip(1)], 1)
    rows, columns = (2 - 2 * torch.cos(torch.pi * torch.arange(2 * side) / side) for side in (height, width))
    values = rows[:, None] + columns
    values[0, 0] = 1.0
    spectrum = torch.fft.fft2(whole) / values
    spectrum[:, 0, 0] = 0
    return torch.fft.ifft2(spectrum).real[:, :height, :width].permute(1, 2, 0)


def _tiles(dataset: Dataset, rows: np.ndarray, rng: np.random.Generator) -> list[Tensor]:
    """Tiles (n, t + 1, t + 1, 3) of n rows, in float levels: a grid that covers small images; random places in large
    images and in their versions shrunk to about 32 px.
    """
    height, width = dataset.image_shape[:2]
    parts: list[list[Tensor]] = []
    factor = min(height, width) // COARSE
    plans = [(1, _places(height, width, rng))]
    if factor > 1:
        plans.append((factor, _places(height // factor, width // factor, rng)))
    step = chunks(dataset.images)[0][1]
    for begin in range(0, len(rows), step):
        x = torch.from_numpy(dataset.images[rows[begin : begin + step]].astype(np.float32))
        found = []
        for shrink, places in plans:
            y = x if shrink == 1 else F.avg_pool2d(x.permute(0, 3, 1, 2), shrink).permute(0, 2, 3, 1)
            found += [y[:, i : i + TILE + 1, j : j + TILE + 1].clone() for i, j in places]
        parts.append(found)
    return [torch.cat(tile) for tile in zip(*parts, strict=True)]


def _places(height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    ends = [max(0, side - TILE - 1) for side in (height, width)]
    if max(ends) <= TILE * TILES:
        rows, columns = (np.unique(np.linspace(0, end, TILES).round().astype(int)) for end in ends)
        return [(int(i), int(j)) for i in rows for j in columns]
    return [(int(rng.integers(ends[0] + 1)), int(rng.integers(ends[1] + 1))) for _ in range(TILES * TILES)]


def _features(tile: Tensor) -> Tensor:
    """A tile's squashed differences to the right and downwards, (n, d) from -1 to 1."""
    right = tile[:, :-1, 1:] - tile[:, :-1, :-1]
    down = tile[:, 1:, :-1] - tile[:, :-1, :-1]
    return torch.cat([right, down], 3).flatten(1).div_(SCALE).tanh_()


def _scores(x: Tensor, labels: Tensor, classes: int, fitted: Tensor) -> Tensor:
    """Fisher's discriminants fitted to the `fitted` rows and evaluated on the others, (m, classes).

    A class's discriminant is shrunk by the part of its mean's distance that chance explains (James and Stein), so a
    tile in which the classes do not differ adds nothing to the sum over tiles. By chance a mean of n images is d / n
    away from the true one, minus the amount by which it moves the overall mean; and the inverse of a covariance of N
    images is too large by N / (N - d).
    """
    known = labels[fitted]
    count = torch.bincount(known, minlength=classes).clamp_min(1).float()
    means = torch.zeros(classes, x.shape[1]).index_add_(0, known, x[fitted]).div_(count[:, None])
    centred = x[fitted] - means[known]
    covariance = centred.T @ centred / len(centred)
    covariance.diagonal().add_(RIDGE)
    apart = means - means.mean(0)
    weights = torch.cholesky_solve(apart.T, torch.linalg.cholesky(covariance)).T
    distance = (weights * apart).sum(1).clamp_min(1e-12)
    images, features = len(centred), x.shape[1]
    chance = features * ((1 - 2 / classes) / count + (1 / count).mean() / classes)
    chance *= images / max(1, images - classes - features)
    weights *= (1 - chance / distance).clamp_min(0)[:, None]
    return (x[~fitted] - means.mean(0)) @ weights.T


def _beyond(own: Tensor) -> float:
    """Share of a class's standardised scores beyond `FAR` if they are normal, by their median and lower spread (each
    taken two standard errors higher): goldfish are orange, all of them more or less, and their scores are such a
    distribution. Poisoned images among clean ones are a second peak, which neither moves. 0 where most are far off.
    """
    low, middle = torch.quantile(own, torch.tensor([0.1587, 0.5])).tolist()
    if middle >= FAR or middle <= low:
        return 0.0
    error = 2 * 1.25 / math.sqrt(len(own))  # of a median, in units of the spread
    spread = (middle - low) * (1 + error)
    return math.erfc((FAR - middle - error * (middle - low)) / spread / math.sqrt(2)) / 2


def _standardised(scores: Tensor, reference: Tensor) -> Tensor:
    """Standardises by median and spread of the `reference` rows, which a few outliers do not move; zeros without
    spread.
    """
    low, middle, high = torch.quantile(scores[reference], torch.tensor([0.1587, 0.5, 0.8413]))
    return (scores - middle) / ((high - low) / 2).clamp_min(1e-12) if high > low else torch.zeros_like(scores)
