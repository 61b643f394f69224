"""`ar`: autoregressive perturbations, drawn anew for every image, with one linear recurrence per class."""

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
from ..errors import InputError
from ..ops.state import ordinary
from ..parameters import parameter
from ..runtime.files import write_json
from ..runtime.made import expand
from ..runtime.reading import reading, regular
from .base import Perturb, Poison, Workplace

BATCH = 512  # candidate windows tried at a time
SIGNALS = 3  # signals that a candidate must keep finite and small
LARGEST_NORM = 50.0  # of a three-channel 32 x 32 signal
# Two processes are too alike if the earlier one's filter responds less than this to the new one's signals, scaled to
# norm 1 as they will be used: at 32 px.
RESPONSE, RESPONSE_MANY = 10.0, 3.0
DRAWS = 256  # signals per process that `judge` filters; it measures the size of a quarter of them
MANY_CLASSES = 100
GIVE_UP = 2_000  # batches
SCREEN = 32  # side of the signals on which candidates are first tried and told apart


@dataclass(frozen=True)
class AR(Poison):
    """Sample-wise noise without a direction in pixel space: every value is the weighted sum of the eight values before
    it in its 3 x 3 window, with weights that depend on the image's class and the channel.
    """

    summary = "autoregressive noise, one recurrence per class"
    source = "Sandoval-Segura et al., Autoregressive Perturbations for Data Poisoning, NeurIPS 2022"
    aliases = ("autoregressive",)

    eps: float | None = parameter(
        None, "size of each image's noise (default 1 for L2 at 32 px, 8/255 for linf)", at_least=0
    )
    norm: str = parameter("l2", "norm in which eps is measured", choices=("l2", "linf"))
    coefficients: str | None = parameter(None, "file of coefficient windows (default: found by the seed)")
    accept: str = parameter(
        "channels",
        "how the response to a found window is measured: per channel, or published: summed over the channels first",
        choices=("channels", "published"),
    )

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        eps = self.eps
        if eps is None:
            # As published, 1 for CIFAR and SVHN, 3 for STL-10: the same noise per pixel at every size.
            eps = math.sqrt(math.prod(dataset.image_shape) / 3072) if self.norm == "l2" else 8 / 255
        return {"eps": eps, "norm": self.norm, "coefficients": self.coefficients, "accept": self.accept}

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        values = self.resolved(dataset)
        height, width, channels = dataset.image_shape
        if self.coefficients is None:
            windows = find_coefficients(
                dataset.num_classes, seed, size=(height, width), channels=channels, accept=self.accept
            )
        else:
            windows = load_coefficients(self.coefficients, dataset.num_classes, channels)
        windows = work.place(windows)

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            out = ops.perturb_ar(
                work.place(labels),
                windows,
                seed=seed,
                first=first,
                size=(height, width),
                norm=values["eps"],
                kind=self.norm,
                images=work.place(images),
            )
            return out.cpu().numpy()

        return perturb


def filters(windows: Tensor) -> Tensor:
    """(c, channels, 3, 3) windows as filters that give zero on their own noise: -1 in the bottom-right corner."""
    out = windows.clone()
    out[..., 2, 2] = -1
    return out


def response(signals: Tensor, windows: Tensor) -> Tensor:
    """How strongly the filters of `windows` respond to signals: the filtered channels are added, then the positive part
    is summed, as in the authors' program.

    Args:
        signals: (n, channels, H, W) float32.
        windows: (m, channels, 3, 3) float32.

    Returns:
        (n, m) float32.
    """
    return torch.nn.functional.conv2d(signals, filters(windows)).relu_().sum((2, 3))


def _channel_response(signals: Tensor, windows: Tensor) -> Tensor:
    """As `response`, but with the positive part of each channel separately: about 1.35 times as much. `ar` tells the
    windows that it finds by the seed apart with it, so their bytes must not change.
    """
    n, channels, height, width = signals.shape
    # Every window on every signal, channel by channel: grouped by channel, m filters in each group.
    kernels = filters(windows).transpose(0, 1).reshape(channels * len(windows), 1, 3, 3)
    out = torch.nn.functional.conv2d(signals, kernels, groups=channels)
    return out.relu_().view(n, channels, len(windows), height - 2, width - 2).sum((1, 3, 4))


