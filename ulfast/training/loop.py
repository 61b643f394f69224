"""The training loop: one kernel call per batch for the data, and no wait for the device within an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import distributed
from ..data.loaders.memory import MemoryLoader
from ..errors import InputError
from ..runtime import devices
from ..runtime.progress import Progress
from . import checkpoint, parallel
from .mixing import BatchHook, Step
from .recipes import Recipe
from .update import Update, convolutions, make_optimizer, make_update

REPORT_EVERY = 0.2  # seconds between two progress reports


@dataclass(frozen=True)
class TrainResult:
    """The result of a training. Accuracies are shares from 0 to 1, for the chosen epoch; `refitted` is the test
    accuracy after a refit, if any; `evaluation` is the seconds that this process spent on evaluating test images.

    `history` has one row per epoch: epoch, lr, train_loss, train_accuracy (on the augmented batches), test_loss and
    test_accuracy (if the epoch had an evaluation), seconds, images_per_second, and select_accuracy if an epoch was to
    be chosen.
    """

    history: list[dict[str, float]]
    seconds: float
    images_per_second: float
    refitted: float | None = None
    evaluation: float = 0.0

    @property
    def chosen(self) -> dict[str, float]:
        """The row of the epoch whose weights the model has: the last one, or the best on the selection images."""
        return best_epoch(self.history) if "select_accuracy" in self.history[-1] else self.history[-1]

    @property
    def train_accuracy(self) -> float:
        return self.chosen["train_accuracy"]

    @property
    def test_accuracy(self) -> float:
        return self.chosen["test_accuracy"] if self.refitted is None else self.refitted


def best_epoch(history: Sequence[dict[str, float]]) -> dict[str, float]:
    """The first row with the highest accuracy on the selection images."""
    return max(history, key=lambda row: row["select_accuracy"])


def train(
    model: nn.Module,
    loader: MemoryLoader,
    test_loader: MemoryLoader,
    recipe: Recipe,
    *,
    hooks: Sequence[BatchHook] = (),
    select: MemoryLoader | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    keep_checkpoints: bool = False,
    evaluate_every: int = 1,
    stage: str = "train",
    progress: Progress | None = None,
) -> TrainResult:
    """Train `model` in place.

    Args:
        loader, test_loader: batches on the device of training; if they yield parts of batches (`part`), the processes
            of `distributed.joined` train together, and the first writes the files.
        recipe: optimizer, schedule, epochs.
        hooks: applied to every training batch, in order.
        select: batches by whose accuracy the best epoch is chosen; `model` ends with that epoch's weights.
        normalisation: mean and std of the normalisation after the first hook (default: the loader's).
        seed: seed of everything random in the loop; each epoch starts from (seed, epoch), so that a resumed run equals
            an uninterrupted one.
        folder: where `last.pt` (and with `keep_checkpoints` an `epoch-NNN.pt`, with the random initialisation as number
            0) is written after every epoch; None writes nothing.
        resume: continue from `last.pt` if there is one.
        identity: settings that a checkpoint must match.
        evaluate_every: epochs between two evaluations on the test images; the last epoch always has one.
        progress: called as ``progress(stage, epochs done, epochs, loss=, accuracy=, images_per_second=)``.

    Raises:
        InputError: the loss is no longer finite, or the checkpoint belongs to another run.
    """
    device = loader.device
    model.to(device)
    half = devices.fast_half(device) if recipe.half else None
    optimizer = make_optimizer(model, recipe, device)
    settings = {"recipe": asdict(recipe), "seed": seed, **(identity or {})}
    mean, std = normalisation or (loader.mean, loader.std)
    mean, std = (torch.as_tensor(v, dtype=torch.float32, device=device) for v in (mean, std))
    parts, main = loader.part[1], distributed.is_main()
    if parts > 1 and loader.batch_images(len(loader) - 1) < parts:
        raise InputError(f"batches of {loader.batch_images(len(loader) - 1)} images for {parts} processes: give fewer")
    history: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    evaluation = 0.0
    if folder and distributed.agreed(resume and (folder / "last.pt").is_file()):
        history = checkpoint.load(folder / "last.pt", model, optimizer, settings)["history"]
    elif folder and keep_checkpoints and main:
        checkpoint.save(folder / "epoch-000.pt", model, optimizer, {"identity": settings, "history": []})
    if history and select is not None and folder:
        best = checkpoint.load_weights(folder / "best.pt")
    with parallel.spread(model, device, parts) as network:
        update = make_update(network, optimizer, recipe, half, device, parts)
        for epoch in range(len(history), recipe.epochs):
            # Parts of a batch must be augmented differently.
            torch.manual_seed((seed * 1_000_003 + epoch + (loader.part[0] << 48)) % (1 << 63))
            start = time.perf_counter()
            step = Step(model, epoch, mean, std, half)
            with convolutions(recipe, device):
                row = _epoch(network, loader, recipe, update, hooks, step, stage, progress)
            if parts > 1:
                parallel.same_buffers(model)
            devices.synchronize(device)
            seconds = time.perf_counter() - start
            if not math.isfinite(row["train_loss"]):
                raise InputError(
                    f"the training loss is {row['train_loss']} in epoch {epoch + 1}: the data or the learning rate"
                    f" {recipe.lr:g} of recipe {recipe.name} do not fit this network; try another recipe"
                )
            if (epoch + 1) % evaluate_every == 0 or epoch + 1 == recipe.epochs or select is not None:
                begun = time.perf_counter()
                row["test_loss"], row["test_accuracy"] = evaluate(model, test_loader, half)
                evaluation += time.perf_counter() - begun
            row["seconds"] = seconds
            row["images_per_second"] = loader.images_per_epoch / seconds
            if select is not None:
                row["select_accuracy"] = evaluate(model, select, half)[1]
            history.append(row)
            if select is not None and best_epoch(history) is row:
                best = {name: value.clone() for name, value in model.state_dict().items()}
                if folder and main:
                    checkpoint.save_weights(folder / "best.pt", best)
            if folder and main:
                state = {"identity": settings, "history": history, "normalisation": [mean.tolist(), std.tolist()]}
                if keep_checkpoints:  # before the file that marks the epoch as done
                    checkpoint.save(folder / f"epoch-{epoch + 1:03d}.pt", model, optimizer, state)
                checkpoint.save(folder / "last.pt", model, optimizer, state)
            if progress:
                seen = {"accuracy": row["test_accuracy"]} if "test_accuracy" in row else {}
                progress(
                    stage,
                    epoch + 1,
                    recipe.epochs,
                    loss=row["train_loss"],
                    **seen,
                    images_per_second=row["images_per_second"],
                )
    if best:
        model.load_state_dict(best)
    seconds = sum(row["seconds"] for row in history)
    speed = loader.images_per_epoch * len(history) / max(seconds, 1e-9)
    return TrainResult(history, seconds, speed, evaluation=evaluation)


def _epoch(
    model: nn.Module,
    loader: MemoryLoader,
    recipe: Recipe,
    update: Update,
    hooks: Sequence[BatchHook],
    step: Step,
    stage: str,
    progress: Progress | None,
) -> dict[str, float]:
    model.train()
    epoch = step.epoch
    loader.set_epoch(epoch)
    update.begin()
    seen, lr, steps, parts = 0, 0.0, len(loader), loader.part[1]
    begun = said = time.perf_counter()
    for i, (x, y) in enumerate(loader):
        labels = y
        for hook in hooks:
            x, y = hook(x, y, step)
        lr = recipe.rate(epoch * steps + i, steps)
        update.set_rate(lr)
        if parts == 1:
            update(x, y, labels, None, len(labels))
        else:  # its mean over the processes is that of the whole batch
            whole = loader.batch_images(i)
            update(x, y, labels, len(labels) * parts / whole, whole / parts)
        seen += len(labels)
        now = time.perf_counter()
        if progress and now - said > REPORT_EVERY:
            said = now
            progress(stage, epoch + (i + 1) / steps, recipe.epochs, images_per_second=parts * seen / (now - begun))
    loss_sum, correct = update.loss, update.correct
    if parts > 1:
        total = distributed.sum_(torch.stack([loss_sum, correct]).double())
        loss_sum, correct, seen = total[0], total[1], loader.images_per_epoch
    return {
        "epoch": epoch + 1,
        "lr": lr,
        "train_loss": float(loss_sum) / seen,
        "train_accuracy": float(correct) / seen,
    }


@torch.no_grad()
def evaluate(model: nn.Module, loader: MemoryLoader, half: torch.dtype | None = None) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) over a loader, in evaluation mode; over all parts if it yields parts."""
    model.eval()
    loss = torch.zeros((), device=loader.device)
    correct = torch.zeros((), device=loader.device)
    for x, y in loader:
        if not len(y):
            continue
        with torch.autocast(loader.device.type, dtype=half, enabled=half is not None):
            out = model(x)
        loss += nn.functional.cross_entropy(out.float(), y, reduction="sum")
        correct += (out.argmax(1) == y).sum()
    if loader.part[1] > 1:
        loss, correct = distributed.sum_(torch.stack([loss, correct]).double())
    return float(loss) / loader.images_per_epoch, float(correct) / loader.images_per_epoch
