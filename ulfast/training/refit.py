"""Improving a trained network with a few clean images: fine-tuning, and refitting its last linear layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..data.loaders.augment import Augment
from ..data.loaders.memory import MemoryLoader
from ..data.loaders.removal import Removal
from ..errors import InputError
from ..runtime.progress import Progress
from .loop import evaluate, train
from .recipes import Recipe

EVALUATION_BATCH = 500
EVALUATIONS, DFR_BATCH = 20, 1024  # evaluations per LBFGS step, and images per batch


@dataclass(frozen=True)
class MakeLoader:
    """Makes batches of other images with the normalisation and number format of the network's training.

    Attributes:
        mean, std: of each channel, in units of [0, 1].
        dtype, seed, device: as for `MemoryLoader`.
        removal: what is removed from these images.
    """

    mean: Sequence[float]
    std: Sequence[float]
    dtype: torch.dtype
    seed: int
    device: torch.device
    removal: Removal = field(default_factory=Removal)

    def __call__(
        self,
        dataset: Dataset,
        batch_size: int = EVALUATION_BATCH,
        *,
        augment: Augment | None = None,
        shuffle: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> MemoryLoader:
        return MemoryLoader(dataset, batch_size, augment=augment, shuffle=shuffle, part=part, **vars(self))


@dataclass(frozen=True)
class Trained:
    """A trained network, and the other inputs of a refit."""

    model: nn.Module
    make_loader: MakeLoader
    test_loader: MemoryLoader
    half: torch.dtype | None
    seed: int
    progress: Progress | None = None


# Changes the network in place and returns facts for the result: `refit` (its name), `test_accuracy_before`,
# `test_accuracy` and `clean_images` at least.
Refit = Callable[[Trained], dict[str, Any]]


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer.

    Raises:
        InputError: the network has none.
    """
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise InputError(f"{type(model).__name__} has no linear layer to refit: choose another model")
    return linear[-1]


@torch.no_grad()
def features(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], half: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """The inputs of the last linear layer, in the network's current mode: (n, f) float32 and labels (n,) int64.

    Args:
        batches: x (b, C, H, W) normalised, y (b,) int64.
    """
    caught: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float()))
    labels = []
    try:
        for x, y in batches:
            with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
                model(x)
            labels.append(y)
    finally:
        handle.remove()
    return torch.cat(caught), torch.cat(labels)