@ordinary
def find_coefficients(
    classes: int,
    seed: int = 0,
    size: tuple[int, int] = (32, 32),
    channels: int = 3,
    accept: str = "channels",
) -> Tensor:
    """Windows of stable, mutually distinguishable processes, (classes, channels, 3, 3) float32, by rejection.

    Draws 3 x 3 normal windows with a zero corner, divides them by their sum, and keeps those whose signals stay finite
    and no larger than white noise of about unit size. A process of `channels` windows is kept if the filter of every
    earlier process responds to its signals.

    Args:
        accept: "published": the earlier filters' `response` to one signal must reach 10 (3 from 100 classes on);
            "channels": the response is measured per channel, and on three signals.

    Raises:
        InputError: no such set was found, which happens with very many classes of very small images.
    """
    find = _find_published if accept == "published" else _find
    return find(classes, seed, size, channels).clone()


def enough(classes: int, size: tuple[int, int], channels: int) -> float:
    """The response to a signal of norm 1 that separates two processes."""
    # The sum over the pixels of a signal of norm 1 grows with the square root of their number.
    return (RESPONSE_MANY if classes >= MANY_CLASSES else RESPONSE) * math.sqrt(size[0] * size[1] * channels / 3072)


def _screen(size: tuple[int, int]) -> tuple[int, int]:
    return min(size[0], SCREEN), min(size[1], SCREEN)


@lru_cache(maxsize=8)
def _find(classes: int, seed: int, size: tuple[int, int], channels: int) -> Tensor:
    kept = torch.empty(0, channels, 3, 3)
    screen = _screen(size)
    least = enough(classes, screen, channels)
    pool = torch.empty(0, 3, 3)
    drawn = 0
    while len(kept) < classes:
        while len(pool) < channels:
            if drawn == GIVE_UP:
                raise _too_few(len(kept), classes, size)
            pool = torch.cat([pool, _stable(seed, drawn, size, channels)])
            drawn += 1
        process, pool = pool[None, :channels], pool[channels:]
        signals = _unit(_signals(process, screen, seed=drawn * 7919 + len(pool)))
        if not len(kept) or bool((_channel_response(signals, kept).amin(0) >= least).all()):
            kept = torch.cat([kept, process])
    return kept


@lru_cache(maxsize=8)
def _find_published(classes: int, seed: int, size: tuple[int, int], channels: int) -> Tensor:
    kept, pool = torch.empty(0, channels, 3, 3), torch.empty(0, 3, 3)
    screen = _screen(size)
    least = enough(classes, screen, channels)
    for drawn in range(GIVE_UP):
        pool = torch.cat([pool, _stable(seed, drawn, size, channels)])
        whole = len(pool) // channels * channels
        if not whole:
            continue
        processes, pool = pool[:whole].view(-1, channels, 3, 3), pool[whole:]
        signals = _unit(_signals(processes, screen, seed + drawn * 7919, 1))
        while len(processes):
            fit = (response(signals, kept) >= least).all(1).nonzero() if len(kept) else torch.zeros(1, 1).long()
            if not len(fit):
                break
            at = int(fit[0])
            kept = torch.cat([kept, processes[at : at + 1]])
            if len(kept) == classes:
                return kept
            processes, signals = processes[at + 1 :], signals[at + 1 :]
    raise _too_few(len(kept), classes, size)


def _too_few(found: int, classes: int, size: tuple[int, int]) -> InputError:
    return InputError(
        f"ar: only {found} of {classes} processes were found for images of {size[1]} x {size[0]}: use larger images,"
        " fewer classes or another seed"
    )


def _unit(signals: Tensor) -> Tensor:
    return signals / signals.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


def _signals(windows: Tensor, size: tuple[int, int], seed: int, count: int = SIGNALS) -> Tensor:
    """`count` unscaled signals of each process, (m * count, channels, H, W)."""
    labels = torch.arange(len(windows)).repeat_interleave(count)
    noise = ops.perturb_ar(labels, windows, seed=seed, first=1 << 40, size=size, kind="none")
    return noise.permute(0, 3, 1, 2).contiguous()


def _stable(seed: int, batch: int, size: tuple[int, int], channels: int) -> Tensor:
    """The stable windows among `BATCH` drawn ones, (s, 3, 3)."""
    z = ops.philox_normal(seed, ops.philox.STREAM_AR_SEARCH, batch * BATCH, BATCH, 8)
    windows = torch.zeros(BATCH, 9)
    windows[:, :8] = z / z.sum(1, keepdim=True)
    windows = windows.view(BATCH, 1, 3, 3)
    # The published limit is for 32 x 32 x 3; a single channel has its share of the squares. Most candidates exceed it
    # on a small signal already, so only those that pass there are tried at full size.
    for tried in dict.fromkeys([_screen(size), size]):
        if len(windows):
            norms = _signals(windows, tried, seed).double().flatten(1).norm(dim=1).view(-1, SIGNALS)
            limit = LARGEST_NORM * math.sqrt(tried[0] * tried[1] / 3072)
            windows = windows[torch.isfinite(norms).all(1) & (norms.amax(1) <= limit)]
    return windows[:, 0]


