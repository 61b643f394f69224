"""Training a network that an attack needs before its own training, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import distributed
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