def reweight(head: nn.Linear, batches: Iterable[tuple[Tensor, Tensor]], *, lr: float = 0.5) -> nn.Linear:
    """Fits a linear layer to features by LBFGS, in place: one step of 20 evaluations per batch.

    Args:
        head: (c, f) weights and a bias, the starting point.
        batches: (b, f) float32 and labels (b,) int64.
        lr: learning rate of LBFGS.

    Source: deep feature reweighting as in Sandoval-Segura et al., NeurIPS 2023, section 4.2.
    """
    optimizer = torch.optim.LBFGS(head.parameters(), lr=lr, max_iter=EVALUATIONS)
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(head(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return head


def shuffled(x: Tensor, y: Tensor, passes: int, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of features (n, f) and labels (n,), in a new order each pass."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        order = torch.randperm(len(y), generator=generator).to(x.device)
        for index in order.split(batch_size):
            yield x[index], y[index]


@contextlib.contextmanager
def batch_statistics(model: nn.Module, updates: int) -> Iterator[None]:
    """Evaluation mode, but with batch normalisation in training mode: it uses the mean and variance of each batch, and
    its running statistics move towards them as far as in `updates` passes of that batch. (Dropout stays off.)
    """
    model.eval()
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in layers]
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.train()
        if momentum is not None:
            layer.momentum = 1 - (1 - momentum) ** updates
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()


def plain(trained: Trained, clean: Dataset) -> tuple[Tensor, Tensor]:
    """Features and labels of the unchanged images, in evaluation mode."""
    trained.model.eval()
    return features(trained.model, trained.make_loader(clean), trained.half)


def augmented(trained: Trained, clean: Dataset, passes: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of features and labels of crops and flips redrawn in each pass, with batch normalisation in training
    mode.
    """
    make = replace(trained.make_loader, seed=trained.seed)
    loader = make(clean, batch_size, augment=Augment(crop_padding=4, flip=True), shuffle=True)
    for epoch in range(passes):
        loader.set_epoch(epoch)
        for batch in loader:
            with batch_statistics(trained.model, EVALUATIONS):
                found = features(trained.model, [batch], trained.half)
            yield found


def probe(
    x: Tensor, y: Tensor, classes: int, *, lr: float = 0.1, epochs: int = 20, batch_size: int = 128, seed: int = 0
) -> nn.Linear:
    """A linear layer fitted to features by SGD (momentum 0.9, cosine to zero), from zero.

    Args:
        x: (n, f) float32. y: (n,) int64.
        lr, epochs, batch_size: settings of SGD.
    """
    head = _linear(x.shape[1], classes, x.device)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    steps = math.ceil(len(y) / batch_size)
    for i, (features, labels) in enumerate(shuffled(x, y, epochs, batch_size, seed), 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
        if i % steps == 0:
            schedule.step()
    return head


def _linear(inputs: int, classes: int, device: torch.device, like: nn.Linear | None = None) -> nn.Linear:
    """A float32 layer of zeros, or with the weights of another layer."""
    head = nn.Linear(inputs, classes, device=device)
    with torch.no_grad():
        head.weight.zero_() if like is None else head.weight.copy_(like.weight)
        head.bias.zero_() if like is None or like.bias is None else head.bias.copy_(like.bias)
    return head


def linear_probe(clean: Dataset, *, lr: float = 0.1, epochs: int = 20) -> Refit:
    """Fits the last layer from zero with `probe`, on features of the unchanged clean images."""

    def fit(trained: Trained) -> nn.Linear:
        x, y = plain(trained, clean)
        return probe(x, y, clean.num_classes, lr=lr, epochs=epochs, seed=trained.seed)

    return _replace_head("linear-probe", clean, fit)


def dfr(
    clean: Dataset, *, augment: bool = True, lr: float = 0.5, passes: int = 15, batch_size: int = DFR_BATCH
) -> Refit:
    """Deep feature reweighting: fits the last layer by LBFGS on features of clean images.

    Args:
        augment: the published protocol. The layer starts as trained; crops and flips are redrawn every epoch; batch
            normalisation is in training mode, so its running statistics become those of the clean images. False: the
            layer starts from zero, on the features of the unchanged images in evaluation mode, and nothing else
            changes.
        lr, passes, batch_size: LBFGS takes one step of this rate per batch, in this many passes.

    Source: Sandoval-Segura et al., NeurIPS 2023, section 4.2, and their code.
    """

    def fit(trained: Trained) -> nn.Linear:
        old, classes = head_of(trained.model), clean.num_classes
        if augment:
            head = _linear(old.in_features, classes, old.weight.device, like=old)
            return reweight(head, augmented(trained, clean, passes, batch_size), lr=lr)
        x, y = plain(trained, clean)
        head = _linear(old.in_features, classes, old.weight.device)
        return reweight(head, shuffled(x, y, passes, batch_size, trained.seed), lr=lr)

    return _replace_head("dfr", clean, fit)


def _replace_head(name: str, clean: Dataset, fit: Callable[[Trained], nn.Linear]) -> Refit:
    """A refit that replaces the last layer by the one that `fit` returns."""

    def refit(trained: Trained) -> dict[str, Any]:
        before = evaluate(trained.model, trained.test_loader, trained.half)[1]
        new, head = fit(trained), head_of(trained.model)
        with torch.no_grad():
            head.weight.copy_(new.weight)
            if head.bias is None:
                head.bias = nn.Parameter(torch.zeros_like(new.bias))
            head.bias.copy_(new.bias)
        after = evaluate(trained.model, trained.test_loader, trained.half)[1]
        if trained.progress:
            trained.progress(name, 1, 1, accuracy=after)
        return {"refit": name, "clean_images": len(clean), "test_accuracy_before": before, "test_accuracy": after}

    return refit


def finetune(clean: Dataset, epochs: int, lr: float) -> Refit:
    """Trains all layers by SGD (momentum 0.9, weight decay 5e-4, rate falling to zero) on clean images, crop and
    flip.
    """
    batch_size = 32 if len(clean) < 2000 else 128  # otherwise a few hundred images would give only a handful of steps

    def refit(trained: Trained) -> dict[str, Any]:
        before = evaluate(trained.model, trained.test_loader, trained.half)[1]
        loader = trained.make_loader(clean, min(batch_size, len(clean)), augment=Augment(), shuffle=True)
        recipe = Recipe("finetune", epochs, loader.batch_size, "sgd", lr, 5e-4, "one-cycle", half=bool(trained.half))
        result = train(
            trained.model,
            loader,
            trained.test_loader,
            recipe,
            seed=trained.seed,
            stage="finetune",
            progress=trained.progress,
        )
        return {
            "refit": "finetune",
            "clean_images": len(clean),
            "test_accuracy_before": before,
            "test_accuracy": result.test_accuracy,
            "history": result.history,
        }

    return refit
