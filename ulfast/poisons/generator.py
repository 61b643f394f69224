"""Poisons whose noise comes from a network that maps any image to its own; it is kept as a file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
from .surrogate import Surrogate, SurrogatePoison

FORMAT = "ulfast-generator-1"
FILE = "generator.safetensors"  # in the work folder, once trained
LEVELS = 3  # halvings of the resolution in the generator
BATCH = 64  # images perturbed at a time
HINT = "make one with `ulfast poison --method gue --generator-out FILE`"


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
class GeneratorPoison(SurrogatePoison):
    """Base of them. A subclass says in `train` how the generator is found."""

    name: ClassVar[str] = ""

    width: int = parameter(64, "channels of the generator at full size, doubled at each of three halvings", at_least=1)
    generator: str | None = parameter(None, "file of an existing generator; nothing is then trained")

    @property
    def for_others(self) -> bool:
        return True

    def train(self, dataset: Dataset, seed: int, work: Workplace) -> Generator:
        """The generator, trained; it is on the workplace's device, and the same in all processes."""
        raise TypeError(f"{type(self).__name__} does not say how to train")

    def kept(
        self,
        dataset: Dataset,
        seed: int,
        work: Workplace,
        networks: nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        epoch_of: Callable[[list[dict[str, float]]], dict[str, float]],
    ) -> list[dict[str, float]]:
        """Calls `epoch_of` with the rows of the epochs before, until there are `epochs`. Networks, optimizer and rows
        are kept in the work folder after each, so that the run can be resumed.

        Args:
            epoch_of: trains the networks for one epoch and returns its row, with `loss_noisy`.
        """
        file, identity = work.folder / "state.pt", self.identity(dataset, seed)
        rows: list[dict[str, float]] = []
        if distributed.agreed(work.resume and file.is_file()):
            rows = checkpoint.load(file, networks, optimizer, identity)["history"]
        while len(rows) < epochs:
            # Of networks that drop out, not alike in all parts of a batch.
            torch.manual_seed((seed * 1_000_003 + len(rows) + (distributed.rank() << 48)) % (1 << 63))
            rows.append(epoch_of(rows))
            if distributed.is_main():
                checkpoint.save(file, networks, optimizer, {"identity": identity, "history": rows})
            work.tell("epochs", len(rows), epochs, loss=rows[-1]["loss_noisy"])
        return rows

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.eps <= 0:
            raise InputError(f"{self.name} needs an eps above 0")
        device = torch.device(work.device)
        if self.generator is not None:
            file = expand(self.generator)
            generator, about = load_generator(file, dataset.image_shape[2])
            if about.get("method", self.name) != self.name:
                raise InputError(f"{file} was made by {about['method']}: give --method {about['method']}")
            work.facts |= {"generator": about}
        else:
            generator = self.train(dataset, seed, work)
            if distributed.is_main():
                about = {"method": self.name, "parameters": self.parameters(), "seed": seed, "data": dataset.checksum()}
                save_generator(work.folder / FILE, generator, about)
            distributed.wait()
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


def normal(surrogate: Surrogate, x: Tensor) -> Tensor:
    """As `Surrogate.normalised`, with a gradient."""
    out: Tensor = ((x - surrogate.mean) / surrogate.std).to(surrogate.half or torch.float32)
    return out


def shared(gradients: Any, share: float) -> list[Tensor]:
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


def method_of(path: Path) -> str:
    """The method that made a generator, as its file says.

    Raises:
        InputError: the file is missing or is not a generator.
    """
    return str(_content(path)[1].get("method", ""))


def load_generator(path: Path, channels: int) -> tuple[Generator, dict[str, Any]]:
    """Loads what `save_generator` wrote, and the metadata of the file.

    Raises:
        InputError: the file is missing, is not a generator, or is for images with other channels.
    """
    tensors, about = _content(path)
    with reading(path, HINT, "as a generator"):
        width, theirs = tensors["last.0.weight"].shape[1], tensors["last.0.weight"].shape[0]
        if theirs != channels:
            raise InputError(f"{path} is for images of {theirs} channels, these have {channels}: convert the images")
        generator = Generator(channels, width)
        generator.load_state_dict(tensors)
        if not all(torch.isfinite(value).all() for value in tensors.values()):
            raise ValueError("weights that are not finite")
    return generator, about


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.exists():
        raise InputError(f"there is no generator {path}: {HINT}")
    with reading(path, HINT, "as a generator"), safe_open(regular(path), framework="pt") as file:
        text = file.metadata() or {}
        if text.get("format") != FORMAT:
            raise InputError(f"{path} is not a generator of ulfast: {HINT}")
        about: dict[str, Any] = json.loads(text["about"])
        if not isinstance(about, dict):
            raise ValueError("nothing about its making")
        return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 (not a dict)
