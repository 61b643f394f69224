"""`ar`: autoregressive perturbations, fresh for every image, with a class's own linear recurrence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..errors import InputError
from ..parameters import parameter
from ..runtime.files import write_json
from .base import Perturb, Poison, Workplace

BATCH = 512  # candidate windows tried at a time
SIGNALS = 3  # signals a candidate must keep finite and small
LARGEST_NORM = 50.0  # of a three-channel 32 x 32 signal
# Filter response of an earlier process to the new one's signals, scaled to norm 1 as they will be used, below which the
# two are too alike: at 32 px.
RESPONSE, RESPONSE_MANY = 10.0, 3.0
MANY_CLASSES = 100
GIVE_UP = 2_000  # batches
SCREEN = 32  # side of the signals that candidates are tried on first, and told apart on


@dataclass(frozen=True)
class AR(Poison):
    """Sample-wise noise that no direction in pixel space carries: every value is the weighted sum of the eight values
    before it in its 3 x 3 window, with weights of the image's class and channel.
    """

    summary = "autoregressive noise, a recurrence a class"
    source = "Sandoval-Segura et al., Autoregressive Perturbations for Data Poisoning, NeurIPS 2022"
    aliases = ("autoregressive",)

    eps: float | None = parameter(
        None, "size of each image's noise (default 1 for L2 at 32 px, 8/255 for linf)", at_least=0
    )
    norm: str = parameter("l2", "norm that eps is measured in", choices=("l2", "linf"))
    coefficients: str | None = parameter(None, "file of coefficient windows (default: found by the seed)")

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        eps = self.eps
        if eps is None:
            # As published: 1 for CIFAR and SVHN, 3 for STL-10; the same noise a pixel at every size.
            eps = math.sqrt(math.prod(dataset.image_shape) / 3072) if self.norm == "l2" else 8 / 255
        return {"eps": eps, "norm": self.norm, "coefficients": self.coefficients}

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        values = self.resolved(dataset)
        height, width, channels = dataset.image_shape
        if self.coefficients is None:
            windows = find_coefficients(dataset.num_classes, seed, size=(height, width), channels=channels)
        else:
            windows = load_coefficients(self.coefficients, dataset.num_classes, channels)

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            return ops.perturb_ar(
                torch.from_numpy(labels),
                windows,
                seed=seed,
                first=first,
                size=(height, width),
                norm=values["eps"],
                kind=self.norm,
                images=as_tensor(images),
            ).numpy()

        return perturb


def filters(windows: Tensor) -> Tensor:
    """(c, channels, 3, 3) windows as filters that give zero on their own noise: -1 in the bottom-right corner."""
    out = windows.clone()
    out[..., 2, 2] = -1
    return out


def response(signals: Tensor, windows: Tensor) -> Tensor:
    """Sum of the positive filter responses, (n, m): signals (n, channels, H, W), windows (m, channels, 3, 3)."""
    n, channels, height, width = signals.shape
    # Every window on every signal, channel by channel: grouped by channel, m filters in each group.
    kernels = filters(windows).transpose(0, 1).reshape(channels * len(windows), 1, 3, 3)
    out = torch.nn.functional.conv2d(signals, kernels, groups=channels)
    return out.relu_().view(n, channels, len(windows), height - 2, width - 2).sum((1, 3, 4))


def find_coefficients(classes: int, seed: int = 0, size: tuple[int, int] = (32, 32), channels: int = 3) -> Tensor:
    """Windows of stable, mutually distinguishable processes, (classes, channels, 3, 3) float32, by rejection.

    Draws 3 x 3 normal windows with a zero corner, divided by their sum, and keeps those whose signals stay finite and
    no larger than white noise of about unit size; a process of `channels` windows is kept if the filter of every
    earlier process responds to its signals.

    Raises:
        InputError: no such set was found, which happens for very many classes of very small images.
    """
    return _find(classes, seed, size, channels).clone()


@lru_cache(maxsize=8)
def _find(classes: int, seed: int, size: tuple[int, int], channels: int) -> Tensor:
    kept = torch.empty(0, channels, 3, 3)
    # A sum over pixels of a signal of norm 1 grows with the root of their number.
    enough = RESPONSE_MANY if classes >= MANY_CLASSES else RESPONSE
    screen = (min(size[0], SCREEN), min(size[1], SCREEN))
    enough *= math.sqrt(screen[0] * screen[1] * channels / 3072)
    pool = torch.empty(0, 3, 3)
    drawn = 0
    while len(kept) < classes:
        while len(pool) < channels:
            if drawn == GIVE_UP:
                raise InputError(
                    f"ar: only {len(kept)} of {classes} processes were found for images of {size[1]} x {size[0]}:"
                    " use larger images or fewer classes"
                )
            pool = torch.cat([pool, _stable(seed, drawn, size, channels)])
            drawn += 1
        process, pool = pool[None, :channels], pool[channels:]
        signals = _signals(process, screen, seed=drawn * 7919 + len(pool))
        signals /= signals.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        if not len(kept) or bool((response(signals, kept).amin(0) >= enough).all()):
            kept = torch.cat([kept, process])
    return kept


def _signals(windows: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """`SIGNALS` unscaled signals of each process, (m * SIGNALS, channels, H, W)."""
    labels = torch.arange(len(windows)).repeat_interleave(SIGNALS)
    noise = ops.perturb_ar(labels, windows, seed=seed, first=1 << 40, size=size, kind="none")
    return noise.permute(0, 3, 1, 2).contiguous()


def _stable(seed: int, batch: int, size: tuple[int, int], channels: int) -> Tensor:
    """The stable windows among `BATCH` drawn ones, (s, 3, 3)."""
    z = ops.philox_normal(seed, ops.philox.STREAM_AR_SEARCH, batch * BATCH, BATCH, 8)
    windows = torch.zeros(BATCH, 9)
    windows[:, :8] = z / z.sum(1, keepdim=True)
    windows = windows.view(BATCH, 1, 3, 3)
    # The published limit is for 32 x 32 x 3; a single channel has its share of the squares. Most candidates already
    # grow beyond it on a small signal, so only what passes there is tried at full size.
    for tried in dict.fromkeys([(min(size[0], SCREEN), min(size[1], SCREEN)), size]):
        if len(windows):
            norms = _signals(windows, tried, seed).double().flatten(1).norm(dim=1).view(-1, SIGNALS)
            limit = LARGEST_NORM * math.sqrt(tried[0] * tried[1] / 3072)
            windows = windows[torch.isfinite(norms).all(1) & (norms.amax(1) <= limit)]
    return windows[:, 0]


def judge(windows: Tensor, size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """What a set of windows (c, channels, 3, 3) is worth at a size.

    Returns:
        `largest_norm` of its signals before scaling, `stable` (finite and within the published limit for that size),
        `own_response` (largest response of a process's filter to its own signals of norm 1; zero but for rounding) and
        `least_response` (smallest response of any other's filter).
    """
    c, channels = windows.shape[:2]
    signals = _signals(windows, size, seed)
    norms = signals.double().flatten(1).norm(dim=1)
    stable = bool(torch.isfinite(norms).all()) and float(norms.max()) <= LARGEST_NORM * math.sqrt(
        size[0] * size[1] * channels / 3072
    )
    signals = signals / norms.clamp_min(1e-12).float()[:, None, None, None]
    found = response(signals, windows).view(c, SIGNALS, c)
    own = found.diagonal(dim1=0, dim2=2)
    other = found.masked_fill(torch.eye(c, dtype=torch.bool)[:, None, :], torch.inf)
    return {
        "largest_norm": float(norms.max()),
        "stable": stable,
        "own_response": float(own.max()),
        "least_response": float(other.min()),
    }


def save_coefficients(windows: Tensor, path: Path) -> None:
    """JSON: {"coefficients": (classes, channels, 3, 3) nested lists}."""
    write_json(path, {"format": "ulfast-ar-1", "coefficients": windows.double().tolist()})


def load_coefficients(path: str, classes: int, channels: int) -> Tensor:
    """Windows from what `save_coefficients` wrote, from `.npy`, or from a published `.pt` (a tensor, or a list of
    (channels, 3, 3) tensors).

    Raises:
        InputError: the file cannot be read, or holds too few classes or other channels.
    """
    file = Path(path)
    try:
        if file.suffix == ".npy":
            windows = torch.from_numpy(np.load(file, allow_pickle=False)).float()
        elif file.suffix in (".pt", ".pth"):
            content = torch.load(file, map_location="cpu", weights_only=True)
            windows = (content if isinstance(content, Tensor) else torch.stack(list(content))).float()
        else:
            windows = torch.tensor(json.loads(file.read_text(encoding="utf-8"))["coefficients"], dtype=torch.float32)
    except FileNotFoundError:
        raise InputError(f"there is no coefficient file {file}: check the name") from None
    except Exception as error:  # each format has its own kinds of damage
        raise InputError(f"{file} holds no coefficient windows ({str(error).splitlines()[0][:100]})") from None
    if windows.dim() != 4 or windows.shape[1:] != (channels, 3, 3) or len(windows) < classes:
        raise InputError(
            f"{file} must hold ({classes}, {channels}, 3, 3) windows for this data, it has {tuple(windows.shape)}"
        )
    windows = windows[:classes].clone()
    windows[..., 2, 2] = 0
    return windows
