"""Which of the two projections of `orthogonal-full` goes first, on images that carry two poisons.

    python experiments/order.py [--data cifar10] [--limit 10000] [--with lsp ops regions-4] [--json FILE]

Nothing is trained: for each order the held-out accuracy of a linear model on the images that come out (clean ones:
about 0.39), the largest eigenvalue of their smooth patches (clean: below 5), and the share of each poison's energy that
is left. Each projection is linear, so the last is exact.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn

import ulfast
from ulfast.analysis.evidence import linear_model
from ulfast.data import Dataset
from ulfast.ops.reference import unit
from ulfast.poisons import perturbation
from ulfast.runtime import environment


def pixel(data: Dataset) -> nn.Module:
    return ulfast.OrthogonalProjection(ulfast.fit_basis(data))


def patch(data: Dataset) -> nn.Module:
    return ulfast.PatchProjection(ulfast.fit_patches(data))


def orders(data: Dataset, after: Callable[[nn.Module], Dataset]) -> dict[str, nn.Module]:
    """`after` returns the images after one projection, to which the second is fitted."""
    first, second = pixel(data), patch(data)
    return {
        "neither": nn.Identity(),
        "pixel space alone": first,
        "patches alone": second,
        "pixel space, then patches": nn.Sequential(first, second),
        "patches, then pixel space": nn.Sequential(second, first),
        "pixel space, then patches fitted to what it leaves": nn.Sequential(first, patch(after(first))),
        "patches, then pixel space fitted to what they leave": nn.Sequential(second, pixel(after(second))),
    }


def table(clean: Dataset, name: str) -> list[dict[str, float | str]]:
    one = ulfast.poison(clean, name, seed=0)
    both = ulfast.poison(one, "ar", seed=0)
    x = unit(torch.from_numpy(both.images)).permute(0, 3, 1, 2)
    noise = [perturbation(*pair).permute(0, 3, 1, 2) for pair in ((clean, one), (one, both))]

    def after(change: nn.Module) -> Dataset:
        levels = change(x).mul(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        return Dataset(levels.contiguous().numpy(), both.labels, both.classes)

    rows: list[dict[str, float | str]] = []
    for order, change in orders(both, after).items():
        images = after(change)
        linear, largest = linear_model(images).accuracy, float(ulfast.fit_patches(images).spectrum[0])
        left = [float(change(d).square().sum() / d.square().sum()) for d in noise]
        rows.append(
            {
                "poison": name,
                "order": order,
                "linear": linear,
                "patches": largest,
                f"left of {name}": left[0],
                "left of ar": left[1],
            }
        )
        kept = " | ".join(f"{100 * v:.1f} %" for v in left)
        print(f"| {name} + ar | {order} | {linear:.3f} | {largest:.1f} | {kept} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--with", dest="poisons", nargs="+", default=["lsp", "ops", "regions-4"], metavar="POISON")
    parser.add_argument("--json", type=Path, help="write everything measured")
    asked = parser.parse_args()
    clean = ulfast.load_dataset(asked.data, limit=asked.limit)
    print("| images | order | linear model | smooth patches | left of the first | left of ar |")
    print("|---|---|---|---|---|---|")
    with torch.no_grad():
        rows = [row for name in asked.poisons for row in table(clean, name)]
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows, "environment": environment.describe()}, indent=1))


if __name__ == "__main__":
    main()
