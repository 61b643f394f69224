"""What can be done to a trained network with a few clean images: fine-tuning, and refitting its last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class MakeLoader:
    """Makes batches of other images, normalised and in the number format as the network was trained.

    Attributes:
        mean, std: of each channel, in units of [0, 1].
        dtype, seed, device: as `MemoryLoader`.
        removal: what these images lose.
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
    """A network after training, and what a refit needs beside it."""

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
def features(model: nn.Module, loader: MemoryLoader, half: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """What goes into the last linear layer, in evaluation mode: (n, f) float32 and labels (n,) int64."""
    caught: list[Tensor] = []
    handle = head_of(model).register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].float()))
    model.eval()
    labels = []
    try:
        for x, y in loader:
            with torch.autocast(loader.device.type, dtype=half, enabled=half is not None):
                model(x)
            labels.append(y)
    finally:
        handle.remove()
    return torch.cat(caught), torch.cat(labels)


def reweight(
    x: Tensor, y: Tensor, classes: int, *, lr: float = 0.5, passes: int = 15, batch_size: int = 1024, seed: int = 0
) -> nn.Linear:
    """A linear layer fitted to features by LBFGS, from zero.

    Args:
        x: (n, f) float32. y: (n,) int64.
        lr, passes, batch_size: LBFGS steps (of 20 evaluations) of that rate, one per batch, that many times through.

    Source: deep feature reweighting as in Sandoval-Segura et al., NeurIPS 2023, section 4.2.
    """
    head = nn.Linear(x.shape[1], classes, device=x.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(passes):
        order = torch.randperm(len(y), generator=generator).to(x.device)
        for index in order.split(batch_size):

            def closure(index: Tensor = index) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(head(x[index]), y[index])
                loss.backward()
                return loss

            optimizer.step(closure)
    return head


def probe(
    x: Tensor, y: Tensor, classes: int, *, lr: float = 0.1, epochs: int = 20, batch_size: int = 128, seed: int = 0
) -> nn.Linear:
    """A linear layer fitted to features by SGD (momentum 0.9, cosine to zero), from zero. Arguments as `reweight`."""
    head = nn.Linear(x.shape[1], classes, device=x.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator).to(x.device)
        for index in order.split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(x[index]), y[index]).backward()
            optimizer.step()
        schedule.step()
    return head


def replace_head(clean: Dataset, fit: Callable[..., nn.Linear], name: str, **options: Any) -> Refit:
    """A refit of the last layer on clean images by `reweight` or `probe`."""

    def refit(trained: Trained) -> dict[str, Any]:
        before = evaluate(trained.model, trained.test_loader, trained.half)[1]
        x, y = features(trained.model, trained.make_loader(clean), trained.half)
        new = fit(x, y, clean.num_classes, seed=trained.seed, **options)
        head = head_of(trained.model)
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
    """All layers by SGD (momentum 0.9, weight decay 5e-4) on clean images, crop and flip, rate falling to zero."""
    batch_size = 32 if len(clean) < 2000 else 128  # a few hundred images would otherwise be a handful of steps

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
