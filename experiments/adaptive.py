"""Noise that the projection in patch space was not made for, and noise made against it.

    python experiments/adaptive.py [--only NAME ...] [--attacks none orthogonal-patch] [--limit 10000] [--json FILE]

- `linf`: the published noise, scaled to 8/255 of the largest value instead of norm 1.
- `windows-2`, `windows-4`: recurrences over 2 x 2 and 4 x 4 pixels instead of 3 x 3.
- `smooth`: coefficient windows picked out of ten sets for how well their noise hides in the spectrum of photographs,
  by somebody who knows how the projection is fitted.
- `shifted`: no recurrence: every class has a pattern that is moved about at random, with wrap-around, all of one power
  spectrum. Second moments of patches are then the same in all classes, so the fit finds nothing by construction.

All with L2 norm 1 but `linf`, `resnet18-16`, crop without flips. A cell takes minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor
from torch.nn import functional as F

import ulfast
from ulfast import ops
from ulfast.data import Dataset
from ulfast.poisons.ar import find_coefficients, judge, save_coefficients
from ulfast.projection.patches import PATCH, RIDGE, fit_patches
from ulfast.runtime import environment

SIGNALS, LARGEST_NORM = 3, 50.0  # as in the search of the published generator
SETS = 10  # coefficient sets from which `smooth` picks
BUMPS = 6  # copies of a class's pattern in an image, for `shifted`


def recurrence(windows: Tensor, n: int, side: int, generator: torch.Generator) -> Tensor:
    """(m, n, side, side): signals of (m, K, K) windows whose last value is not used."""
    m, k, _ = windows.shape
    x = torch.randn(m, n, side + 4, side + 4, generator=generator)
    weights = windows.reshape(m, 1, k * k)[..., :-1]
    for i in range(k - 1, side + 4):
        for j in range(k - 1, side + 4):
            before = x[:, :, i - k + 1 : i + 1, j - k + 1 : j + 1].reshape(m, n, k * k)[..., :-1]
            x[:, :, i, j] = (before * weights).sum(-1)
    return x[:, :, 4:, 4:]


def stable(k: int, count: int, side: int, generator: torch.Generator) -> Tensor:
    """`count` windows of k x k by the published rejection: finite, and no larger than 50 in three channels."""
    kept = torch.empty(0, k, k)
    while len(kept) < count:
        drawn = torch.randn(64, k * k - 1, generator=generator)
        windows = F.pad(drawn / drawn.sum(1, keepdim=True), (0, 1)).view(-1, k, k)
        norms = recurrence(windows, SIGNALS, side, generator).flatten(2).norm(dim=2)
        fine = torch.isfinite(norms).all(1) & (norms.amax(1) <= LARGEST_NORM / math.sqrt(3))
        kept = torch.cat([kept, windows[fine]])
    return kept[:count]


def added(data: Dataset, noise: Callable[[Tensor], Tensor], name: str) -> Dataset:
    """`noise` makes (n, H, W, 3) from (n,) labels; each image is scaled to norm 1."""
    labels = torch.from_numpy(data.labels)
    delta = noise(labels)
    delta /= delta.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    images = ops.apply_perturbation(torch.from_numpy(data.images), delta)
    return Dataset(images.numpy(), data.labels, data.classes, name, "train", {"method": name})


def other_windows(data: Dataset, k: int, seed: int) -> Dataset:
    side, generator = data.image_shape[0], torch.Generator().manual_seed(seed)
    windows = stable(k, 3 * data.num_classes, side, generator).view(-1, 3, k, k)

    def noise(labels: Tensor) -> Tensor:
        out = torch.empty(len(labels), side, side, 3)
        for c, own in enumerate(windows):
            rows = labels == c
            out[rows] = recurrence(own, int(rows.sum()), side, generator).permute(1, 2, 3, 0)
        return out

    return added(data, noise, f"windows-{k}")


def visibility(windows: Tensor, data: Dataset) -> Tensor:
    """(m,): the largest share of noise from (m, 1, 3, 3) windows in any direction of a photograph's patches."""
    gray = torch.from_numpy(data.images[:2000]).float().mean(3, keepdim=True).permute(0, 3, 1, 2) / 255

    def covariance(x: Tensor) -> Tensor:
        patches = F.unfold(x, PATCH, stride=3).transpose(1, 2).reshape(-1, PATCH * PATCH)
        return torch.cov(patches.T.double(), correction=0)

    values, vectors = torch.linalg.eigh(covariance(gray))
    whiten = (vectors * (values.clamp_min(0) + RIDGE).rsqrt()) @ vectors.T
    size = data.image_shape[:2]
    found = []
    for c in range(len(windows)):
        labels = torch.full((200,), c)
        signals = ops.perturb_ar(labels, windows, seed=1, first=0, size=size, kind="l2", norm=1 / math.sqrt(3))
        found.append(torch.linalg.eigvalsh(whiten @ covariance(signals.permute(0, 3, 1, 2)) @ whiten)[-1])
    return torch.stack(found)


