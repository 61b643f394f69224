"""`ulfast reproduce` of fit-start as a picture: what the start of the linear fit and its length decide (docs/fit.md).

    ulfast reproduce fit-start --out runs/fit-start
    python tools/fit_start.py runs/fit-start docs/images/fit-start.png

Above, from the grid: test accuracy recovered. Below, computed here: the share of the perturbations' energy that lies in
the basis, over the same steps and seeds.
"""

from __future__ import annotations

import json
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ulfast
from ulfast.poisons import perturbation
from ulfast.reproduce import GridResult

STEPS = (10, 30, 100, 300, 1000, 3000)
STYLE = {"zero": ("#1b6ca8", "o", "from zero"), "torch": ("#c8553d", "s", "from PyTorch's random default")}


def captured(clean: ulfast.Dataset, poison: str, init: str, steps: int, seed: int) -> float:
    """Share of the perturbations' energy in the span of the basis, 0 to 1."""
    poisoned = ulfast.poison(clean, poison, seed=seed)
    delta = perturbation(clean, poisoned).flatten(1)
    basis = ulfast.fit_basis(poisoned, init=init, steps=steps, seed=seed)
    return float((delta @ basis.rows.T).square().sum() / delta.square().sum())


def main(folder: str, out: str) -> None:
    result = GridResult.load(folder)
    poisons = [p.label for p in result.grid.poisons]
    clean = ulfast.load_dataset("sample")
    figure, axes = plt.subplots(2, len(poisons), figsize=(3.6 * len(poisons), 5.4), sharex=True, squeeze=False)
    table: dict[str, dict[str, list[float]]] = {}
    for column, poison in enumerate(poisons):
        above, below = axes[:, column]
        none = result.row(poison, "none")
        assert none is not None
        above.axhline(100 * none.mean, color="#777", linestyle=":", label="no attack")
        for init, (colour, mark, label) in STYLE.items():
            rows = [(s, result.row(poison, f"{init} {s}")) for s in STEPS]
            known = [(s, row) for s, row in rows if row is not None]
            spread = [100 * (row.std or 0) for _, row in known]
            above.errorbar([s for s, _ in known], [100 * row.mean for _, row in known], spread, color=colour,
                           marker=mark, label=label, capsize=3)  # fmt: skip
            shares = [[captured(clean, poison, init, s, seed) for seed in result.grid.seeds] for s in STEPS]
            below.errorbar(STEPS, [100 * statistics.mean(v) for v in shares], [100 * float(np.std(v)) for v in shares],
                           color=colour, marker=mark, capsize=3)  # fmt: skip
            table[f"{poison} {init}"] = {str(s): v for s, v in zip(STEPS, shares, strict=True)}
        above.set_title(poison)
        below.set_xscale("log")
        below.set_xlabel("steps of the fit (256 images each)")
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.set_ylim(0, None)
    axes[0, 0].set_ylabel("clean test accuracy, %")
    axes[1, 0].set_ylabel("perturbation energy in the basis, %")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    print(json.dumps(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
