"""`gue`: a network that maps any image to its noise, found as the leader of a game with a classifier."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import distributed
from ..data.dataset import Dataset
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.reference import whole_levels
from ..parameters import parameter
from ..runtime.files import atomic_file
from ..runtime.made import expand
from ..runtime.reading import reading, regular
from ..training import checkpoint
from .base import Perturb, Workplace
from .surrogate import Images, SurrogatePoison, check_finite, new_surrogate, part, shuffled

FORMAT = "ulfast-generator-1"
FILE = "generator.safetensors"  # in the work folder, once trained
LEVELS = 3  # halvings of the resolution in the generator
BATCH = 64  # images perturbed at a time
ETA = 1.5  # how fast the classifier's own optimum must be approached


class Generator(nn.Module):
    """A U-Net from images (b, C, H, W) in [0, 1] to noise of the same shape in [-1, 1]: two 3 x 3 convolutions at each
    of four widths, average pooling down, bilinear up, skip connections.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_double(a + b, a) for a, b in itertools.pairwise(widths))
        self.last = nn.Sequential(nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else nn.functional.avg_pool2d(x, 2, ceil_mode=True))
            kept.append(x)
        for level in reversed(range(LEVELS)):
            wide = nn.functional.interpolate(x, size=kept[level].shape[2:], mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([kept[level], wide], 1))
        return torch.tanh(self.last(x))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (inputs, outputs):
        layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class GameUnlearnable(SurrogatePoison):
    """In this game the leader is a generator of noise and the follower a classifier that trains on the noisy images;
    the leader wants wrong labels to be likely on clean images. A value function couples the two: how much the
    classifier could still gain on a batch of noisy images in a few steps of Adam. Only first derivatives are needed.

    The generator is saved to a file and also poisons unseen images (`--generator`).
    """

    summary = "noise from a generator, which poisons unseen images too"
    source = "Liu et al., Game-Theoretic Unlearnable Example Generator, AAAI 2024"
    aliases = ("game-unlearnable-examples",)

    width: int = parameter(64, "channels of the generator at full size, doubled at each of three halvings", at_least=1)
    epochs: int = parameter(50, "passes over the images", at_least=1)
    batch_size: int = parameter(256, "images per step", at_least=2)
    inner_steps: int = parameter(10, "steps of the classifier's copy towards its optimum", at_least=1)
    inner_lr: float = parameter(1e-4, "learning rate of these steps (Adam)", at_least=0)
    lr: float = parameter(0.01, "the classifier's learning rate", at_least=0)
    generator_lr: float = parameter(0.1, "the generator's learning rate", at_least=0)
    generator: str | None = parameter(None, "file of an existing generator; nothing is then trained")

    @property
    def for_others(self) -> bool:
        return True

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.eps <= 0:
            raise InputError("gue needs an eps above 0")
        device = torch.device(work.device)
        if self.generator is not None:
            generator, about = load_generator(expand(self.generator), dataset.image_shape[2])
            work.facts |= {"generator": about}
        else:
            generator = self._train(dataset, seed, work)
        generator = generator.to(device).eval()
        most = whole_levels(self.eps)

        @torch.no_grad()
        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            out = np.empty_like(images)
            for begin in range(0, len(images), BATCH):
                block = images[begin : begin + BATCH]
                x = as_tensor(np.ascontiguousarray(block)).to(device).permute(0, 3, 1, 2).float() / 255
                levels = (255 * self.eps * generator(x)).round().clamp(-most, most)
                out[begin : begin + BATCH] = (block + levels.permute(0, 2, 3, 1).cpu().numpy()).clip(0, 255)
            return out

        return perturb

    def _train(self, dataset: Dataset, seed: int, work: Workplace) -> Generator:
        device = torch.device(work.device)
        images, surrogate = Images(dataset, device), new_surrogate(self.surrogate, dataset, seed, device)
        size = min(self.batch_size, images.n)
        if size < distributed.size():
            raise InputError(f"batches of {size} images for {distributed.size()} processes: give fewer")
        torch.manual_seed(seed % (1 << 63))
        generator = Generator(dataset.image_shape[2], self.width).to(device)
        both = nn.ModuleDict({"generator": generator, "classifier": surrogate.model})
        groups: list[dict[str, Any]] = [
            {"params": list(generator.parameters()), "lr": self.generator_lr},
            {"params": list(surrogate.model.parameters()), "lr": self.lr},
        ]
        optimizer = torch.optim.SGD(groups)
        file, identity = work.folder / "state.pt", self.identity(dataset, seed)
        history: list[dict[str, float]] = []
        if distributed.agreed(work.resume and file.is_file()):
            history = checkpoint.load(file, both, optimizer, identity)["history"]
        steps = images.n // size
        while len(history) < self.epochs:
            epoch = len(history)
            # Of networks that drop out, not alike in all parts of a batch.
            torch.manual_seed((seed * 1_000_003 + epoch + (distributed.rank() << 48)) % (1 << 63))
            both.train()
            totals = torch.zeros(2, dtype=torch.float64)
            for step in range(steps):
                index, _ = part(shuffled(images.n, size, seed, epoch * steps + step))
                x, y = images.pixels(index), images.labels[index.to(device)]
                totals += _step(self, surrogate, generator, optimizer, x, y, len(index) / size)
                work.tell_often("epochs", epoch + (step + 1) / steps, self.epochs)
            for buffer in both.buffers():
                buffer.copy_(distributed.same(buffer))
            noisy, clean = (totals / steps).tolist()
            check_finite(noisy + clean, f"epoch {epoch + 1}")
            history.append({"loss_noisy": noisy, "loss_wrong": clean})
            if distributed.is_main():
                checkpoint.save(file, both, optimizer, {"identity": identity, "history": history})
            work.tell("epochs", len(history), self.epochs, loss=noisy)
        if distributed.is_main():
            about = {"method": "gue", "parameters": self.parameters(), "seed": seed, "data": dataset.checksum()}
            save_generator(work.folder / FILE, generator, about)
        distributed.wait()
        work.facts |= {"epochs": history}
        return generator


