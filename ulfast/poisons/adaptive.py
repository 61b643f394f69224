"""`adaptive`: adversarial examples made through the attacks that undo other poisons."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import Dataset, chunks
from ..data.mapped import room
from ..data.tensors import as_tensor
from ..errors import InputError
from ..parameters import parameter
from .augment import differentiable
from .base import Workplace
from .jpeg import EVERYWHERE, through_jpeg
from .store import PerturbationStore
from .surrogate import Images, Search, SurrogatePoison, sweep, trained_surrogates

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Adaptive(SurrogatePoison):
    """Targeted adversarial examples (towards class y + 1, as `tap`) of a network trained on the clean images as they
    are and as an attack leaves them. The steps of an image take turns: one on the image, one through JPEG, whose
    rounding has a derivative for this (`through_jpeg`). Noise that only a network sees is out of reach of a projection,
    and what survives JPEG 10 is out of reach of JPEG.
    """

    summary = "targeted adversarial examples that survive JPEG and the projections"
    source = "ulfast, docs/research/adaptive.md"
    aliases = ("tap-jpeg",)
    clean_surrogate: ClassVar[bool] = True

    through: str = parameter(
        "none,jpeg-10", "what the noise must survive: none, jpeg-QUALITY, blur-SIGMA, separated by commas"
    )
    everywhere: float = parameter(
        EVERYWHERE, "share of the derivative of JPEG's rounding that is the same everywhere, in [0, 1]", at_least=0
    )
    alpha: float | None = parameter(None, "size of the first step (default eps / 4); it falls to zero", at_least=0)
    steps: int = parameter(60, "steps of each image", at_least=1)
    batch_size: int = parameter(128, "images per step", at_least=1)
    epochs: int | None = parameter(None, "epochs of the clean network (default: the quick recipe's)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        return {**self.parameters(), "alpha": self.eps / 4 if self.alpha is None else self.alpha}

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        if self.everywhere > 1:
            raise InputError(f"adaptive: everywhere must be between 0 and 1, got {self.everywhere:g}")
        views, alpha = views_of(self.through, self.everywhere), self.resolved(dataset)["alpha"]
        base = dataset if work.surrogate_data is None else work.surrogate_data
        surrogates = trained_surrogates(
            self.surrogate, dataset, self.epochs, seed, work, on=seen_through(base, views, torch.device(work.device))
        )
        store = self.open_store(dataset, work)

        def augment(x: Tensor, step: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            view = views[step % len(views)]
            return differentiable(view, x) if view else (x, lambda gradient: gradient)

        sweep(
            surrogates,
            Images(dataset, surrogates[0].device),
            store,
            Search(work, store, self.identity(dataset, seed)),
            targets=lambda y: (y + 1) % dataset.num_classes,
            alphas=[-alpha * (1 - step / self.steps) for step in range(self.steps)],
            batch_size=self.batch_size,
            restarts=1,
            augment=lambda index, number: augment,
            seed=seed,
        )
        return store


def views_of(text: str, everywhere: float = EVERYWHERE) -> list[View | None]:
    """The functions of pixels (b, C, H, W) in [0, 1] that `through` names; None for the image itself.

    Raises:
        InputError: a name is unknown.
    """
    found: list[View | None] = []
    for name in text.replace(" ", "").split(","):
        kind, _, number = name.partition("-")
        if name == "none":
            found.append(None)
        elif kind == "jpeg" and re.fullmatch(r"\d{1,3}", number) and 1 <= int(number) <= 100:
            found.append(functools.partial(through_jpeg, quality=int(number), everywhere=everywhere))
        elif kind == "blur" and re.fullmatch(r"\d{1,2}(\.\d{1,6})?", number) and float(number) > 0:
            found.append(functools.partial(blurred, sigma=float(number)))
        else:
            raise InputError(f"adaptive: through is a list of none, jpeg-1 to jpeg-100 and blur-SIGMA, got {text!r}")
    return found


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Pixels (b, C, H, W) after a Gaussian blur with repeated borders, cut at four standard deviations."""
    reach = math.ceil(4 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=x.device) / sigma) ** 2).to(x.dtype)
    weights /= weights.sum()
    b, channels, height, width = x.shape
    x = nn.functional.pad(x, (reach,) * 4, mode="replicate").reshape(b * channels, 1, height + 2 * reach, -1)
    x = nn.functional.conv2d(nn.functional.conv2d(x, weights[None, None, None]), weights[None, None, :, None])
    return x.view(b, channels, height, width)


def seen_through(dataset: Dataset, views: list[View | None], device: torch.device) -> Dataset:
    """The images once for each view, one view after the other."""
    n = len(dataset)
    images = room((n * len(views), *dataset.image_shape))
    for number, view in enumerate(views):
        for begin, stop in chunks(dataset.images):
            block = np.asarray(dataset.images[begin:stop])
            if view is not None:
                x = as_tensor(block).to(device).permute(0, 3, 1, 2).float() / 255
                block = (view(x) * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            images[number * n + begin : number * n + stop] = block
    return replace(dataset, images=images, labels=np.tile(dataset.labels, len(views)))
