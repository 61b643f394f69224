"""Checkpoints with everything that a run needs to resume, written atomically and read without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.files import save_tensors
from ..runtime.reading import load_tensors, reading


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Saves a checkpoint. `state` is JSON-like: the settings of the run, its history, mean and std of the normalised
    batches.
    """
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, content)


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Saves only a network's `state_dict`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"model": weights})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The network's `state_dict` of any checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    return load_network(path)[0]


def load_network(path: Path) -> tuple[dict[str, Tensor], tuple[list[float], list[float]] | None]:
    """The network's `state_dict`, and mean and std of each channel by which its images were normalised (None where the
    file does not say).

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}: make it with `ulfast attack --keep-checkpoints`")
    content = load_tensors(path, "make it again")
    if not isinstance(content.get("model"), dict):
        raise InputError(f"{path} is not a checkpoint of ulfast (it has no model): make it again")
    state = content.get("state")
    found = state.get("normalisation") if isinstance(state, dict) else None
    return content["model"], None if found is None else (found[0], found[1])


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint and returns its state.

    Raises:
        InputError: the file is damaged or belongs to a run with other settings.
    """
    content = load_tensors(path, again := "say --overwrite to start anew", kind := "as a checkpoint of this run")
    with reading(path, again, kind):
        state: dict[str, Any] = content["state"]
        different = [key for key, value in identity.items() if state["identity"].get(key) != value]
        if not different:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
    if different:
        raise InputError(
            f"{path} belongs to a run with another {', '.join(different)}: give the same settings, or --overwrite"
        )
    return state
