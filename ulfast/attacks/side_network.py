"""Training a network that an attack needs before its own training, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..training import checkpoint
from .base import Context


def trained(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    epoch_of: Callable[[int], dict[str, float]],
    *,
    name: str,
    identity: dict[str, Any],
    context: Context,
) -> list[dict[str, float]]:
    """Calls `epoch_of` for each epoch from 0; the network and what it returned are kept in `NAME.pt` of the run's
    folder. A resumed run continues after the last epoch that is there.

    Every process of `distributed.joined` trains alike; at the end all have the network of the first.

    Args:
        epoch_of: trains the network for one epoch and returns numbers for the result.
        name: of the file, and of the stage in `context.progress`.
        identity: settings and data that a file to resume from must share.

    Returns:
        What `epoch_of` returned, by epoch.

    Raises:
        InputError: the file is damaged, or of other settings or data.
    """
    file = context.folder / f"{name}.pt" if context.folder is not None else None
    history: list[dict[str, float]] = []
    if file is not None and distributed.agreed(context.resume and file.is_file()):
        history = checkpoint.load(file, network, optimizer, identity)["history"]
    while len(history) < epochs:
        history.append(epoch_of(len(history)))
        if file is not None and distributed.is_main():
            checkpoint.save(file, network, optimizer, {"identity": identity, "history": history})
        if context.progress:
            context.progress(name, len(history), epochs, **history[-1])
    for value in network.state_dict().values():
        value.copy_(distributed.same(value))
    return history


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The image numbers (n,) int64 in the order of an epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).numpy()


def levels(data: Dataset, index: np.ndarray, device: torch.device) -> Tensor:
    """The images at `index`, (b, C, H, W) float32 from 0 to 255, channels_last."""
    x = as_tensor(np.ascontiguousarray(data.images[index])).to(device).permute(0, 3, 1, 2).float()
    return x.contiguous(memory_format=torch.channels_last)
