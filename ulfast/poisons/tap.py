"""`tap` and `aap`: targeted adversarial examples as a poison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .augment import differentiable, shown
from .base import PRESETS, Workplace
from .store import PerturbationStore
from .surrogate import Augment, Images, Search, SurrogatePoison, sweep, trained_surrogates


@dataclass(frozen=True)
class TargetedAdversarial(SurrogatePoison):
    """Adversarial examples of a network trained on the clean images: towards the next class (y + 1), or, untargeted,
    away from its own.

    The preset "published" takes steps of constant size from eight normal starts, clamped to the ball, and shows the
    network the image shifted and mirrored at random at each step. The authors keep the best of eight whole runs; here
    the best start of each image is kept. The preset "quick" starts every image once, uniformly in the ball, decays the
    step linearly to zero, and shows the unchanged image.
    """

    summary = "targeted adversarial examples of a clean network"
    source = "Fowl et al., Adversarial Examples Make Strong Poisons, NeurIPS 2021"
    aliases = ("targeted-adversarial-poisoning", "adversarial-poisoning")
    clean_surrogate: ClassVar[bool] = True

    preset: str = parameter(
        "published", "published: the authors' step, starts and augmentation; or quick", choices=PRESETS
    )
    targeted: bool = parameter(True, "towards class y + 1; false: away from y")
    alpha: float | None = parameter(
        None, "size of every step (default eps / 20), or of the first (quick: eps / 4)", at_least=0
    )
    steps: int = parameter(250, "steps of each image", at_least=1)
    batch_size: int = parameter(128, "images per step", at_least=1)
    restarts: int | None = parameter(None, "random starts, the best of which is kept (default 8; quick 1)", at_least=1)
    epochs: int | None = parameter(None, "epochs of the clean network (default: the quick recipe's)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        published = self.preset == "published"
        return {
            **self.parameters(),
            "alpha": self.alpha if self.alpha is not None else self.eps / (20 if published else 4),
            "restarts": self.restarts or (8 if published else 1),
        }

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        values, published = self.resolved(dataset), self.preset == "published"
        surrogates = trained_surrogates(self.surrogate, dataset, self.epochs, seed, work)
        images = Images(dataset, surrogates[0].device)
        store = self.open_store(dataset, work)
        sign, shift = (-1, 1) if self.targeted else (1, 0)
        fall = 0.0 if published else 1 / self.steps

        def augment(index: Tensor, number: int) -> Augment:
            return lambda x, step: wander(x, surrogates[0].mean, seed, number * self.steps + step, int(index[0]))

        sweep(
            surrogates,
            images,
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + shift) % dataset.num_classes,
            alphas=[sign * values["alpha"] * (1 - step * fall) for step in range(self.steps)],
            batch_size=self.batch_size,
            restarts=values["restarts"],
            normal=published,
            augment=augment if published else None,
            seed=seed,
        )
        return store


@dataclass(frozen=True)
class AugmentedAdversarial(SurrogatePoison):
    """Adversarial examples of a network trained on the clean images with the augmentation of contrastive learning,
    through which their gradient also passes: towards the next class (y + 1) or, untargeted, up the loss of the image's
    own class. The steps start at the image. Jitter is applied in a fixed order, and hue is rotated in NTSC's colour
    plane.
    """

    summary = "targeted adversarial examples through strong augmentation, against contrastive learning too"
    source = "Wang et al., Efficient Availability Attacks against Supervised and Contrastive Learning, NeurIPS 2024"
    aliases = ("augmented-adversarial-poisoning",)
    clean_surrogate: ClassVar[bool] = True

    targeted: bool = parameter(True, "towards class y + 1; false: away from y")
    alpha: float | None = parameter(None, "step size (default 2.5 eps divided by the number of steps)", at_least=0)
    steps: int = parameter(250, "steps of each image", at_least=1)
    batch_size: int = parameter(128, "images per step", at_least=1)
    epochs: int = parameter(40, "epochs of the clean network, a quarter of them warm-up", at_least=1)
    lr: float = parameter(0.5, "learning rate of the clean network (SGD, cosine schedule)", at_least=0)
    strength: float | None = parameter(
        None, "strength of the augmentation, in [0, 1] (default 0.4; 0.8 from 100 classes on)", at_least=0
    )

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {
            **self.parameters(),
            "alpha": 2.5 * self.eps / self.steps if self.alpha is None else self.alpha,
            "strength": (0.8 if dataset.num_classes >= 100 else 0.4) if self.strength is None else self.strength,
        }

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        values = self.resolved(dataset)
        strength = values["strength"]
        if strength > 1:
            raise InputError(f"strength must be between 0 and 1, got {strength:g}")
        changes = {"optimizer": "sgd", "lr": self.lr, "schedule": "one-cycle", "warmup": 0.25, "weight_decay": 1e-4}
        surrogates = trained_surrogates(
            self.surrogate, dataset, self.epochs, seed, work, strength=strength, changes=changes
        )
        store = self.open_store(dataset, work)
        sign, shift = (-1, 1) if self.targeted else (1, 0)

        def augment(index: Tensor, number: int) -> Augment:
            return lambda x, step: shown(x, strength, seed, step, int(index[0]))

        sweep(
            surrogates,
            Images(dataset, surrogates[0].device),
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + shift) % dataset.num_classes,
            alphas=[sign * values["alpha"]] * self.steps,
            batch_size=self.batch_size,
            augment=augment if strength else None,
            seed=seed,
        )
        return store


def wander(
    x: Tensor,  # (b, C, H, W) float32, pixels in [0, 1]
    mean: Tensor,  # (C, 1, 1): colour beyond the border
    seed: int,
    number: int,  # of the draw, below 2^29
    first: int,  # number of the first image, below 2^32
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The images shifted by up to an eighth of their size in each direction, also by fractions of a pixel (bilinear),
    with half of them mirrored, as drawn from (seed, number, image); and the function that maps gradients back.
    """
    b, _, height, width = x.shape
    u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, (1 << 62) + (number << 32) + first, b, 3, device=x.device)
    # In grid_sample's units, from -1 to 1 between the centres of the outermost pixels.
    most = torch.tensor([size / 4 / max(size - 1, 1) for size in (width, height)], device=x.device)
    dx, dy = ((u[:, :2] * 2 - 1) * most).unbind(1)
    mirrored = torch.where(u[:, 2] < 0.5, -1.0, 1.0)
    zero, one = torch.zeros_like(dx), torch.ones_like(dx)
    places = torch.stack([torch.stack([mirrored, zero, dx], 1), torch.stack([zero, one, dy], 1)], 1)
    grid = nn.functional.affine_grid(places, list(x.shape), align_corners=True)
    return differentiable(lambda leaf: nn.functional.grid_sample(leaf - mean, grid, align_corners=True) + mean, x)