@ordinary
def judge(windows: Tensor, size: tuple[int, int], seed: int = 0) -> dict[str, Any]:
    """Judges a set of windows (c, channels, 3, 3) float32 at a size (height, width) by the published test.

    That test looks at a few signals of a new process, drawn once, so a set that it accepted need not pass with others.
    Here one passing signal out of `DRAWS` per process is enough.

    Returns:
        `largest_norm` of the signals before scaling; `stable`: all signals are finite, and one of every process is
        within the published limit for that size; `own_response`: the largest response of a process's filter to its own
        signals of norm 1, zero up to rounding; `least_response`: the smallest, over all processes but the first, of the
        least response of an earlier process's filter to the process's best signal; `threshold`: the value that this
        must reach; `accepted`: the set is stable and reaches it. Responses are measured at 32 x 32 or less.
    """
    c, channels = windows.shape[:2]
    screen = _screen(size)
    limit = LARGEST_NORM * math.sqrt(size[0] * size[1] * channels / 3072)
    largest, smallest, own, least = 0.0, 0.0, 0.0, math.inf
    for k in range(c):
        norms = torch.cat(
            [
                _signals(windows[k : k + 1], size, seed + 104729 * part, 8).double().flatten(1).norm(dim=1)
                for part in range(DRAWS // 32)
            ]
        ).nan_to_num(nan=math.inf, posinf=math.inf)
        largest, smallest = max(largest, float(norms.max())), max(smallest, float(norms.min()))
        answers = response(_unit(_signals(windows[k : k + 1], screen, seed, DRAWS)), windows[: k + 1])
        own = max(own, float(answers[:, k].max()))
        if k:
            least = min(least, float(answers[:, :k].amin(1).max()))
    threshold = enough(c, screen, channels)
    stable = math.isfinite(largest) and smallest <= limit
    return {
        "largest_norm": largest,
        "stable": stable,
        "own_response": own,
        "least_response": least,
        "threshold": threshold,
        "accepted": stable and least >= threshold,
    }


def save_coefficients(windows: Tensor, path: Path) -> None:
    """Writes JSON: {"coefficients": (classes, channels, 3, 3) nested lists}."""
    write_json(path, {"format": "ulfast-ar-1", "coefficients": windows.double().tolist()})


@ordinary
def load_coefficients(path: str, classes: int, channels: int) -> Tensor:
    """Loads windows from a file of `save_coefficients`, an `.npy`, or a published `.pt` (a tensor, or a list of
    (channels, 3, 3) tensors).

    Raises:
        InputError: the file cannot be read, has too few classes or other channels, or its windows are not finite.
    """
    file = expand(path)
    if not file.exists():
        raise InputError(f"there is no coefficient file {file}: check the name")
    with reading(regular(file), "get it again", "as coefficient windows"):
        if file.suffix == ".npy":
            windows = torch.from_numpy(np.array(np.load(file, allow_pickle=False, mmap_mode="r"))).float()
        elif file.suffix in (".pt", ".pth"):
            content = torch.load(file, map_location="cpu", weights_only=True)
            windows = (content if isinstance(content, Tensor) else torch.stack(list(content))).float()
        else:
            windows = torch.tensor(json.loads(file.read_text(encoding="utf-8"))["coefficients"], dtype=torch.float32)
    if windows.dim() != 4 or windows.shape[1:] != (channels, 3, 3) or len(windows) < classes:
        raise InputError(
            f"{file} must hold ({classes}, {channels}, 3, 3) windows for this data, it has {tuple(windows.shape)}"
        )
    windows = windows[:classes].clone()
    windows[..., 2, 2] = 0
    bad = ~torch.isfinite(windows).all(3).all(2).all(1)
    if bad.any():
        raise InputError(f"{file}: the window of class {int(bad.nonzero()[0])} is not finite: get the file again")
    if not windows.flatten(1).any(1).all():
        c = int((~windows.flatten(1).any(1)).nonzero()[0])
        raise InputError(f"{file}: the window of class {c} is all zero: get the file again")
    return windows
