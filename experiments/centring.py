"""How the class means of photographs differ, coefficient by coefficient, and how those of poisoned images do.

    python experiments/centring.py --data sample --data FOLDER[:SIDE[:LIMIT]] ... [--whole] [--out RESULTS.json]

For every data set, clean and poisoned: the ratio of the variance of the class means to the variance within a class in
the cosine transform (`ulfast.projection.centring`), averaged over coefficients of similar rank, what is subtracted for
it, and the share of the variance within classes that the projection (`partial`) would take. SIDE resizes the images.
With `--whole` a network is trained on the sample images of every kind less the whole difference of their class's mean
to the mean of all, photographs' part too.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import ulfast
from ulfast.projection.centring import class_ratios, fit_class_patterns, natural_ratios
from ulfast.projection.other_fits import partial_rows, share_taken
from ulfast.runtime import environment

# Ranks between which the ratios are averaged.
EDGES = (0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
POISONS = ("lsp", "ops", "regions-4", "regions-16", "cwrandom")


def averaged(values: np.ndarray) -> list[float]:
    return [float(values[a:b].mean()) for a, b in zip(EDGES, (*EDGES[1:], len(values)), strict=True) if a < len(values)]


def measured(data: ulfast.data.Dataset, name: str, poison: str, seed: int) -> dict[str, Any]:
    found = class_ratios(data, seed)
    row = {
        "data": name,
        "poison": poison,
        "images": len(data),
        "classes": len(found.present),
        "side": data.image_shape[0],
        "few": float((1 / found.counts).mean()),
        "ratios": averaged(found.ratios),
        **fit_class_patterns(data, seed).metadata,
    }
    shown = " ".join(f"{value:.3f}" for value in row["ratios"])
    rows = partial_rows(ulfast.fit_basis(data, seed=seed), data)
    row["projection_takes"] = share_taken(rows, data)
    print(
        f"{name} {poison}: {shown}; takes {row['projection_takes']:.3f}; norm {row['norm']:.2f}",
        flush=True,
    )
    return row


def whole(data: ulfast.data.Dataset) -> ulfast.data.Dataset:
    """The images less the difference of their class's mean to the mean of the classes."""
    means = np.stack([data.images[data.labels == c].mean(0) for c in range(data.num_classes)])
    moved = data.images - (means - means.mean(0))[data.labels]
    return replace(data, images=np.clip(np.rint(moved), 0, 255).astype(np.uint8))


def trained(poisons: list[str], seed: int) -> list[dict[str, Any]]:
    """Test accuracy of `cnn`, recipe `quick`, without the whole difference."""
    clean, test = ulfast.load_dataset("sample"), ulfast.load_dataset("sample", split="test")
    rows = []
    for name in ["clean", *poisons]:
        data = clean if name == "clean" else ulfast.poison(clean, name, seed=seed)
        result = ulfast.attack(whole(data), test=test, method="none", model="cnn", recipe="quick", seed=seed)
        rows.append({"poison": name, "test_accuracy": result.test_accuracy})
        print(f"whole difference subtracted, {name}: {100 * result.test_accuracy:.1f} %", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", metavar="FOLDER[:SIDE[:LIMIT]]")
    parser.add_argument("--poisons", nargs="*", default=list(POISONS))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="RESULTS.json")
    options = parser.parse_args()
    rows = []
    for given in options.data or ["sample"]:
        source, *rest = given.split(":")
        side, limit = (int(part) if part else None for part in (*rest, "", "")[:2])
        data = ulfast.load_dataset(source, resize=side, limit=limit)
        name = f"{Path(source).name}, {data.image_shape[0]} px"
        rows.append(measured(data, name, "clean", options.seed))
        for poison in options.poisons:
            rows.append(measured(ulfast.poison(data, poison, seed=options.seed), name, poison, options.seed))
    if options.out:
        about: dict[str, Any] = {"environment": environment.describe(), "seed": options.seed, "edges": EDGES}
        about["whole"] = trained(options.poisons, options.seed) if options.whole else []
        law = averaged(natural_ratios(2 * EDGES[-1]))
        options.out.write_text(json.dumps({**about, "law": law, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
