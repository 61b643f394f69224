"""`tue`: noise whose classes are far apart, found without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset
from ..data.mapped import decoded, room
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.reference import whole_levels
from ..parameters import parameter
from .base import Perturb, Poison, Workplace

# Noise is counted in steps of eps / 160 (a twentieth of a level at 8/255), so that sums over a class are integers and
# the same in any order.
UNITS = 160
# Added to the deviations and distances in the published loss, for pixels in [0, 1].
SMALL = 1e-5
# Directions below this share of the largest count as zero: they are only rounding.
NOTHING = 1e-9
COLUMNS = 1 << 14  # values of the centres whose directions are computed at a time


@dataclass(frozen=True)
class ClassWiseSeparability(Poison):
    """Sample-wise noise that descends the class-wise separability discriminant: the sum of two classes' deviations over
    the distance of their centres, averaged over the pairs of classes in a batch of perturbations.

    The authors' programs for SimCLR and SimSiam weight the contrastive loss by zero and train an encoder that the noise
    never sees. The rest needs no network and is all of this method. In their program deviations are constants, so the
    centres are pushed apart and the deviations decide how much each pair counts.

    Once a batch, or all batches, would no longer change, the remaining steps are skipped.
    """

    summary = "noise with separable classes, without a network"
    source = "Ren et al., Transferable Unlearnable Examples, ICLR 2023"
    aliases = ("transferable-unlearnable-examples", "csd")

    eps: float = parameter(8 / 255, "L-infinity bound, pixels in [0, 1]", at_least=0)
    alpha: float | None = parameter(None, "step size (default eps / 10)", at_least=0)
    steps: int = parameter(20, "steps per batch", at_least=1)
    passes: int = parameter(200, "largest number of passes over all images, each in a new order", at_least=1)
    batch_size: int = parameter(512, "images per step", at_least=2)

    @property
    def by_class(self) -> bool:
        return False

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**self.parameters(), "alpha": self.eps / 10 if self.alpha is None else self.alpha}

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.eps <= 0:
            raise InputError("tue needs an eps above 0")
        noise = self._find(dataset, seed, work)
        most = whole_levels(self.eps)

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            levels = noise[first : first + len(images)].double() * (255 * self.eps / UNITS)
            delta = (levels.round().clamp_(-most, most) / 255).float()
            return ops.apply_perturbation(work.place(images), work.place(delta)).cpu().numpy()

        return perturb

    def _find(self, dataset: Dataset, seed: int, work: Workplace) -> Tensor:
        """The noise (n, H, W, C) int16 in units of eps / 160, on the CPU; like the decoded images in a temporary file
        if it is large.
        """
        n, d = len(dataset), int(np.prod(dataset.image_shape))
        # Both stay mapped if they are files; only the rows of a batch are read.
        images, noise = as_tensor(decoded(dataset).images).view(n, d), as_tensor(room((n, d), np.int16))
        labels = as_tensor(dataset.labels)
        for begin in range(0, n, 4096):
            stop = min(begin + 4096, n)
            u = ops.philox_uniform(seed, ops.philox.STREAM_SURROGATE, begin, stop - begin, d)
            noise[begin:stop] = ((u * 2 - 1) * UNITS).round().to(torch.int16)
        # A step of twice the bound already crosses all of it.
        alpha = min(2 * UNITS, max(1, round(UNITS * self.resolved(dataset)["alpha"] / self.eps)))
        done, separability = 0, 0.0
        while done < self.passes:
            moved, totals = False, []
            generator = torch.Generator().manual_seed((seed * 1_000_003 + done) % (1 << 63))
            for index in torch.randperm(n, generator=generator).split(self.batch_size):
                before = noise[index]
                after, value = self._steps(work, images[index], labels[index], before, alpha)
                totals.append(value)
                moved = moved or not torch.equal(after, before)
                noise[index] = after
            done, separability = done + 1, float(np.mean(totals))
            work.tell("noise", done, self.passes, loss=separability)
            if not moved:
                break
        work.facts |= {"passes": done, "loss_after": separability}
        return noise.view(n, *dataset.image_shape)

    def _steps(
        self, work: Workplace, pixels: Tensor, labels: Tensor, noise: Tensor, alpha: int
    ) -> tuple[Tensor, float]:
        """The noise of a batch (b, d) int16 after its steps, and the loss before them; pixels (b, d) uint8."""
        order = labels.argsort(stable=True)
        _, counts = labels.unique(return_counts=True)
        unit = 255 * self.eps / UNITS  # levels
        grounds = torch.arange(256.0)
        lowest = work.place((-grounds / unit).ceil_().clamp_(min=-UNITS).to(torch.int16))
        highest = work.place(((255 - grounds) / unit).floor_().clamp_(max=UNITS).to(torch.int16))
        x, levels = work.place(noise[order]), work.place(pixels[order])
        classes = list(zip(x.split(counts.tolist()), levels.split(counts.tolist()), strict=True))
        bounds = [(lowest[rows.int()], highest[rows.int()]) for _, rows in classes]
        for (rows, _), (low, high) in zip(classes, bounds, strict=True):
            rows.clamp_(low, high)
        first = 0.0
        for step in range(self.steps):
            direction, loss = separating([rows for rows, _ in classes], SMALL * UNITS / self.eps)
            first = first if step else loss
            moved = False
            for (rows, _), (low, high), way in zip(classes, bounds, direction.to(torch.int16) * alpha, strict=True):
                after = (rows + way).clamp_(low, high)
                moved = moved or not torch.equal(after, rows)
                rows.copy_(after)
            if not moved:
                break
        result = torch.empty_like(noise)
        result[order] = x.cpu()
        return result, first


def separating(classes: Sequence[Tensor], small: float) -> tuple[Tensor, float]:
    """The directions that lower the discriminant for each class's noise, as signs (c, d) float32, and its value.

    Args:
        classes: c tensors (b, d) int16 or float32, each the noise of one class's images; integers below 2^8.
        small: constant added to deviations and distances.
    """
    each = []
    for noise in classes:
        rows = noise.float()  # one class at a time: a batch of large images takes gigabytes
        centre = rows.sum(0).double() / len(rows)
        each.append((centre, torch.linalg.vector_norm(rows - centre.float(), dim=1).mean().double()))
    centres, deviation = (torch.stack(values) for values in zip(*each, strict=True))
    if len(classes) < 2:
        return torch.zeros_like(centres, dtype=torch.float32), 0.0
    distance = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
    others = 1 - torch.eye(len(classes), dtype=torch.float64).to(centres.device)
    pairs = (deviation[:, None] + deviation + small) * others
    loss = float((pairs / (distance + small)).sum() / others.sum())
    # A centre's gradient is the weighted sum of its differences to the others; it is undefined where two centres meet.
    weights = torch.where(distance > 0, pairs / ((distance + small) ** 2 * distance), torch.zeros_like(pairs))
    whole = weights.sum(1, keepdim=True)
    direction = torch.empty_like(centres, dtype=torch.float32)
    for way, part in zip(direction.split(COLUMNS, 1), centres.split(COLUMNS, 1), strict=True):
        slope, size = whole * part - weights @ part, whole * part.abs() + weights @ part.abs()
        way.copy_(torch.where(slope.abs() > NOTHING * size, slope.sign(), torch.zeros_like(slope)))
    return direction, loss
