"""Noise that no linear model sees, and whether a network learns it (docs/research/adaptive.md).

    python experiments/unlearned.py [--only NAME ...] [--out RESULTS.json]

All of it is within 8/255 and has a mean of zero in every class:

- `blocks-N`: the class's N x N blocks of colour, as `regions`, with one sign drawn for each image.
- `turned-4`: two such patterns, mixed at an angle drawn for each image.
- `waves-4`: the signs of a smooth pattern of the class (cosines of up to 4 half-waves), with a sign for each image.
- `lines-W`, `ramps-W`: across and down, every W pixels, in each colour; where they lie is drawn for each image. The
  class is in whether lines are light or dark, or to which side ramps fall: all classes have the same spectrum.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

import ulfast
from ulfast import ops
from ulfast.data import Dataset
from ulfast.data.tensors import as_tensor
from ulfast.runtime import environment

EPS = 8 / 255
NAMES = ("blocks-2", "blocks-4", "blocks-8", "turned-4", "waves-4", "lines-4", "lines-8", "ramps-8")


def signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def blocks(classes: int, side: int, count: int, generator: torch.Generator) -> Tensor:
    """(classes, side, side, 3) of -1 and 1 in count x count blocks."""
    cell = -(-side // count)
    coarse = signs((classes, count, count, 3), generator)
    return coarse.repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, :side, :side]


def waves(classes: int, side: int, most: int, generator: torch.Generator) -> Tensor:
    """(classes, side, side, 3) of -1 and 1: the sign of a sum of cosines with up to `most` half-waves."""
    weights = torch.randn(classes, 3, most, most, generator=generator)
    weights[..., 0, 0] = 0
    k = torch.arange(most)
    cosines = torch.cos(math.pi * (torch.arange(side)[:, None] + 0.5) * k / side)
    return torch.einsum("yi,cdij,xj->cyxd", cosines, weights, cosines).sign()


def codes(classes: int, bits: int, generator: torch.Generator) -> Tensor:
    """(classes, bits) of -1 and 1, all different, and as different as a greedy choice finds."""
    every = [torch.tensor(word).float() for word in itertools.product((-1, 1), repeat=bits)]
    every = [every[i] for i in torch.randperm(len(every), generator=generator)]
    for least in range(bits, 0, -1):
        chosen: list[Tensor] = []
        for word in every:
            if all(int((word != other).sum()) >= least for other in chosen):
                chosen.append(word)
        if len(chosen) >= classes:
            return torch.stack(chosen[:classes])
    raise SystemExit(f"{bits} bits are not enough for {classes} classes")


def textured(labels: Tensor, kind: str, period: int, side: int, classes: int, generator: torch.Generator) -> Tensor:
    """(n, side, side, 3) in [-1, 1]: lines or ramps across and down."""
    n, code = len(labels), codes(classes, 6, generator)[labels]
    parts = []
    for word in (code[:, :3, None], code[:, 3:, None]):
        place = torch.rand(n, 3, 1, generator=generator)
        t = (torch.arange(side) / period + place) % 1
        if kind == "lines":
            parts.append(torch.where(t < 0.25, 1.0, -1 / 3) * word)
        else:
            ramp = 2 * t - 1
            parts.append(torch.where(word > 0, ramp, ramp.flip(-1)))
    return ((parts[0][:, :, None, :] + parts[1][:, :, :, None]) / 2).permute(0, 2, 3, 1)


def noise(name: str, data: Dataset, seed: int) -> Tensor:
    """(n, H, W, 3) float32 within EPS."""
    generator, labels = torch.Generator().manual_seed(seed), as_tensor(data.labels)
    kind, number = name.split("-")
    n, side, classes, size = len(data), data.image_shape[0], data.num_classes, int(number)
    one = signs((n, 1, 1, 1), generator)
    if kind == "blocks":
        return EPS * one * blocks(classes, side, size, generator)[labels]
    if kind == "waves":
        return EPS * one * waves(classes, side, size, generator)[labels]
    if kind == "turned":
        angle = torch.rand(n, 1, 1, 1, generator=generator) * 2 * math.pi
        first, second = (blocks(classes, side, size, generator)[labels] for _ in range(2))
        return EPS * (angle.cos() * first + angle.sin() * second).sign()
    return EPS * textured(labels, kind, size, side, classes, generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="RESULTS.json")
    options = parser.parse_args()
    clean, test = ulfast.load_dataset("sample"), ulfast.load_dataset("sample", split="test")
    rows = []
    for name in ["clean", *options.only]:
        data = clean
        if name != "clean":
            images = ops.apply_perturbation(as_tensor(clean.images), noise(name, clean, options.seed).contiguous())
            data = Dataset(images.numpy(), clean.labels, clean.classes, name, "train", {"method": name})
        verdict = ulfast.diagnose(data, seed=options.seed).verdict
        result = ulfast.attack(
            data, test=test, method="none", model=options.model, recipe=options.recipe, seed=options.seed
        )
        rows.append({"noise": name, "verdict": verdict, "test_accuracy": result.test_accuracy})
        print(f"{name}: {100 * result.test_accuracy:.1f} % ({verdict})", flush=True)
        if options.out:
            about = {"environment": environment.describe(), "model": options.model, "recipe": options.recipe}
            text = json.dumps({**about, "images": len(clean), "seed": options.seed, "rows": rows}, indent=1)
            options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