def _step(
    poison: GameUnlearnable,
    surrogate: Any,
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    share: float,  # fraction of the whole batch that these images form
) -> Tensor:  # losses on the noisy images, and towards wrong labels on the clean ones, (2,) float64
    classifier = surrogate.model
    theta, phi = list(classifier.parameters()), list(generator.parameters())

    def loss(network: nn.Module, pixels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(surrogate.forward(_normal(surrogate, pixels), network), y)

    noisy = (x + poison.eps * generator(x)).clamp(0, 1)
    best = copy.deepcopy(classifier)
    inner = torch.optim.Adam(best.parameters(), lr=poison.inner_lr)
    for _ in range(poison.inner_steps):
        gradients = torch.autograd.grad(loss(best, noisy.detach()), list(best.parameters()))
        for p, g in zip(best.parameters(), _shared(gradients, share), strict=True):
            p.grad = g
        inner.step()
    best.requires_grad_(False)
    now = loss(classifier, noisy)
    gain = now - loss(best, noisy)  # theta* is a constant, the noise is not
    of_both = _shared(torch.autograd.grad(gain, [*theta, *phi]), share)
    q_theta, q_phi = of_both[: len(theta)], of_both[len(theta) :]
    logits = surrogate.forward(_normal(surrogate, x))
    wrong = -logits.log_softmax(1)
    wrong = wrong.masked_fill(nn.functional.one_hot(y, logits.shape[1]).bool(), -math.inf).amax(1).mean()
    f_theta = _shared(torch.autograd.grad(wrong, theta), share)
    square = sum(float(g.double().square().sum()) for g in of_both)
    inside = sum(float((f.double() * q.double()).sum()) for f, q in zip(f_theta, q_theta, strict=True))
    weight = max(0.0, (ETA * square - inside) / square) if square else 0.0
    for p, g in zip(phi, q_phi, strict=True):
        p.grad = weight * g
    for p, f, q in zip(theta, f_theta, q_theta, strict=True):
        p.grad = f + weight * q
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return distributed.sum_(torch.stack([now.detach(), wrong.detach()]).double().cpu() * share)


def _normal(surrogate: Any, x: Tensor) -> Tensor:
    """As `Surrogate.normalised`, with a gradient."""
    out: Tensor = ((x - surrogate.mean) / surrogate.std).to(surrogate.half or torch.float32)
    return out


def _shared(gradients: Any, share: float) -> list[Tensor]:
    """The gradients of the whole batch, from those of the mean over each process's part."""
    if distributed.size() == 1:
        return list(gradients)
    flat = distributed.sum_(torch.cat([g.flatten() for g in gradients]) * share)
    pieces = flat.split([g.numel() for g in gradients])
    return [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)]


def save_generator(path: Path, generator: Generator, about: dict[str, Any]) -> None:
    """Writes a safetensors file atomically; `about` goes into its metadata."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()}
    with atomic_file(path) as whole:
        whole.write_bytes(save(tensors, metadata={"format": FORMAT, "about": json.dumps(about)}))


def load_generator(path: Path, channels: int) -> tuple[Generator, dict[str, Any]]:
    """Loads what `save_generator` wrote, and the metadata of the file.

    Raises:
        InputError: the file is missing, is not a generator, or is for images with other channels.
    """
    hint = "make one with `ulfast poison --method gue --generator-out FILE`"
    if not path.exists():
        raise InputError(f"there is no generator {path}: {hint}")
    with reading(path, hint, "as a generator"):
        with safe_open(regular(path), framework="pt") as file:
            text = file.metadata() or {}
            if text.get("format") != FORMAT:
                raise InputError(f"{path} is not a generator of ulfast: {hint}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        about: dict[str, Any] = json.loads(text["about"])
        width, theirs = tensors["last.0.weight"].shape[1], tensors["last.0.weight"].shape[0]
        if theirs != channels:
            raise InputError(f"{path} is for images of {theirs} channels, these have {channels}: convert the images")
        generator = Generator(channels, width)
        generator.load_state_dict(tensors)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise ValueError("weights that are not finite")
    return generator, about
