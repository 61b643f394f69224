"""Training recipes: `quick` (minutes on two cores), `quick-noflip`, `fast` (for a GPU), `paper`, `paper-plain` and
`paper-dfr` (as published), `imagenet`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..data.dataset import Dataset
from ..data.loaders.augment import Augment
from ..data.tensors import channel_statistics
from ..errors import InputError
from ..registry import nearest


@dataclass(frozen=True)
class Recipe:
    """Everything that a training needs besides network and data.

    Attributes:
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: largest learning rate.
        schedule: "one-cycle" (linear warm-up, then cosine to zero, by steps), "step" (x0.1 at half and three quarters)
            or "cosine"; the latter two change only between epochs.
        strong: use `strong_augmentation` instead of `augment`.
        cutmix: probability of CutMix for a batch.
        half: use `devices.fast_half` if there is one.
        warmup: share of the steps for the warm-up of "one-cycle".
        drop_last: drop a short last batch.
        normalisation: mean and standard deviation of each channel for 32 px colour images, in units of [0, 1]; with
            None, and for other images, they come from the images.
        graph: capture the step in a CUDA graph, with a fused optimizer, if a single process trains on a GPU.
        label_smoothing: label smoothing of the loss.
        nesterov: Nesterov momentum for "sgd".
        evaluate_every: epochs between two evaluations on the test images, unless the user chooses.
        fit_init, fit_epochs: settings of the linear fit of `orthogonal`, unless the user chooses.
    """

    name: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    schedule: str
    augment: Augment | None = field(default_factory=Augment)
    strong: bool = False
    cutmix: float = 0.0
    half: bool = True
    warmup: float = 0.2
    drop_last: bool = True
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    graph: bool = False
    label_smoothing: float = 0.0
    nesterov: bool = False
    evaluate_every: int = 1
    fit_init: str | None = None
    fit_epochs: int | None = None

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step."""
        epoch = step // steps_per_epoch
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(epoch >= max(1, int(share * self.epochs)) for share in (0.5, 0.75))
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        at = (step + 0.5) / (self.epochs * steps_per_epoch)
        if at < self.warmup:
            return self.lr * at / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (at - self.warmup) / (1 - self.warmup)))

    def statistics(
        self, dataset: Dataset, device: torch.device | None = None
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel for normalising a training set and its test images; computed on
        the device (default: the CPU).
        """
        if self.normalisation is not None and dataset.image_shape == (32, 32, 3):
            return self.normalisation
        return channel_statistics(dataset, shared=True, device=device)


def _quick(model: str, n: int) -> Recipe:
    epochs = 14 if n <= 5_000 else 10 if n <= 20_000 else 7
    small = n < 2_000  # few steps per epoch: smaller batches, and enough epochs for a few hundred steps
    batch = 32 if small else 128
    if small:
        epochs = min(100, max(epochs, math.ceil(400 / max(1, n // batch))))
    if model == "cnn":
        return Recipe("quick", epochs, batch, "adamw", 3e-3, 0.05, "one-cycle", Augment(crop_padding=0, flip=True))
    epochs = max(epochs, 12)
    if n <= 20_000:  # with 128, a shortcut as hard as ar's is hardly found in so few steps
        batch = min(batch, 64)
    return Recipe("quick", epochs, batch, "sgd", 0.1, 5e-4, "one-cycle", Augment(crop_padding=4, flip=True))


def _quick_noflip(model: str, n: int) -> Recipe:
    recipe = _quick(model, n)
    assert recipe.augment is not None
    return replace(recipe, name="quick-noflip", augment=replace(recipe.augment, flip=False))


def _fast(model: str, n: int) -> Recipe:
    """For a GPU: large batches if there are enough images, the step in a graph, and one evaluation on the test images,
    at the end.
    """
    quick = _quick(model, n)
    if n <= 20_000 or model == "cnn":
        return replace(quick, name="fast", graph=True, evaluate_every=quick.epochs)
    return Recipe(
        "fast",
        15,
        512,
        "sgd",
        0.4,
        5e-4,
        "one-cycle",
        Augment(crop_padding=4, flip=True),
        graph=True,
        label_smoothing=0.1,
        nesterov=True,
        evaluate_every=15,
    )


# The paper's code normalises CIFAR-10, CIFAR-100 and SVHN with these.
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PAPER: dict[str, Any] = {"half": False, "drop_last": False, "normalisation": CIFAR}
PAPER_FIT: dict[str, Any] = {"fit_init": "torch", "fit_epochs": 20}


def _paper(model: str, n: int) -> Recipe:
    return Recipe("paper", 50, 128, "sgd", 0.1, 1e-4, "step", None, strong=True, cutmix=0.5, **PAPER, **PAPER_FIT)


def _paper_plain(model: str, n: int) -> Recipe:
    return Recipe("paper-plain", 50, 128, "sgd", 0.1, 1e-4, "step", Augment(4, True), **PAPER, **PAPER_FIT)


def _paper_dfr(model: str, n: int) -> Recipe:
    return Recipe("paper-dfr", 60, 128, "sgd", 0.1, 5e-4, "cosine", Augment(4, True), **PAPER)


def _imagenet(model: str, n: int) -> Recipe:
    """The usual recipe, but without crops below a quarter of the image, as in FFCV's recipes."""
    augment = Augment(crop_padding=0, flip=True, area=(0.25, 1.0))
    return Recipe("imagenet", 90, 256, "sgd", 0.1, 1e-4, "one-cycle", augment, warmup=5 / 90)


RECIPES: dict[str, tuple[Callable[[str, int], Recipe], str]] = {
    "quick": (_quick, "one-cycle, few epochs, half precision where it is faster"),
    "quick-noflip": (_quick_noflip, "the same without mirroring, which hides the direction of ar's recurrences"),
    "fast": (_fast, "on a GPU: batches of 512, the step in a CUDA graph, evaluation at the end; on a CPU it is quick"),
    "paper": (_paper, "as published: ResNet-18, 50 epochs, strong augmentation, CutMix, the paper's linear fit"),
    "paper-plain": (_paper_plain, "the same with crop and flip only"),
    "paper-dfr": (_paper_dfr, "as published for dfr: ResNet-18, 60 epochs, cosine, crop and flip"),
    "imagenet": (_imagenet, "90 epochs with random resized crops, for 224 px"),
}


def default_model(recipe: str) -> str:
    """The network of a recipe, unless the user chooses another."""
    return "resnet18" if recipe.lower().startswith("paper") else "cnn"


def get_recipe(name: str, model: str, n: int, device: torch.device | None = None) -> Recipe:
    """The recipe for a network, a number of training images and a device (default: the CPU).

    Raises:
        InputError: the recipe is unknown.
    """
    if name.lower() not in RECIPES:
        raise InputError(f"unknown recipe {name!r}{nearest(name, RECIPES)}: known are {', '.join(RECIPES)}")
    if name.lower() == "fast" and (device is None or device.type != "cuda"):
        name = "quick"
    return RECIPES[name.lower()][0](model.lower(), n)
