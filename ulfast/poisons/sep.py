"""`sep` and `dune`: targeted noise against many checkpoints of one training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import distributed, ops
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from ..runtime.files import write_json
from .base import Perturb, Workplace
from .statistics import ssim
from .store import PerturbationStore
from .surrogate import Images, Search, Surrogate, SurrogatePoison, mean_loss, searching, sweep, trained_surrogates


@dataclass(frozen=True)
class SelfEnsemble(SurrogatePoison):
    """Steps down the loss towards another class (y + offset), averaged over evenly spaced checkpoints of one training
    on the clean images. This is the variant with cross-entropy, without feature alignment or variance reduction.
    """

    summary = "targeted noise against the checkpoints of a training"
    source = "Chen et al., Self-Ensemble Protection: Training Checkpoints Are Good Data Protectors, ICLR 2023"
    aliases = ("self-ensemble", "self-ensemble-protection")
    clean_surrogate: ClassVar[bool] = True

    alpha: float | None = parameter(None, "step size (default eps / 10)", at_least=0)
    batch_size: int = parameter(128, "images per step", at_least=1)
    steps: int = parameter(30, "steps per image", at_least=1)
    checkpoints: int = parameter(15, "checkpoints of the training; no more than it has epochs", at_least=1)
    epochs: int | None = parameter(None, "epochs of the training (default: the quick recipe's)", at_least=1)
    offset: int = parameter(1, "target class, counted from the image's own", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**self.parameters(), "alpha": self.eps / 10 if self.alpha is None else self.alpha}

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        if self.offset % dataset.num_classes == 0:
            raise InputError(
                f"offset {self.offset} of {dataset.num_classes} classes aims at an image's own: give --set offset=1"
            )
        surrogates = trained_surrogates(self.surrogate, dataset, self.epochs, seed, work, self.checkpoints)
        work.facts |= {"checkpoints": len(surrogates)}
        self.beside(surrogates, dataset, seed, work)
        store = self.open_store(dataset, work)
        alpha = self.resolved(dataset)["alpha"]
        sweep(
            surrogates,
            Images(dataset, surrogates[0].device),
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + self.offset) % dataset.num_classes,
            alphas=[-alpha] * self.steps,
            batch_size=self.batch_size,
        )
        return store

    def beside(self, surrogates: list[Surrogate], dataset: Dataset, seed: int, work: Workplace) -> None:
        """Hook for further searches with the networks."""


@dataclass(frozen=True)
class ColourAndSpace(SelfEnsemble):
    """The noise of `sep` towards class y + 3, plus a colour for each class that is added to all of its pixels. A
    particle swarm searches for the colour that minimises the loss of the same networks towards y + 3, averaged over the
    class's first images, with penalties for a PSNR below 20 dB and an SSIM below 0.8. The authors' third penalty,
    LPIPS, needs a trained network and is left out; so is SSIM without kornia.

    The noise respects eps; the colour is added to it, so that the sum exceeds eps, as published.
    """

    summary = "targeted noise against checkpoints, and a colour for each class"
    source = "DUNE, ICML 2026"
    aliases = ("dual-domain", "colour-and-space")

    alpha: float | None = parameter(None, "step size (default eps / 16)", at_least=0)
    checkpoints: int = parameter(5, "checkpoints of the training; no more than it has epochs", at_least=1)
    offset: int = parameter(3, "target class, counted from the image's own", at_least=1)
    particles: int = parameter(10, "particles in the swarm that searches for a class's colour", at_least=1)
    flights: int = parameter(10, "rounds of the swarm", at_least=0)
    spread: float = parameter(0.1, "range of the swarm's start in either direction, pixels in [0, 1]", at_least=0)
    sample: int = parameter(1000, "images of a class on which a colour is judged", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**super().resolved(dataset), "alpha": self.eps / 16 if self.alpha is None else self.alpha}

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        spatial = super().prepare(dataset, seed, work)
        colours = np.array(work.facts["colours"])

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            # The noise must not be clipped at 0 or 255 before the colour is added.
            gray = np.full_like(images, 128)
            noise = spatial(first, gray, labels).astype(np.int16) - 128
            levels = np.rint(255 * colours[labels]).astype(np.int16)[:, None, None]
            return (images + noise + levels).clip(0, 255).astype(np.uint8)

        return perturb

    def beside(self, surrogates: list[Surrogate], dataset: Dataset, seed: int, work: Workplace) -> None:
        file = work.folder / "colours.json"
        identity = self.identity(dataset, seed)
        if distributed.agreed(work.resume and file.is_file()):
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["identity"] == json.loads(json.dumps(identity)):
                work.facts |= {"colours": kept["colours"]}
                return
        images, colours = Images(dataset, surrogates[0].device), []
        with searching(*surrogates):
            for label in range(dataset.num_classes):
                rows = (images.labels.cpu() == label).nonzero()[: self.sample, 0]
                colours.append(self._colour(surrogates, images, rows, label, dataset, seed).tolist())
                work.tell("colours", label + 1, dataset.num_classes)
        if distributed.is_main():
            write_json(file, {"identity": identity, "colours": colours})
        work.facts |= {"colours": colours}

    def _colour(
        self,
        surrogates: list[Surrogate],
        images: Images,
        rows: Tensor,  # of the class's images
        label: int,
        dataset: Dataset,
        seed: int,
    ) -> Tensor:  # (C,) float64
        channels = dataset.image_shape[2]
        row = (1 << 61) + label * (2 * self.flights + 2)

        def draw(number: int) -> Tensor:
            u = ops.philox_uniform(seed, ops.philox.STREAM_SURROGATE, row + number, 1, self.particles * channels)
            return u.view(self.particles, channels).double()

        places = (2 * draw(0) - 1) * self.spread
        speeds = torch.zeros_like(places)

        def judge(places: Tensor) -> Tensor:
            return torch.tensor([self._cost(surrogates, images, rows, label, dataset, place) for place in places])

        if not len(rows):
            return torch.zeros(channels, dtype=torch.float64)
        costs = judge(places)
        own, own_costs = places.clone(), costs.clone()
        for flight in range(self.flights):
            best = own[own_costs.argmin()]
            pulls = 0.3 * draw(2 * flight + 1) * (own - places) + 0.3 * draw(2 * flight + 2) * (best - places)
            speeds = 0.5 * speeds + pulls
            places = places + speeds
            costs = judge(places)
            better = costs < own_costs
            own[better], own_costs[better] = places[better], costs[better]
        return own[own_costs.argmin()]

    def _cost(
        self,
        surrogates: list[Surrogate],
        images: Images,
        rows: Tensor,
        label: int,
        dataset: Dataset,
        colour: Tensor,
    ) -> float:
        """The loss towards y + offset, and a hinge on PSNR (in dB) and SSIM."""
        total, squares, like = 0.0, 0.0, []
        target = (label + self.offset) % dataset.num_classes
        add = colour.to(images.device, torch.float32)[:, None, None]
        for index in rows.split(self.batch_size):
            clean = images.pixels(index)
            x = (clean + add).clamp(0, 1)
            y = torch.full((len(index),), target, device=images.device)
            total += float(mean_loss(surrogates, x, y).sum())
            squares += float((x - clean).square().sum())
            before, after = ((255 * v).round().byte().permute(0, 2, 3, 1).cpu().numpy() for v in (clean, x))
            similarity = ssim(before, after)
            if similarity is not None:
                like.append(similarity * len(index))
        error = squares / (len(rows) * math.prod(dataset.image_shape))
        psnr = -10 * math.log10(error) if error else math.inf
        similarity = sum(like) / len(rows) if like else 1.0
        return total / len(rows) + max(0.0, 20 - psnr) + max(0.0, 0.8 - similarity)
