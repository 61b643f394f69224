"""Weights that a training starts from instead of random ones: of a run, a file, or timm's pretrained networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.made import expand
from ..runtime.reading import checksum, load_tensors, reading, regular
from .models import timm_network
from .refit import head_of

TIMM = "timm:"
# What wraps put before the names of weights, and where other people's checkpoints keep them.
WRAPS, KEYS = ("module.", "_orig_mod."), ("model", "state_dict_ema", "state_dict")
HINT = "give a run of `ulfast attack`, its checkpoint, or a state_dict as .pt or .safetensors"


class Start:
    """The weights, and what is said of them.

    Args:
        source: a folder that `ulfast attack` wrote, a checkpoint of it, a `state_dict` (.pt, .pth, .safetensors), or
            `timm:NAME` for pretrained weights that timm has or downloads.
        image_shape: (H, W, C) of the images.

    Raises:
        InputError: there are none, or they cannot be read.
    """

    def __init__(self, source: str | os.PathLike[str], image_shape: tuple[int, int, int]) -> None:
        self.source = os.fspath(source)
        timm = self.source.startswith(TIMM)
        self.weights = _of_timm(self.source, image_shape) if timm else _of_file(expand(source))
        self.checksum = checksum(self.weights)

    def into(self, network: nn.Module) -> bool:
        """Copies them into a network; one on the meta device is only compared. The last linear layer keeps its own
        where it has another number of outputs; whether it took theirs.

        Raises:
            InputError: they are of another network.
        """
        own = network.state_dict()
        head = head_of(network)
        name = next(name for name, module in network.named_modules() if module is head)
        ours = {f"{name}.{key}" for key in head.state_dict()}
        fresh = any(key in self.weights and self.weights[key].shape != own[key].shape for key in ours)
        taken = {key: value for key, value in self.weights.items() if not (fresh and key in ours)}
        wrong = sorted(
            {key for key in taken if key not in own or own[key].shape != taken[key].shape}
            | {key for key in own if key not in taken and not (fresh and key in ours)}
        )
        if wrong:
            raise InputError(
                f"the weights of {self.source} are of another network ({len(wrong)} of {len(own)} tensors do not fit,"
                f" among them {wrong[0]}): choose its --model"
            )
        if not next(network.parameters()).is_meta:
            network.load_state_dict(taken, strict=False)
        return not fresh


def _of_file(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path = path / "checkpoints" / "attack" / "last.pt"
    if not path.exists():
        raise InputError(f"there is no {path} to start from: {HINT}")
    if path.suffix == ".safetensors":
        with reading(path, HINT, "as weights"):
            return load_file(regular(path))
    content: Any = load_tensors(path, HINT, "as weights")
    for key in KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {
        _plain(key): value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if not weights:
        raise InputError(f"{path} holds no weights: {HINT}")
    return weights


def _plain(name: str) -> str:
    for wrap in WRAPS:
        name = name.removeprefix(wrap)
    return name


def _of_timm(source: str, image_shape: tuple[int, int, int]) -> dict[str, Tensor]:
    with reading(source, "see timm.list_pretrained(), and timm's cache where there is no network", "as weights"):
        with torch.random.fork_rng(devices=[]):
            network = timm_network(source.removeprefix(TIMM), image_shape, pretrained=True)
        return dict(network.state_dict())
