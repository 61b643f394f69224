"""Alternatives to SGD for choosing what `orthogonal` removes (LBFGS, ridge, class means, LEACE), and how much of it.

All stream over the images; `ridge` and `leace` hold a (d, d) matrix, so d is limited.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import distributed
from ..data.class_moments import class_moments
from ..data.dataset import Dataset, chunks
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.state import ordinary
from .basis import Basis

LARGEST = 12_288  # most features for a (d, d) matrix: 64 px in colour, 600 MB in float32
CHUNK_BYTES = 8 << 20
TINY = 1e-12  # variance below which images of one class do not differ in a direction

# Weights (c, d) and offsets (c,) of a linear classifier.
Linear = tuple[Tensor, Tensor]


def _rows(dataset: Dataset, begin: int, stop: int) -> Tensor:
    return as_tensor(np.ascontiguousarray(dataset.images[begin:stop])).reshape(stop - begin, -1).float() / 255


@dataclass
class Covariances:
    """First and second moments of images and labels.

    `mean` (d,), `covariance` (d, d) or None, `cross` (c, d): covariance of the one-hot labels with the pixels, `shares`
    (c,) of the classes, `means` (c, d).
    """

    mean: Tensor
    covariance: Tensor | None
    cross: Tensor
    shares: Tensor
    means: Tensor


def covariances(dataset: Dataset, second: bool) -> Covariances:
    """Streams over the images; with `second`, once more for the covariance.

    Raises:
        InputError: images are too large for a covariance, or a class has no image.
    """
    n, d = len(dataset), int(np.prod(dataset.image_shape))
    if second and d > LARGEST:
        raise InputError(f"images of {d} values are too large for this fit, {LARGEST} at most: take --set fit=sgd")
    empty = np.setdiff1d(np.arange(dataset.num_classes), dataset.labels)
    if len(empty):
        raise InputError(f"class {empty[0]} has no image: it has no mean")
    first = class_moments(dataset)
    shares, means = first.counts.double() / n, first.means()
    mean = shares @ means
    covariance = None
    if second:
        covariance, centre = torch.zeros(d, d), mean.float()
        for begin, stop in chunks(dataset.images, CHUNK_BYTES):
            x = _rows(dataset, begin, stop) - centre
            covariance.addmm_(x.T, x, alpha=1 / n)
    return Covariances(mean, covariance, shares[:, None] * (means - mean), shares, means)


def lbfgs(dataset: Dataset, seed: int = 0, iterations: int = 100, decay: float = 1e-4) -> Linear:
    """A linear classifier without bias, full-batch LBFGS from zero; `decay` bounds separable data."""
    n, c, d = len(dataset), dataset.num_classes, int(np.prod(dataset.image_shape))
    labels = as_tensor(dataset.labels)
    weight = torch.zeros(c, d, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        """The gradient of cross-entropy is a product, so no graph is needed."""
        with torch.no_grad():
            loss, gradient = torch.zeros(()), torch.zeros(c, d)
            for begin, stop in chunks(dataset.images, CHUNK_BYTES):
                x, y = _rows(dataset, begin, stop), labels[begin:stop]
                logits = x @ weight.T
                loss += torch.nn.functional.cross_entropy(logits, y, reduction="sum")
                residual = logits.softmax(1)
                residual[torch.arange(len(y)), y] -= 1
                gradient.addmm_(residual.T, x)
            weight.grad = gradient / n + decay * weight
            return loss / n + 0.5 * decay * weight.square().sum()

    optimizer.step(closure)
    return weight.detach(), torch.zeros(c)


def ridge(dataset: Dataset, seed: int = 0, strength: float = 1e-3) -> Linear:
    """Least squares on the one-hot labels; `strength` times the mean variance is the penalty."""
    m = covariances(dataset, second=True)
    assert m.covariance is not None
    penalty = strength * float(m.covariance.diagonal().mean())
    system = m.covariance + penalty * torch.eye(len(m.covariance))
    factor = torch.linalg.cholesky(system)
    weights = torch.cholesky_solve(m.cross.T.float(), factor).T.contiguous()
    return weights, m.shares.float() - weights @ m.mean.float()


def class_mean(dataset: Dataset, seed: int = 0) -> Linear:
    """The class means minus their mean; as a classifier, the nearest mean."""
    m = covariances(dataset, second=False)
    centre = m.means.mean(0)
    weights = m.means - centre
    return weights.float(), (-weights @ centre - 0.5 * weights.square().sum(1)).float()


@ordinary
def fisher_ratios(
    basis: Basis, dataset: Dataset, *, device: str | torch.device = "cpu", shared: bool = False
) -> tuple[Tensor, Tensor]:
    """How much the class means differ along the directions of a basis, relative to images of one class.

    Args:
        device: where the images meet the rows.
        shared: every process of `distributed.joined` reads its part of the images; all get the same.

    Returns:
        The rows of `basis` rotated within their span so that images of one class vary independently along them, (k, d)
        orthonormal, the least varying first; and (k,) the ratio of the variance between classes to that within, with
        equal weight for each class. For more than ten classes it is scaled to ten (the more classes, the more
        directions share it).
    """
    labels, rows = as_tensor(dataset.labels), basis.rows.to(device)
    counts = torch.bincount(labels, minlength=dataset.num_classes).double()
    sums, square = torch.zeros(len(counts), len(rows), dtype=torch.float64), torch.zeros(len(rows), len(rows)).double()
    pieces = chunks(dataset.images, CHUNK_BYTES)
    for begin, stop in pieces[slice(*distributed.share(len(pieces)))] if shared else pieces:
        answers = (_rows(dataset, begin, stop).to(device) @ rows.T).double().cpu()
        sums.index_add_(0, labels[begin:stop], answers)
        square += answers.T @ answers
    if shared:
        distributed.sum_(sums)
        distributed.sum_(square)
    there = counts > 0
    means = sums[there] / counts[there, None]
    within = (square - (counts[there, None] * means).T @ means) / len(dataset)
    means -= means.mean(0)
    variances, turn = torch.linalg.eigh(within)
    between = (means @ turn).square().mean(0) * max(1, (len(means) - 1) / 9)
    turned, ratios = turn.T.float() @ basis.rows.cpu(), (between / variances.clamp_min(TINY)).float()
    return (distributed.same(turned), distributed.same(ratios)) if shared else (turned, ratios)


@ordinary
def partial_rows(basis: Basis, dataset: Dataset, *, device: str | torch.device = "cpu", shared: bool = False) -> Tensor:
    """Rows whose projection removes each direction only to the extent that the class means differ along it: the share
    min(1, ratio^2), with the ratios of `fisher_ratios`.

    Photographs vary most in a few directions, and there a perturbation is small compared with the variation within a
    class. Removing them costs more than it gains if the noise of `fit_mean_noise` hides what remains.
    docs/research/directions.md measures it.

    Args:
        basis: fitted to `dataset`.
        dataset: uint8 images (n, H, W, C) with labels, streamed once. Classes without an image do not count.
        device: where the images meet the rows.
        shared: every process of `distributed.joined` reads its part of the images; all get the same rows.

    Returns:
        (k, H * W * C) float32, orthogonal, of norms up to 1.
    """
    rows, ratios = fisher_ratios(basis, dataset, device=device, shared=shared)
    return rows * ratios.clamp(0, 1)[:, None]  # the projection applies them twice


@ordinary
def share_taken(rows: Tensor, dataset: Dataset, *, device: str | torch.device = "cpu", shared: bool = False) -> float:
    """The share of the variance within classes that a projection takes from the images: what it costs photographs.

    Args:
        rows: (k, H * W * C) float32, orthogonal, of norms up to 1, from a `Basis` or `partial_rows`.
        dataset: uint8 images (n, H, W, C) with labels, streamed twice.
        device: where the images meet the rows.
        shared: every process of `distributed.joined` reads its part of the images; all get the same.
    """
    moments = class_moments(dataset, shared=shared)
    counts = moments.counts.double().clamp_min(1)
    labels, place = as_tensor(dataset.labels), rows.to(device)
    sums, squares = (
        torch.zeros(len(counts), len(rows), dtype=torch.float64),
        torch.zeros(len(rows), dtype=torch.float64),
    )
    whole = torch.zeros((), dtype=torch.float64)
    pieces = chunks(dataset.images, CHUNK_BYTES)
    for begin, stop in pieces[slice(*distributed.share(len(pieces)))] if shared else pieces:
        x = _rows(dataset, begin, stop).to(device)
        answers = (x @ place.T).double().cpu()
        sums.index_add_(0, labels[begin:stop], answers)
        squares += answers.square().sum(0)
        whole += x.square().sum(dtype=torch.float64).cpu()
    if shared:
        for total in (sums, squares, whole):
            distributed.sum_(total)
    # Class by class: with a thousand classes of large images the means are gigabytes.
    of_means = sum(float((c.double() / 255).square().sum() / n) for c, n in zip(moments.sums, counts, strict=True))
    within = float(whole) - of_means
    along = squares - (sums.square() / counts[:, None]).sum(0)
    # A row of norm s leaves 1 - s² of the image along it; `along` has its variance times s².
    taken = float((along * (2 - rows.double().square().sum(1).cpu())).sum())
    return distributed.same(torch.tensor(taken / max(within, TINY))).item() if shared else taken / max(within, TINY)


@dataclass(frozen=True)
class Erasure:
    """An oblique projection: ``x - ((x - mean) @ analysis.T) @ synthesis``.

    Attributes:
        analysis, synthesis: (k, d) float32. mean: (d,) float32.
    """

    analysis: Tensor
    synthesis: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x (n, C, H, W) float32, from pixels in [0, 1]; the same shape."""
        rows = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        rows = torch.addmm(
            rows, (rows - self.mean.to(x.device)) @ self.analysis.T.to(x.device), self.synthesis.to(x.device), alpha=-1
        )
        n, c, h, w = x.shape
        return rows.view(n, h, w, c).permute(0, 3, 1, 2)