def smooth(data: Dataset, seed: int) -> Dataset:
    every = torch.cat([find_coefficients(data.num_classes, 100 + s) for s in range(SETS)]).reshape(-1, 1, 3, 3)
    order = visibility(every, data).argsort()[: 3 * data.num_classes]
    mixed = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
    windows = every[mixed].view(data.num_classes, 3, 3, 3)
    print(f"smooth: {judge(windows, data.image_shape[:2])}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save_coefficients(windows, Path(folder) / "windows.json")
        return ulfast.poison(data, "ar", seed=seed, coefficients=str(Path(folder) / "windows.json"))


def shifted(data: Dataset, seed: int) -> Dataset:
    side, generator = data.image_shape[0], torch.Generator().manual_seed(seed)
    # A class's own phases on one spectrum, that of a 5 x 5 pattern: every class has the same second moments.
    pattern = torch.zeros(side, side)
    pattern[:5, :5] = torch.randn(5, 5, generator=generator)
    pattern[:5, :5] -= pattern[:5, :5].mean()
    own = torch.zeros(data.num_classes, 3, side, side)
    own[..., :5, :5] = torch.randn(data.num_classes, 3, 5, 5, generator=generator)
    phases = torch.fft.rfft2(own)
    kernels = torch.fft.irfft2(torch.fft.rfft2(pattern).abs() * phases / phases.abs().clamp_min(1e-9), s=(side, side))

    def noise(labels: Tensor) -> Tensor:
        places = torch.zeros(len(labels), side * side)
        chosen = torch.rand(len(labels), side * side, generator=generator).topk(BUMPS, dim=1).indices
        places.scatter_(1, chosen, 1.0)
        spectrum = torch.fft.rfft2(places.view(-1, 1, side, side)) * torch.fft.rfft2(kernels)[labels]
        return torch.fft.irfft2(spectrum, s=(side, side)).permute(0, 2, 3, 1).contiguous()

    return added(data, noise, "shifted")


VARIANTS: dict[str, Callable[[Dataset, int], Dataset]] = {
    "linf": lambda data, seed: ulfast.poison(data, "ar", seed=seed, norm="linf"),
    "windows-2": lambda data, seed: other_windows(data, 2, seed),
    "windows-4": lambda data, seed: other_windows(data, 4, seed),
    "smooth": smooth,
    "shifted": shifted,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--attacks", nargs="*", default=["none", "orthogonal-patch"])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--model", default="resnet18-16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clean = ulfast.load_dataset(options.data, limit=options.limit)
    test = ulfast.load_dataset(options.data, split="test")
    rows = []
    print(f"| noise | largest eigenvalue | directions | {' | '.join(options.attacks)} |", flush=True)
    print("|---|---|---|" + "---|" * len(options.attacks), flush=True)
    for name in options.only:
        poisoned = VARIANTS[name](clean, options.seed)
        found = fit_patches(poisoned, seed=options.seed)
        row = {"noise": name, "largest": found.metadata["largest"], "directions": found.rank}
        for attack in options.attacks:
            result = ulfast.attack(
                poisoned,
                test=test,
                method=attack,
                model=options.model,
                recipe="quick-noflip",
                seed=options.seed,
                evaluate_every=4,
            )
            row[attack] = result.test_accuracy
        rows.append(row)
        accuracies = " | ".join(f"{100 * row[attack]:.1f}" for attack in options.attacks)
        print(f"| {name} | {row['largest']:.1f} | {found.rank} | {accuracies} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"environment": environment.describe(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
