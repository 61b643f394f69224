"""The published detectors of unlearnable data, to compare `diagnose` with.

Simple networks and the bias shift say whether a set is poisoned, iterative filtering which of its images are. The
defaults are the published settings, for 50,000 images of CIFAR-10; `epochs` and `model` make them cheaper.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.dataset import Dataset
from ..data.loaders.augment import Augment
from ..data.loaders.memory import MemoryLoader
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.devices import fast_half, resolve_device
from ..runtime.progress import Progress
from ..training import Recipe, build_model, train

BOUND = 0.7  # held-out accuracy from which on a set counts as poisoned
BATCH = 128
HELD = 5  # one image of so many is held out


@dataclass(frozen=True)
class SetFinding:
    """What a detector of poisoned sets found.

    Attributes:
        poisoned: the verdict, `accuracy` >= `bound`.
        accuracy: accuracy on held-out images of the set itself, 0 to 1.
        train_accuracy: accuracy on the (augmented or shifted) training images in the last epoch, 0 to 1.
        bound: from this accuracy on a set counts as poisoned.
    """

    poisoned: bool
    accuracy: float
    train_accuracy: float
    bound: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Filtering:
    """What iterative filtering found.

    Attributes:
        images: sorted indices of the images that it takes for poisoned, int64.
        shares: share of all images taken for poisoned after each round, 0 to 1.
    """

    images: np.ndarray
    shares: tuple[float, ...]


@dataclass(frozen=True)
class ImageErrors:
    """How a detector of poisoned images errs. A share is nan if there are no images that it is a share of.

    Attributes:
        false_alarms: share of the clean images that it takes for poisoned.
        misses: share of the poisoned images that it takes for clean.
    """

    false_alarms: float
    misses: float

    @property
    def half_total(self) -> float:
        """Half total error rate: the mean of both. 0.5 is what marking none, all, or random images gives."""
        return (self.false_alarms + self.misses) / 2


def image_errors(found: np.ndarray, poisoned: np.ndarray) -> ImageErrors:
    """The errors of a detector of images.

    Args:
        found: indices of the images that it takes for poisoned, (k,) int64.
        poisoned: (n,) bool, which are.
    """
    marked = np.zeros(len(poisoned), dtype=bool)
    marked[found] = True

    def share(wrong: np.ndarray) -> float:
        return float(wrong.mean()) if len(wrong) else math.nan

    return ImageErrors(share(marked[~poisoned]), share(~marked[poisoned]))


@dataclass(frozen=True)
class _Milestones(Recipe):
    """The learning rate falls to a tenth after three quarters and after nine tenths of the epochs."""

    def rate(self, step: int, steps_per_epoch: int) -> float:
        epoch = step // steps_per_epoch
        return self.lr * 0.1 ** sum(epoch >= share * self.epochs for share in (0.75, 0.9))


@ordinary
def simple_2nn(
    dataset: Dataset,
    *,
    hidden: int | None = None,
    epochs: int = 100,
    bound: float = BOUND,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SetFinding:
    """Trains a network of two layers on four fifths of the images and tests it on the rest: photographs are too hard
    for it, and poison is not.

    SGD (0.01, to a tenth after 75 and 90 % of the epochs; momentum 0.9, weight decay 0.0005), batches of 128, crops and
    flips, pixels in [0, 1].

    Args:
        dataset: n training images with labels, at least 5.
        hidden: width of the hidden layer (published, and default: the number of an image's values).
        epochs: epochs.
        bound: accuracy from which on the set counts as poisoned (published: 0.7, for 10 to 200 classes; two classes
            of photographs reach it as well).
        seed: of the split, the initialisation, the order and the augmentation.
        device: "auto", "cpu", "cuda" or a torch.device.
        progress: called as ``progress("simple-2nn", epochs done, epochs, loss=, images_per_second=)``.

    Raises:
        InputError: the images are too few, or of one class, or a number is below 1.

    Source: Zhu, Yu and Gao, AAAI 2024, Algorithm 1, and the authors' program.
    """
    d = math.prod(dataset.image_shape)
    hidden = d if hidden is None else hidden
    _check(dataset, hidden=hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, dataset.num_classes))
    recipe = _Milestones("simple-2nn", epochs, BATCH, "sgd", 0.01, 5e-4, "milestones", Augment(4, True), half=False)
    return _held_out(dataset, model, recipe, bound, seed, device, progress)


@ordinary
def simple_linear(
    dataset: Dataset,
    *,
    epochs: int = 100,
    bound: float = BOUND,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SetFinding:
    """As `simple_2nn`, with a linear model and, as published, without crops and flips."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(dataset.image_shape), dataset.num_classes))
    recipe = _Milestones("simple-linear", epochs, BATCH, "sgd", 0.01, 5e-4, "milestones", None, half=False)
    return _held_out(dataset, model, recipe, bound, seed, device, progress)


@ordinary
def bias_shift(
    dataset: Dataset,
    *,
    shift: float = -0.5,
    model: str = "resnet18",
    epochs: int = 100,
    bound: float = BOUND,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SetFinding:
    """Trains a network on four fifths of the images with `shift` added to every pixel and tests it on the rest as they
    are: what it learns of photographs does not survive that, and what it learns of poison does.

    Optimizer and schedule are those of `simple_2nn`; no crops and flips. Half precision is used where it is faster.

    Args:
        dataset, epochs, bound, seed, device, progress: as for `simple_2nn`.
        shift: added to pixels in [0, 1]; published are -0.5 and 0.5.
        model: name of the network (`ulfast.training.build_model`).

    Raises:
        InputError: as for `simple_2nn`, or the model is unknown.

    Source: Zhu, Yu and Gao, AAAI 2024, Algorithm 2, and the authors' program, whose ResNet trains with the learning
    rate of the simple networks.
    """
    network = build_model(model, num_classes=dataset.num_classes, image_shape=dataset.image_shape, seed=seed)
    recipe = _Milestones("bias-shift", epochs, BATCH, "sgd", 0.01, 5e-4, "milestones", None)
    return _held_out(dataset, network, recipe, bound, seed, device, progress, shift)


def _held_out(
    dataset: Dataset,
    model: nn.Module,
    recipe: Recipe,
    bound: float,
    seed: int,
    device: torch.device | str,
    progress: Progress | None,
    shift: float = 0.0,
) -> SetFinding:
    _check(dataset, epochs=recipe.epochs)
    order = np.random.default_rng(seed).permutation(len(dataset))
    held, kept = np.split(order, [len(order) // HELD])
    loader = _loader(dataset.subset(np.sort(kept)), recipe, seed, device, shift)
    test = _loader(dataset.subset(np.sort(held)), None, seed, device)
    found = train(
        model, loader, test, recipe, seed=seed, evaluate_every=recipe.epochs, stage=recipe.name, progress=progress
    )
    return SetFinding(found.test_accuracy >= bound, found.test_accuracy, found.train_accuracy, bound)


def _loader(
    dataset: Dataset, recipe: Recipe | None, seed: int, device: torch.device | str, shift: float = 0.0
) -> MemoryLoader:
    """Batches with pixels in [0, 1] plus `shift`: augmented and shuffled for a recipe, and in order without."""
    channels = dataset.image_shape[2]
    return MemoryLoader(
        dataset,
        BATCH,
        mean=(-shift,) * channels,
        std=(1.0,) * channels,
        augment=recipe.augment if recipe else None,
        shuffle=recipe is not None,
        seed=seed,
        device=resolve_device(device),
    )


def _check(dataset: Dataset, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    if len(dataset) < HELD:
        raise InputError(f"{dataset.name or 'the data set'} has {len(dataset)} images: give at least {HELD}")
    if len(np.unique(dataset.labels)) < 2:
        raise InputError(f"{dataset.name or 'the data set'} holds images of one class: give at least two classes")


@ordinary
def iterative_filtering(
    dataset: Dataset,
    *,
    rounds: int = 3,
    epochs: int = 5,
    model: str = "resnet18",
    recipe: Recipe | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Filtering:
    """Separates the poisoned images of a set from the clean ones by training that is too short to learn the latter.

    A network with 2 C outputs for C classes is trained from scratch. The images that it does not assign to their class
    c are suspected to be clean, and in the next round have the label C + c, while all others have c. The clean images
    that are left with c look like those with C + c, so they follow them; the poisoned ones have what tells them apart.
    After the last round the images that are assigned to their own class c are taken for poisoned.

    SGD (0.1, falling along a cosine; momentum 0.9, weight decay 0.0005), batches of 128, crops and flips, pixels in
    [0, 1], as in the authors' settings for 2 C classes. Half precision is used where it is faster.

    Args:
        dataset: n training images with labels.
        rounds: trainings.
        epochs: epochs of each training.
        model: name of the network (`ulfast.training.build_model`).
        recipe: another optimizer, schedule or augmentation, for `epochs` epochs.
        seed: of the initialisation, the order and the augmentation.
        device: "auto", "cpu", "cuda" or a torch.device.
        progress: called as ``progress("round k", epochs done, epochs, loss=, images_per_second=)``.

    Raises:
        InputError: as for `simple_2nn`, or the model is unknown.

    Source: Yu et al., Unlearnable Examples Detection via Iterative Filtering, ICANN 2024. There is no program, and only
    the idea, the extra classes and the settings above are public in detail: the numbers of rounds and epochs, the new
    networks, and that every image is judged anew in every round are ours.
    """
    _check(dataset, rounds=rounds, epochs=epochs)
    where, classes = resolve_device(device), dataset.num_classes
    recipe = recipe or Recipe("filtering", epochs, BATCH, "sgd", 0.1, 5e-4, "cosine", Augment(4, True))
    recipe = replace(recipe, epochs=epochs)
    own = replace(dataset, classes=tuple(map(str, range(2 * classes))))
    plain = _loader(own, None, seed, where)
    poisoned, shares = np.ones(len(own), dtype=bool), []
    for k in range(rounds):
        labels = np.where(poisoned, own.labels, own.labels + classes)
        network = build_model(model, num_classes=2 * classes, image_shape=own.image_shape, seed=seed + k)
        loader = _loader(replace(own, labels=labels), recipe, seed + k, where)
        stage = f"round {k + 1}"
        train(network, loader, plain, recipe, seed=seed + k, evaluate_every=epochs, stage=stage, progress=progress)
        poisoned = _assigned(network, plain) == own.labels
        shares.append(float(poisoned.mean()))
    return Filtering(np.flatnonzero(poisoned), tuple(shares))


@torch.no_grad()
def _assigned(network: nn.Module, loader: MemoryLoader) -> np.ndarray:
    """The class (n,) int64 that a network assigns to each image."""
    network.eval()
    half = fast_half(loader.device)
    with torch.autocast(loader.device.type, dtype=half, enabled=half is not None):
        return torch.cat([network(x).argmax(1).cpu() for x, _ in loader]).numpy()
