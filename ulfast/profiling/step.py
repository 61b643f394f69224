"""The cost of the projection in a real training step."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from .. import ops
from ..runtime.devices import fast_half
from ..training import build_model
from .cases import orthonormal
from .measure import timed

STEPS = 5  # training steps between two GPU events: a single one would start with an empty queue


def step_share(
    model: str | torch.nn.Module,
    batch: int = 128,
    size: int = 32,
    k: int = 9,
    repeats: int = 9,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Times of `ingest` with and without the projection and of forward, backward and update, on random images.

    Args:
        model: a name (see `build_model`; 10 classes), or an existing network.
        batch, size: number of images and their side.
        k: number of basis rows.

    Returns:
        `seconds` of `ingest`, `ingest without projection`, `training step`; `share` of the projection, and
        `ingest_share` of the whole pass over the pixels, in the total.
    """
    where = torch.device(device)
    named = isinstance(model, str)
    network = build_model(model, num_classes=10, image_shape=(size, size, 3)) if isinstance(model, str) else model
    network = network.to(where, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=where)
    labels = torch.randint(0, 10, (batch,), device=where)
    basis = orthonormal(k, size * size * 3, where)
    shift = torch.randint(-4, 5, (batch, 2), dtype=torch.int32, device=where)
    flip = torch.rand(batch, device=where) < 0.5
    half = fast_half(where)
    dtype = half or torch.float32
    mean = torch.full((3,), 0.5, device=where)

    def pixels(rows: torch.Tensor | None) -> torch.Tensor:
        return ops.ingest(images, rows, mean, mean, dtype=dtype, shift=shift, flip=flip)

    x = pixels(basis)

    def step() -> None:
        with torch.autocast(where.type, dtype=half, enabled=half is not None):
            loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def train() -> None:
        for _ in range(STEPS if where.type == "cuda" else 1):
            step()

    if where.type == "cuda":
        train.times = 1 / STEPS  # type: ignore[attr-defined]
    runs = {"ingest": lambda: pixels(basis), "ingest without projection": lambda: pixels(None), "training step": train}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            spent = timed(run, where)
            if round_:
                times[name].append(spent)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    total = seconds["ingest"] + seconds["training step"]
    extra = max(0.0, seconds["ingest"] - seconds["ingest without projection"])
    return {
        "model": model if named else type(model).__name__,
        "batch": batch,
        "size": size,
        "k": k,
        "seconds": seconds,
        "share": extra / total,
        "ingest_share": seconds["ingest"] / total,
    }
