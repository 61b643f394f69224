"""`avatar`: noise on every image, and a diffusion model of clean images that takes it away together with the poison."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..data.dataset import Dataset
from ..data.mapped import map_rows
from ..errors import InputError
from ..parameters import parameter
from .base import IMAGES, Context, Plan
from .side_network import levels, trained
from .trusted import NeedsClean

# Steps of the noising and the variance that the first and the last of them add (Ho et al., NeurIPS 2020): the discrete
# form of the published process, whose rate goes from 0.1 to 20.
TIMES, VARIANCES = 1000, (1e-4, 0.02)
BATCH, LR, AVERAGE, PIECE = 128, 1e-3, 0.995, 250  # PIECE: steps of training between two checkpoints
GROUPS, LEVELS = 4, 2  # of the normalisation; halvings
LARGEST = 1 << 24  # values of the images that are purified at a time


class Denoiser(nn.Module):
    """A U-Net that predicts the noise in images from the images and the time.

    Args:
        channels: of the images.
        width: channels at full size, doubled at each of two halvings; a multiple of 4.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS + 1)]
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        inputs = [width, *widths]
        self.down = nn.ModuleList(_Block(a, b, 4 * width) for a, b in itertools.pairwise(inputs))
        self.middle = _Block(widths[-1], widths[-1], 4 * width)
        self.up = nn.ModuleList(_Block(a + b, a, 4 * width) for a, b in itertools.pairwise(widths))
        self.last = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(b, C, H, W) from images of that shape, and times (b,) from 0 to `TIMES` - 1."""
        told = self.time(_waves(time, self.first.out_channels))
        x = self.first(x)
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.avg_pool2d(x, 2, ceil_mode=True), told)
            kept.append(x)
        x = self.middle(x, told)
        for level in reversed(range(LEVELS)):
            wide = nn.functional.interpolate(x, size=kept[level].shape[2:], mode="nearest")
            x = self.up[level](torch.cat([kept[level], wide], 1), told)
        out: Tensor = self.last(x)
        return out


class _Block(nn.Module):
    """Two convolutions around a shortcut; the time shifts and scales what is between them."""

    def __init__(self, inputs: int, outputs: int, told: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.norm, self.moves = nn.GroupNorm(GROUPS, outputs), nn.Linear(told, 2 * outputs)
        self.two = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        scale, shift = self.moves(nn.functional.silu(told))[:, :, None, None].chunk(2, 1)
        y = self.norm(self.one(x)) * (1 + scale) + shift
        out: Tensor = self.two(nn.functional.silu(y)) + self.shortcut(x)
        return out


def _waves(time: Tensor, width: int) -> Tensor:
    """(b, width) sines and cosines of the times, of wavelengths up to ten times `TIMES`."""
    rates = torch.exp(-math.log(10 * TIMES) * torch.arange(width // 2, device=time.device) / (width // 2))
    angle = time[:, None].float() * rates
    return torch.cat([angle.sin(), angle.cos()], 1)


def signal(device: torch.device | None = None) -> Tensor:
    """(TIMES,) float32: which share of an image's power is left at each time; the noise has the rest."""
    added = torch.linspace(*VARIANCES, TIMES, dtype=torch.float64, device=device)
    return (1 - added).cumprod(0).float()


@torch.no_grad()
def purified(network: nn.Module, x: Tensor, noise: Tensor, times: Sequence[int]) -> Tensor:
    """Images with noise of the first of `times`, denoised from one to the next without new noise (DDIM).

    Args:
        network: predicts the noise, as `Denoiser`.
        x: (b, C, H, W) float32 in [-1, 1].
        noise: the same shape, standard normal.
        times: descending; after the last, what is predicted of the image is returned.

    Returns:
        (b, C, H, W) in [-1, 1].
    """
    left = signal(x.device)
    x = left[times[0]].sqrt() * x + (1 - left[times[0]]).sqrt() * noise
    for number, at in enumerate(times):
        found = network(x, torch.full((len(x),), at, device=x.device))
        image = ((x - (1 - left[at]).sqrt() * found) / left[at].sqrt()).clamp(-1, 1)
        if number + 1 == len(times):
            return image
        found = (x - left[at].sqrt() * image) / (1 - left[at]).sqrt()  # that goes with the image as it was cut
        after = left[times[number + 1]]
        x = after.sqrt() * image + (1 - after).sqrt() * found
    raise ValueError("no times")


