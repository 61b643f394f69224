"""What networks trained on poisoned images have learned: their checkpoints, refitted or fine-tuned."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.classes import Outline, matched
from ..data.dataset import Dataset
from ..errors import InputError
from ..runtime.devices import fast_half, resolve_device, same_generators
from ..runtime.progress import Progress
from ..training import build_model, checkpoint, refit
from ..training.refit import MakeLoader, Trained
from .result import AttackResult


@dataclass(frozen=True)
class Run:
    """A finished run of `attack` and its networks."""

    folder: Path
    result: AttackResult
    test: Dataset
    device: torch.device
    outline: Outline

    @classmethod
    def open(cls, folder: str | os.PathLike[str], test: Dataset, device: str = "auto") -> Run:
        """Reads a run's folder.

        Args:
            test: clean test images.

        Raises:
            InputError: the run is not finished or lacks its normalisation, or the test images do not fit it.
        """
        folder = Path(folder)
        result = AttackResult.load(folder)
        outline = outline_of(result)
        if "mean" not in result.notes or outline is None:
            raise InputError(f"{folder} was made by an older ulfast: run it again with --overwrite")
        test = matched(outline, test, names=("the run's images", "test images"), part=True)
        return cls(folder, result, test, resolve_device(device), outline)

    def fitting(self, clean: Dataset) -> Dataset:
        """Clean training images with the run's class numbers.

        Raises:
            InputError: the shape or the classes differ.
        """
        return matched(self.outline, clean, names=("the run's images", "clean images"))

    def checkpoints(self) -> list[Path]:
        """The networks of all epochs, the random initialisation first.

        Raises:
            InputError: the run did not keep them.
        """
        found = sorted((self.folder / "checkpoints" / "attack").glob("epoch-*.pt"))
        if not found:
            raise InputError(f"{self.folder} kept no epochs: run `ulfast attack` with --keep-checkpoints")
        return found

    def network(self, path: Path) -> nn.Module:
        """The network with the weights of a checkpoint."""
        return _network(self.result, self.outline, path, checkpoint.load_weights(path)).to(self.device)

    @property
    def half(self) -> torch.dtype | None:
        """The half-precision format that the run used for training and evaluation, if this device has it too."""
        return fast_half(self.device) if self.result.config.get("half") else None

    def trained(self, path: Path, seed: int = 0, progress: Progress | None = None) -> Trained:
        """The network of a checkpoint in the form that a refit takes, with batches as in the run."""
        notes, half = self.result.notes, self.half
        make = MakeLoader(notes["mean"], notes["std"], half or torch.float32, self.result.seed, self.device)
        return Trained(self.network(path), make, make(self.test), half, seed, progress)


def outline_of(result: AttackResult) -> Outline | None:
    """Shape and classes of a run's images; None where an older ulfast made it."""
    data = result.config["data"]
    if "class_names" not in data:
        return None
    return Outline(tuple(data["image_shape"]), tuple(data["class_names"]))


def trained_network(
    folder: Path, result: AttackResult, stage: str = "attack", device: torch.device | str = "cpu"
) -> tuple[nn.Module, MakeLoader, torch.dtype | None] | None:
    """The network that a training of a finished run ended with, what makes its batches, and the half-precision format
    of its evaluation. None where the run does not have it: no checkpoint, one of an older ulfast, or a network that was
    refitted after its last checkpoint.

    Args:
        stage: "attack", or the baselines "clean" and "poisoned".

    Raises:
        InputError: a damaged checkpoint.
    """
    outline, where = outline_of(result), resolve_device(device)
    last = folder / "checkpoints" / stage / "last.pt"
    refitted = any(isinstance(note, dict) and "refit" in note for note in result.notes.values())
    if outline is None or not last.is_file() or (refitted and stage == "attack"):
        return None
    weights, normalisation = checkpoint.load_network(last)
    if normalisation is None and stage == "attack" and "mean" in result.notes:
        normalisation = result.notes["mean"], result.notes["std"]
    if normalisation is None:
        return None
    best = last.with_name("best.pt")  # of the epoch that was chosen
    if best.is_file():
        last, weights = best, checkpoint.load_weights(best)
    half = fast_half(where) if result.config.get("half") else None
    make = MakeLoader(*normalisation, half or torch.float32, result.seed, where)
    return _network(result, outline, last, weights).to(where).eval(), make, half


def _network(result: AttackResult, outline: Outline, path: Path, weights: dict[str, Tensor]) -> nn.Module:
    """The run's network with the weights of a checkpoint."""
    model = build_model(result.model, num_classes=outline.num_classes, image_shape=outline.image_shape)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit the network {result.model} ({str(error).splitlines()[0]})") from None
    return model


@same_generators()
def dfr(
    run: Run, clean: Dataset, *, augment: bool = True, seed: int = 0, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Deep feature reweighting of every epoch: test accuracy before and after refitting the last layer.

    Args:
        clean: the clean training images for the refit of the last layer (5,000 in the paper).
        augment: refit on crops and flips, from the trained layer, as published; see `refit.dfr`.
        seed: seed of the order, the crops and the flips.

    Returns:
        Rows of `epoch` (0 is the random initialisation), `before` and `after`, from 0 to 1.

    Source: Sandoval-Segura et al., NeurIPS 2023, section 4.2.
    """
    rows = []
    paths = run.checkpoints()
    change = refit.dfr(run.fitting(clean), augment=augment)
    for done, path in enumerate(paths, 1):
        note = change(run.trained(path, seed))
        before, after = note["test_accuracy_before"], note["test_accuracy"]
        rows.append({"epoch": int(path.stem.split("-")[1]), "before": before, "after": after})
        if progress:
            progress("dfr", done, len(paths), accuracy=after)
    return rows


@same_generators()
def finetune_run(
    run: Run,
    clean: Dataset,
    *,
    epochs: int = 10,
    lr: float = 0.01,
    last_layer: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the run's last network on clean images.

    Args:
        clean: clean training images.
        epochs, lr: number of epochs and largest learning rate of SGD.
        last_layer: train only the last linear layer (linear probing), from zero.

    Returns:
        `test_accuracy_before`, `test_accuracy`, `clean_images`, and `history` for all layers.
    """
    clean = run.fitting(clean)
    trained = run.trained(run.folder / "checkpoints" / "attack" / "last.pt", seed, progress)
    change = refit.linear_probe(clean, lr=lr, epochs=epochs) if last_layer else refit.finetune(clean, epochs, lr)
    return change(trained)
