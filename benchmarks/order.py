"""Which of the two projections of `orthogonal-full` goes first, on images that carry two poisons.

    python benchmarks/order.py [--data cifar10] [--limit 10000] [--with lsp ops regions-4] [--json FILE]

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

import numpy as np
import torch
from torch import Tensor

import ulfast
from ulfast import environment, ops
from ulfast.analysis.diagnosis import linear_accuracy
from ulfast.data import Dataset

Map = Callable[[Tensor], Tensor]


def floats(data: Dataset) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data.images)).float().div_(255)


def pixel(data: Dataset) -> Map:
    rows = ulfast.fit_basis(data).rows
    return lambda x: ops.project(x, rows)


def patch(data: Dataset) -> Map:
    module = ulfast.PatchProjection(ulfast.fit_patches(data))
    return lambda x: torch.cat([module(part.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for part in x.split(500)])


def orders(data: Dataset, after: Callable[[Map], Dataset]) -> dict[str, Map]:
    """`after` gives the images that a map leaves, for the second one to be fitted to."""
    first, second = pixel(data), patch(data)
    pixel_after, patch_after = pixel(after(second)), patch(after(first))
    return {
        "neither": lambda x: x,
        "pixel space alone": first,
        "patches alone": second,
        "pixel space, then patches": lambda x: second(first(x)),
        "patches, then pixel space": lambda x: first(second(x)),
        "pixel space, then patches fitted to what it leaves": lambda x: patch_after(first(x)),
        "patches, then pixel space fitted to what they leave": lambda x: pixel_after(second(x)),
    }


def table(clean: Dataset, name: str) -> list[dict[str, float | str]]:
    one = ulfast.poison(clean, name, seed=0)
    both = ulfast.poison(one, "ar", seed=0)
    x = floats(both)
    noise = {name: floats(one) - floats(clean), "ar": x - floats(one)}

    def after(change: Map) -> Dataset:
        return Dataset(change(x).mul(255).round_().clamp_(0, 255).byte().numpy(), both.labels, both.classes)

    rows = []
    for order, change in orders(both, after).items():
        images = after(change)
        rows.append({
            "poison": name, "order": order, "linear": linear_accuracy(images, 0, None)[0],
            "patches": float(ulfast.fit_patches(images).spectrum[0]),
            **{f"left of {key}": float(change(d).square().sum() / d.square().sum()) for key, d in noise.items()},
        })  # fmt: skip
        linear, largest, *left = list(rows[-1].values())[2:]
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