@ordinary
def leace(dataset: Dataset) -> tuple[Erasure, Basis]:
    """Least-squares concept erasure: the smallest change after which no linear model finds the classes.

    Returns:
        The erasure, and its directions as a Basis for pictures.

    Source: Belrose et al., LEACE: Perfect Linear Concept Erasure in Closed Form, NeurIPS 2023.
    """
    start = time.perf_counter()
    m = covariances(dataset, second=True)
    assert m.covariance is not None
    values, vectors = torch.linalg.eigh(m.covariance)
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    # In whitened coordinates the classes' covariances span the directions to remove.
    white = (m.cross.float() @ vectors) / values.sqrt()
    _, s, directions = torch.linalg.svd(white, full_matrices=False)
    directions = directions[s > 1e-4 * s[0]]
    analysis = (directions / values.sqrt()) @ vectors.T
    synthesis = (directions * values.sqrt()) @ vectors.T
    metadata: dict[str, Any] = {"fit": "leace", "images": len(dataset), "seconds": time.perf_counter() - start}
    basis = Basis.from_weights(synthesis, dataset.image_shape, metadata)
    return Erasure(analysis.contiguous(), synthesis.contiguous(), m.mean.float()), basis


FITS: dict[str, Callable[..., Linear]] = {"lbfgs": lbfgs, "ridge": ridge, "class-mean": class_mean}


