"""`PatchBasis`: directions of small patches whose variance differs between classes, and their removal from images.

Noise that is drawn anew for every image, such as autoregressive perturbations, has no direction in pixel space, but
each class's noise has its own second-order statistics. Patches are whitened by the mean of the classes' covariances;
the directions in which individual classes then differ most from unit variance are removed from every patch, obliquely
(in the metric of the covariance), and overlapping patches are averaged.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..data.dataset import Dataset, balanced_indices
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.state import FULL_CONVOLUTIONS, ordinary
from ..runtime.progress import Progress
from .pixel_layer import PixelLayer

PATCH = 7
PER_CLASS = 600  # images per class for the covariances
MOST_IMAGES = 20_000  # of all classes together
RIDGE = 1e-7  # variance below which a direction is noise of the eight-bit rounding
SMOOTH = 0.1  # share of the patches, those with the least contrast, that are searched for noise
LEAST = 20  # each class has at least this many smooth patches per value of a patch
FEW = 50  # with this many images, a class's covariance is shrunk halfway to the mean
SPARSE = 3  # pixels between the patches used for the images' own covariance
# The spectrum is the sum over classes of (variance - 1)^2 in the whitened directions, scaled to ten classes. Smooth
# 7 x 7 patches of clean photographs reach 7, of classes with less than a hundred images or of a hundred classes 11; ar
# has 71 and more, and 50 with a twentieth of the images poisoned. Between them, and well apart from both, lies
PRESENT = 20.0
# If there are any, all directions above this are removed; natural images hardly have one there.
REMOVE = 7.0
BATCH = 100  # images unfolded at a time: 67,600 patches of 7 x 7 x 3 are 40 MB


@dataclass(frozen=True)
class PatchBasis:
    """The result of `fit_patches`.

    Attributes:
        analysis: (r, C, K, K) float32 filters: the whitened directions U^T W.
        synthesis: (r, C, K, K) float32: the contribution of each of them to a patch, U^T C^(1/2). Their product is a
            projector: analysis @ synthesis.T = I.
        spectrum: (K * K * C,) float64, largest first.
        directions: (K * K * C, C, K, K) float32: all directions as they appear in a patch, C^(1/2) U.
        image_shape: (H, W, C).
        metadata: how it was fitted (JSON-serialisable).
    """

    analysis: Tensor
    synthesis: Tensor
    spectrum: Tensor
    directions: Tensor
    image_shape: tuple[int, int, int]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of directions to remove."""
        return self.analysis.shape[0]

    @property
    def patch(self) -> int:
        return self.analysis.shape[-1]


@dataclass(frozen=True)
class Statistics:
    """Second moments of patches, D = C * K * K values each.

    Attributes:
        smooth: (c, D, D) float64 covariances of each class's smooth patches.
        whole: (c, D, D) float64 covariances of each class's patches, smooth or not.
        images: (c,) number of images behind each covariance.
    """

    smooth: Tensor
    whole: Tensor
    images: Tensor