@dataclass(frozen=True)
class DiffusionPurification(NeedsClean):
    """Trains a diffusion model on some clean images, adds noise to every poisoned image that drowns the perturbation,
    and lets the model take the noise away.

    The published model is far larger (NCSN++, 128 channels, 950,000 steps on all clean images of CIFAR-10), and its
    reverse process draws new noise at each of its steps.
    """

    stage: ClassVar[int] = IMAGES
    summary = "diffusion purification by a small model of some clean images"
    source = "Dolatabadi, Erfani and Leckie, The Devil's Advocate (AVATAR), SatML 2024; DDIM: Song et al., ICLR 2021"
    aliases: ClassVar[tuple[str, ...]] = ("diffusion", "diffpure")

    width: int = parameter(32, "channels of the U-Net at full size, a multiple of 4", at_least=4)
    diffusion_steps: int = parameter(4000, "steps of its training, in batches of 128", at_least=1)
    purify_time: int = parameter(100, "time up to which noise is added, of 1,000", at_least=1)
    purify_steps: int = parameter(10, "steps back; 1 denoises at once", at_least=1)

    def apply(self, plan: Plan, context: Context) -> None:
        if self.width % 4:
            raise InputError(f"avatar: width must be a multiple of 4, got {self.width}")
        if self.purify_time > TIMES:
            raise InputError(f"avatar: purify_time must be at most {TIMES}, got {self.purify_time}")
        if self.purify_steps > self.purify_time:
            raise InputError(f"avatar: {self.purify_steps} steps back from time {self.purify_time}: give fewer")
        clean = self.trusted(plan, context)
        with plan.timed("fit"):
            network, losses = self._trained(clean, context)
        times = torch.linspace(self.purify_time - 1, 0, self.purify_steps + 1).round().int().tolist()[:-1]
        train, device = plan.train, context.device
        most = max(1, LARGEST // (math.prod(train.image_shape[:2]) * self.width))

        def pure(index: np.ndarray) -> np.ndarray:
            pieces = []
            for piece in np.split(index, range(most, len(index), most)):
                x = _pixels(train, piece, device)
                noise = ops.philox_normal(
                    context.seed, ops.philox.STREAM_DIFFUSION, int(piece[0]), len(piece), x[0].numel(), device=device
                )
                found = purified(network, x, noise.view_as(x), times)
                whole = (127.5 * (found + 1)).round().clamp(0, 255).to(torch.uint8)
                pieces.append(whole.permute(0, 2, 3, 1).cpu().numpy())
            return np.concatenate(pieces)

        with plan.timed("project"):
            plan.train = map_rows(train, pure, context.progress, threads=1)
        plan.notes["avatar"] = {"clean_images": len(clean), "loss": losses[-1]["loss"]}

    def _trained(self, clean: Dataset, context: Context) -> tuple[nn.Module, list[dict[str, float]]]:
        """The running average of the network's weights, and the loss of every `PIECE` steps."""
        device, seed = context.device, context.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Denoiser(clean.image_shape[2], self.width)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = copy.deepcopy(network).requires_grad_(False)
        both = nn.ModuleDict({"network": network, "average": average})
        optimizer = torch.optim.Adam(network.parameters(), LR)
        left = signal(device)

        def piece_of(number: int) -> dict[str, float]:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            total, steps = torch.zeros((), device=device), min(PIECE, self.diffusion_steps - number * PIECE)
            for step in range(steps):
                # The rate rises during a twentieth of the steps and falls to zero during the second half.
                done = (number * PIECE + step) / self.diffusion_steps
                for group in optimizer.param_groups:
                    group["lr"] = LR * min(1.0, 20 * (done + 1 / self.diffusion_steps), 2 * (1 - done))
                index = torch.randint(len(clean), (min(BATCH, len(clean)),), generator=generator).numpy()
                x = _pixels(clean, index, device)
                flip = (torch.rand(len(x), generator=generator) < 0.5).to(device)[:, None, None, None]
                x = torch.where(flip, x.flip(3), x)
                time = torch.randint(TIMES, (len(x),), generator=generator).to(device)
                noise = torch.randn(x.shape, generator=generator).to(device)
                share = left[time][:, None, None, None]
                loss = nn.functional.mse_loss(network(share.sqrt() * x + (1 - share).sqrt() * noise, time), noise)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                # Short at first, or the average would hold the random start.
                decay = min(AVERAGE, (1 + number * PIECE + step) / (10 + number * PIECE + step))
                for old, new in zip(average.parameters(), network.parameters(), strict=True):
                    old.lerp_(new.detach(), 1 - decay)
                total += loss.detach()
            return {"loss": float(total) / steps}

        identity = {"data": clean.fingerprint(), "width": self.width, "steps": self.diffusion_steps, "seed": seed}
        pieces = math.ceil(self.diffusion_steps / PIECE)
        losses = trained(both, optimizer, pieces, piece_of, name="avatar", identity=identity, context=context)
        return average.eval(), losses


def _pixels(data: Dataset, index: np.ndarray, device: torch.device) -> Tensor:
    """(b, C, H, W) float32 in [-1, 1], channels_last."""
    return levels(data, index, device) / 127.5 - 1