@ordinary
def fit_weights(dataset: Dataset, fit: str, rank: int | None = None, seed: int = 0) -> Basis:
    """A Basis from one of `FITS`.

    Args:
        rank: the leading directions only.

    Raises:
        InputError: the fit is unknown, or more directions are requested than the weights span.
    """
    if fit not in FITS:
        raise InputError(f"unknown fit {fit!r}: known are sgd, {', '.join(FITS)}, leace")
    start = time.perf_counter()
    weights, offset = FITS[fit](dataset, seed=seed)
    correct = 0
    labels = as_tensor(dataset.labels)
    for begin, stop in chunks(dataset.images, CHUNK_BYTES):
        correct += int(((_rows(dataset, begin, stop) @ weights.T + offset).argmax(1) == labels[begin:stop]).sum())
    metadata = {
        "fit": fit,
        "images": len(dataset),
        "source": dataset.name,
        "seed": seed,
        "train_accuracy": correct / len(dataset),
    }
    basis = Basis.from_weights(weights, dataset.image_shape, metadata | {"seconds": time.perf_counter() - start})
    if rank is None:
        return basis
    if rank > basis.rank:
        raise InputError(f"fit {fit} gives {basis.rank} directions, --rank {rank} needs rounds: take --set fit=sgd")
    return Basis(basis.rows[:rank].contiguous(), basis.image_shape, basis.weights, {**basis.metadata, "rank": rank})