def statistics(dataset: Dataset, patch: int, indices: np.ndarray, progress: Progress | None = None) -> Statistics:
    """Second moments of the `patch` x `patch` patches of some images, in one pass.

    Args:
        indices: images to use, streamed. Classes without one are left out.
    """
    height, width, channels = dataset.image_shape
    d = patch * patch * channels
    labels = dataset.labels[indices]
    by_class = [indices[labels == c] for c in np.unique(labels)]
    thresholds = _thresholds(dataset, patch, by_class)
    smooth, whole = (_PatchSums(len(by_class), d) for _ in range(2))
    # Large images fill memory sooner.
    batch = max(1, BATCH * 32 * 32 // (height * width))
    done = 0
    for c, rows in enumerate(by_class):
        for begin in range(0, len(rows), batch):
            x = _levels(dataset, rows[begin : begin + batch])
            even = _energy(x, patch) <= thresholds[c]
            windows = x.div_(255).unfold(2, patch, 1).unfold(3, patch, 1).permute(0, 2, 3, 1, 4, 5)
            smooth.add(c, windows[even].flatten(1))
            whole.add(c, windows[:, ::SPARSE, ::SPARSE].reshape(-1, d))
            done += len(x)
            if progress:
                progress("patches", done, len(indices))
    return Statistics(smooth.covariances(), whole.covariances(), torch.tensor([float(len(rows)) for rows in by_class]))


class _PatchSums:
    """Sums and products of each class's rows."""

    def __init__(self, classes: int, d: int) -> None:
        self.products = torch.zeros(classes, d, d, dtype=torch.float64)
        self.sums = torch.zeros(classes, d, dtype=torch.float64)
        self.counts = torch.zeros(classes, dtype=torch.float64)

    def add(self, c: int, rows: Tensor) -> None:
        self.products[c] += (rows.T @ rows).double()
        self.sums[c] += rows.sum(0)  # summed in cascades: as exact here as in float64, without a copy
        self.counts[c] += len(rows)

    def covariances(self) -> Tensor:
        counts = self.counts.clamp_min(1)
        mean = self.sums / counts[:, None]
        return self.products / counts[:, None, None] - mean[:, :, None] * mean[:, None, :]


def _levels(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """(n, C, H, W) float32, whole 8-bit levels from -128 to 127, whose sums and squares over a patch are exact."""
    x = as_tensor(np.ascontiguousarray(dataset.images[rows])).permute(0, 3, 1, 2)
    return x.to(torch.float32, memory_format=torch.contiguous_format).sub_(128)


def _energy(x: Tensor, patch: int) -> Tensor:
    """Sum of squares of each patch's values around their channel's mean in it, (n, H - K + 1, W - K + 1)."""
    total, square = _box(x, patch), _box((x * x).sum(1), patch)
    return square - (total * total).sum(1).div_(patch * patch)


def _box(x: Tensor, side: int) -> Tensor:
    """Sums over all `side` x `side` squares of the last two dimensions, in a fraction of the time of pooling."""
    for dim in (-2, -1):
        many = x.shape[dim] - side + 1
        out = x.narrow(dim, 0, many).clone()
        for i in range(1, side):
            out += x.narrow(dim, i, many)
        x = out
    return x


def _thresholds(dataset: Dataset, patch: int, by_class: list[np.ndarray]) -> list[float]:
    """Energy up to which a patch of each class counts as smooth: the same for all classes, except for those that would
    have too few patches for their covariance.
    """
    height, width, channels = dataset.image_shape
    a_image = (height - patch + 1) * (width - patch + 1)
    images = max(2, 100 * 32 * 32 // (height * width))
    step = max(1, round(max(height, width) / 32))
    found = [_energy(_levels(dataset, rows[:images]), patch)[:, ::step, ::step].flatten() for rows in by_class]
    common = _quantile(torch.cat(found), SMOOTH)
    least = LEAST * patch * patch * channels
    return [
        max(common, _quantile(energies, min(1.0, least / (len(rows) * a_image))))
        for energies, rows in zip(found, by_class, strict=True)
    ]


def _quantile(values: Tensor, share: float) -> float:
    """Replaces `torch.quantile`, which is limited to 16 million values."""
    return float(values.kthvalue(max(1, round(share * len(values)))).values)


def spectrum(by_class: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues (D,), largest first, and directions (D, D) of ``sum_c (W C_c W - I)^2`` with W = C^(-1/2), C the mean
    of the covariances; then W and C^(1/2). Eigenvalues are scaled to ten classes.

    Args:
        by_class: (c, D, D) covariances.
        images: (c,) number of images behind each: a class with few images differs from the mean by chance, and is
            shrunk towards it.
    """
    mean = by_class.mean(0)
    values, vectors = torch.linalg.eigh(mean)
    there = values > RIDGE  # of gray images in three channels, two thirds of the directions are empty
    values = values.clamp_min(0) + RIDGE
    whiten = (vectors * values.rsqrt()) @ vectors.T
    colour = (vectors * values.sqrt()) @ vectors.T
    off = (whiten @ by_class @ whiten - torch.eye(len(mean), dtype=mean.dtype)) @ (vectors * there) @ vectors.T
    if images is not None:
        off = off * (images / (images + FEW)).to(off.dtype)[:, None, None]
    total = (off.mT @ off).sum(0) * (10 / len(by_class))
    found, directions = torch.linalg.eigh(total)
    return found.flip(0), directions.flip(1), whiten, colour


def estimator(noise: Tensor, covariance: Tensor) -> Tensor:
    """Rows A (r, D) with ``A @ noise.T = I`` that the images disturb least: the best linear unbiased estimate of the
    amount of each row of `noise` (r, D) in a patch whose other content varies with `covariance` (D, D).
    """
    values, vectors = torch.linalg.eigh(covariance)
    inverse = (vectors / (values.clamp_min(0) + RIDGE)) @ vectors.T
    weighted = noise @ inverse
    return torch.linalg.solve(weighted @ noise.T, weighted)


@ordinary
def fit_patches(
    dataset: Dataset,
    *,
    patch: int = PATCH,
    rank: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PatchBasis:
    """Find the patch directions along which the classes differ in variance.

    Neither clean images nor knowledge of the poison is needed. Natural images give a spectrum below 12, so nothing is
    removed unless the largest value passes `PRESENT`; then all directions above `REMOVE` are.

    Args:
        dataset: uint8 images with labels.
        patch: side of the patches.
        rank: number of directions, instead of the rule.
        seed: seed for drawing the images behind the statistics.
        progress: called as ``progress("patches", done, total)``.

    Raises:
        InputError: the patch is larger than the images, or the rank exceeds the patch's dimension.
    """
    start = time.perf_counter()
    height, width, channels = dataset.image_shape
    d = patch * patch * channels
    if not 2 <= patch <= min(height, width):
        most = min(height, width)
        raise InputError(f"a patch of {patch} px does not fit images of {width} x {height}: give 2 to {most}")
    if rank is not None and not 0 <= rank <= d:
        raise InputError(f"patches of {patch} x {patch} x {channels} have {d} directions, {rank} were requested")
    limit = max(dataset.num_classes, min(len(dataset), PER_CLASS * dataset.num_classes, MOST_IMAGES))
    indices = balanced_indices(dataset.labels, dataset.num_classes, limit, seed)
    found = statistics(dataset, patch, indices, progress)
    values, directions, _, colour = spectrum(found.smooth, found.images)
    if rank is None:
        rank = int((values > REMOVE).sum()) if float(values[0]) > PRESENT else 0
    noise = (colour @ directions).T
    shape = (-1, channels, patch, patch)
    metadata = {
        "patch": patch,
        "rank": rank,
        "largest": float(values[0]),
        "largest_whole": float(spectrum(found.whole, found.images)[0][0]),
        "above_remove": int((values > REMOVE).sum()),
        "images": len(indices),
        "source": dataset.name,
        "seed": seed,
        "seconds": time.perf_counter() - start,
    }
    analysis = estimator(noise[:rank], found.whole.mean(0))
    return PatchBasis(
        analysis.float().reshape(shape),
        noise[:rank].float().reshape(shape),
        values,
        noise.float().reshape(shape),
        dataset.image_shape,
        metadata,
    )


class PatchProjection(PixelLayer):
    """Removes a `PatchBasis` from a batch of images, exactly up to the border: every pixel is the mean over the patches
    that cover it.

    On a CPU without gradients this is one convolution with (2K - 1) x (2K - 1) filters that change towards the border
    (`ops.patch_filter`); otherwise, and on smaller images, two convolutions with r filters of K x K, with the same
    result.

    Args:
        basis: from `fit_patches`.
        mean, std: of the normalisation that the batches have been through; None for batches in [0, 1].

    Shape:
        (n, C, H, W) float in [0, 1], any size of at least K; not clipped.

    Example:
        >>> clean_enough = ulfast.PatchProjection(ulfast.fit_patches(dataset))(images)
    """

    def __init__(
        self,
        basis: PatchBasis,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(mean, std)
        self.analysis: Tensor
        self.synthesis: Tensor
        self.register_buffer("analysis", basis.analysis.contiguous(memory_format=torch.channels_last))
        self.register_buffer("synthesis", basis.synthesis.contiguous(memory_format=torch.channels_last))
        self._kept: tuple[tuple[int, ...], Tensor] | None = None

    def pixels(self, x: Tensor) -> Tensor:
        if not len(self.analysis):
            return x
        side = self.analysis.shape[-1]
        if x.dim() != 4 or x.shape[1] != self.analysis.shape[1] or min(x.shape[2:]) < side:
            raise ValueError(
                f"expected (n, {self.analysis.shape[1]}, H, W) with sides of at least {side}, got {tuple(x.shape)}"
            )
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and min(x.shape[2:]) >= 2 * side - 1
        if plain and not (torch.is_grad_enabled() and x.requires_grad):
            return ops.patch_filter(x.permute(0, 2, 3, 1), self._folded()).permute(0, 3, 1, 2)
        # Outside the caller's autocast: like the operators it computes in the buffers' precision and returns x's.
        # Compiled code keeps the caller's choice of TF32, since the compiler does not see process settings.
        full = contextlib.nullcontext() if torch.compiler.is_compiling() else FULL_CONVOLUTIONS
        with torch.autocast(x.device.type, enabled=False), full:
            wide = x.to(self.analysis.dtype)
            removed = F.conv_transpose2d(F.conv2d(wide, self.analysis), self.synthesis)
            return (wide - removed / self._cover(wide)).to(x.dtype)

    def _folded(self) -> Tensor:
        """`fold` of the current buffers."""
        state = (self.analysis.data_ptr(), self.analysis._version, self.synthesis.data_ptr(), self.synthesis._version)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, fold(self.analysis, self.synthesis))
        return self._kept[1]

    def _cover(self, x: Tensor) -> Tensor:
        """Number of patches over each pixel, (H, W)."""
        side = self.analysis.shape[-1]
        rows = [_count(size, side, x.device) for size in x.shape[2:]]
        return (rows[0][:, None] * rows[1][None, :]).to(x.dtype)

    def extra_repr(self) -> str:
        return f"patch={self.analysis.shape[-1]}, directions={self.analysis.shape[0]}"


def fold(analysis: Tensor, synthesis: Tensor) -> Tensor:
    """The filters of `ops.patch_filter` from analysis and synthesis, (r, C, K, K) each: (T, T, T, T, C, C) float32, T =
    2 K - 1.

    A pixel is the mean over the patches that cover it; near the border there are fewer of them.
    """
    _, channels, side, _ = analysis.shape
    taps = 2 * side - 1
    # (a, b, output channel, input channel, p, q): the weight from the value at (p, q) of a patch to that at (a, b).
    inside = torch.einsum("roab,ripq->aboipq", synthesis.double(), analysis.double())
    answers = inside.new_zeros(side, side, taps, taps, channels, channels)
    for a in range(side):
        for b in range(side):
            rows, columns = slice(side - 1 - a, taps - a), slice(side - 1 - b, taps - b)
            answers[a, b, rows, columns] = inside[a, b].permute(2, 3, 1, 0)
    kind, place = torch.arange(taps, device=analysis.device)[:, None], torch.arange(side, device=analysis.device)
    # Possible places in a patch of a pixel in each kind of row.
    can = ((place <= kind) | (kind >= side - 1)) & ((place >= kind - (side - 1)) | (kind <= side - 1))
    weights = can.double() / can.sum(1, keepdim=True)
    return torch.einsum("ya,xb,abpqio->yxpqio", weights, weights, answers).float()


def _count(size: int, side: int, device: torch.device) -> Tensor:
    at = torch.arange(size, device=device)
    most = min(side, size - side + 1)
    return torch.minimum(at + 1, size - at).clamp(max=most)
