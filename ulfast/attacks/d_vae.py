"""`d-vae`: a variational autoencoder that tells images from what was added to them, trained on the poisoned images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..data.mapped import map_rows
from ..data.tensors import as_tensor
from ..errors import InputError
from ..parameters import parameter
from ..training.models import BasicBlock
from .base import IMAGES, Attack, Context, Plan
from .side_network import levels, shuffled, trained

BATCH, LR, CLIP = 128, 5e-3, 5.0
RATE_WEIGHT, RATES = 0.01, (1.0, 3.0)  # of the rate in the loss, and its bound in the two stages, in nats per position
POWER, WARM = 0.002, 1 / 6  # the perturbation's mean square may reach; it counts after this share of the epochs
LARGEST_EMBEDDING = 1 << 26  # numbers of an embedding of every position; beyond it, one of channels


class DisentangledVAE(nn.Module):
    """A narrow code, with added noise, that the image is decoded from, and a second decoder for the perturbation, which
    sees the image's features without the code, and an embedding of its class.

    Args:
        channels, classes, size: of the images; size is (height, width).
        width: channels of the first layer; the code has four times as many at half the size.
    """

    def __init__(self, channels: int, classes: int, size: tuple[int, int], width: int) -> None:
        super().__init__()
        deep = 2 * width
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            BasicBlock(width, width, 1),
            BasicBlock(width, width, 1),
            BasicBlock(width, deep, 2),
        )
        self.code, self.decode = nn.Conv2d(deep, 4 * deep, 1), nn.Conv2d(2 * deep, deep, 1)
        self.image = nn.Sequential(_decoder(deep, width, channels), nn.Sigmoid())
        self.perturbation = _decoder(deep, width, channels)
        half = tuple(math.ceil(side / 2) for side in size)
        self.grid = half if classes * deep * math.prod(half) <= LARGEST_EMBEDDING else (1, 1)
        self.classes = nn.Embedding(classes, deep * math.prod(self.grid))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Image, perturbation, and the code's rate in nats per position, a scalar.

        Args:
            x: (b, C, H, W) float32, pixels in [0, 1].
            y: (b,) int64.
        """
        features = self.stem(x)
        mean, log_variance = self.code(features).chunk(2, 1)
        rate = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean) if self.training else mean
        height, width = x.shape[2:]
        image = self.image(self.decode(code))[..., :height, :width]
        added = self.classes(y).view(len(y), -1, *self.grid)
        return image, self.perturbation(features + added)[..., :height, :width], rate


def _decoder(deep: int, width: int, channels: int) -> nn.Sequential:
    half = max(1, width // 2)
    return nn.Sequential(
        nn.ConvTranspose2d(deep, width, 4, 2, 1),
        nn.ConvTranspose2d(width, width, 3, 1, 1),
        nn.InstanceNorm2d(width),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(width, half, 3, 1, 1),
        nn.InstanceNorm2d(half),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(half, channels, 3, 1, 1),
    )


@dataclass(frozen=True)
class DisentanglingVAE(Attack):
    """Trains a rate-constrained autoencoder on the poisoned images. Its code is too narrow for the perturbation, which
    a second decoder finds from the class and the features. Stage one takes the perturbation from the images; stage two
    does so once more, with a new network and a wider code, and keeps that network's reconstructions.

    Needs the labels, and no clean image. Some 2.4 GFLOP per image and epoch at the published width.
    """

    stage: ClassVar[int] = IMAGES
    summary = "perturbations found and removed by a disentangling autoencoder"
    source = "Yu et al., Purify Unlearnable Examples via Rate-Constrained Variational Autoencoders, ICML 2024"
    aliases: ClassVar[tuple[str, ...]] = ("dvae",)

    width: int = parameter(64, "channels of the autoencoder's first layer", at_least=1)
    vae_epochs: int = parameter(60, "epochs of each stage", at_least=1)
    stages: int = parameter(2, "2, or 1: the images less their perturbations, not reconstructed", at_least=1)

    def apply(self, plan: Plan, context: Context) -> None:
        if self.stages > len(RATES):
            raise InputError(f"d-vae: stages must be 1 or 2, got {self.stages}")
        if len(plan.train) < 2:
            raise InputError("d-vae needs two images at least: give more")
        notes = []
        for stage in range(self.stages):
            with plan.timed("fit"):
                network, history = self._trained(plan.train, stage, context)
            with plan.timed("project"):
                plan.train, size = _purified(plan.train, network, stage == 1, context)
            notes.append({**history[-1], "perturbation": size})
        plan.notes["d_vae"] = notes

    def _trained(self, data: Dataset, stage: int, context: Context) -> tuple[DisentangledVAE, list[dict[str, float]]]:
        device, seed = context.device, 2 * context.seed + stage
        height, width, channels = data.image_shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DisentangledVAE(channels, data.num_classes, (height, width), self.width)
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(network.parameters(), LR)

        def epoch_of(epoch: int) -> dict[str, float]:
            torch.manual_seed(seed * 1_000_003 + epoch)
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * epoch / self.vae_epochs))
            network.train()
            total, batches = torch.zeros(4, device=device), 0
            for x, y in _batches(data, seed, epoch, device):
                image, perturbation, rate = network(x, y)
                error = nn.functional.mse_loss(image, x)
                both = nn.functional.mse_loss((image + perturbation).clamp(0, 1), x)
                power = perturbation.square().mean()
                loss = error + both + RATE_WEIGHT * rate.clamp_min(RATES[stage])
                if epoch >= WARM * self.vae_epochs:
                    loss = loss + power.clamp_min(POWER)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), CLIP)
                optimizer.step()
                total += torch.stack([loss, error, rate, power]).detach()
                batches += 1
            values = (total / batches).tolist()
            if not math.isfinite(values[0]):
                raise InputError(f"d-vae: the loss is {values[0]} in epoch {epoch + 1}: give another --seed")
            return dict(zip(("loss", "error", "rate", "power"), values, strict=True))

        identity = {"data": data.fingerprint(), "width": self.width, "epochs": self.vae_epochs, "seed": seed}
        history = trained(
            network, optimizer, self.vae_epochs, epoch_of, name=f"d-vae {stage + 1}", identity=identity, context=context
        )
        return network.eval(), history


def _purified(data: Dataset, network: DisentangledVAE, reconstruct: bool, context: Context) -> tuple[Dataset, float]:
    """The images without their perturbations, and the root of these perturbations' mean square, in [0, 1]."""
    squares = []

    @torch.no_grad()
    def pure(index: np.ndarray) -> np.ndarray:
        pieces = []
        for piece in np.split(index, range(BATCH, len(index), BATCH)):
            x, y = _batch(data, piece, context.device)
            _, perturbation, _ = network(x, y)
            squares.append(float(perturbation.double().square().sum()))
            x = (x - perturbation).clamp(0, 1)
            if reconstruct:
                x = network(x, y)[0]
            pieces.append((255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(pieces)

    done = map_rows(data, pure, context.progress, threads=1)
    return done, math.sqrt(math.fsum(squares) / data.images.size)


def _batches(data: Dataset, seed: int, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches in random order; all images in one where they are fewer."""
    order = shuffled(len(data), seed, epoch)
    size = min(BATCH, len(order))
    for first in range(0, len(order) - size + 1, size):
        yield _batch(data, order[first : first + size], device)


def _batch(data: Dataset, index: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    return levels(data, index, device) / 255, as_tensor(data.labels[index]).to(device)
