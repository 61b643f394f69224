"""Checkpoints that hold everything a run needs to resume: written atomically, read without running code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.files import save_tensors

# What torch.load and load_state_dict raise for files cut short, overwritten or of another program.
DAMAGED = (RuntimeError, LookupError, EOFError, ValueError, TypeError, AttributeError, pickle.UnpicklingError)


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`state` is JSON-like: epoch, history, the settings of the run."""
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, content)


def save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """A network's `state_dict` alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"model": weights})


def load_weights(path: Path) -> dict[str, Tensor]:
    """The network's `state_dict` of any checkpoint.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)["model"]
        return weights
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}: make it with `ulfast attack --keep-checkpoints`") from None
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{path} is not a checkpoint of ulfast ({reason}): make it again") from None


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> dict[str, Any]:
    """Loads a checkpoint and returns its state.

    Raises:
        InputError: the file is damaged, or belongs to a run with other settings.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Any] = content["state"]
        different = [key for key, value in identity.items() if state["identity"].get(key) != value]
        if not different:
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f"{path} is not a checkpoint of this run ({reason}): give --overwrite to start again"
        ) from None
    if different:
        raise InputError(
            f"{path} belongs to a run with another {', '.join(different)}: give the same settings, or --overwrite"
        )
    return state
