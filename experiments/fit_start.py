"""The grid fit-start as a picture: the effect of the start and length of the linear fit (docs/research/fit.md).

    ulfast reproduce fit-start --out runs/fit-start
    python experiments/fit_start.py runs/fit-start docs/images/fit-start.png

Above, from the grid: test accuracy recovered. Below, computed here over the same steps and seeds: the share of the
perturbations' energy that lies in the basis, and the share of the energy of the class means' differences. Prints both,
and how much of the weights' energy the start still has.
"""

from __future__ import annotations

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

import ulfast
from ulfast.data.class_moments import class_moments
from ulfast.grids.run import GridResult
from ulfast.poisons import perturbation

STEPS = (10, 30, 100, 300, 1000, 3000)
STYLE = {"zero": ("#1b6ca8", "o", "from zero"), "torch": ("#c8553d", "s", "from PyTorch's random default")}


def case(clean: ulfast.Dataset, poison: str, seed: int) -> tuple[ulfast.Dataset, tuple[Tensor, Tensor], int]:
    """The poisoned images, their perturbations (n, d), the differences of their class means (c, d), and the seed."""
    poisoned = ulfast.poison(clean, poison, seed=seed)
    means = class_moments(poisoned).means().float()
    return poisoned, (perturbation(clean, poisoned).flatten(1), means - means.mean(0)), seed


def shares(
    poisoned: ulfast.Dataset, parts: tuple[Tensor, Tensor], seed: int, init: str, steps: int
) -> tuple[float, float, float]:
    """The share of the energy of each of the `parts` in the basis, and of the weights' energy due to their start."""
    basis = ulfast.fit_basis(poisoned, init=init, steps=steps, seed=seed)
    assert basis.weights is not None
    # PyTorch draws rows whose squares sum to a third.
    start = poisoned.num_classes / 3 if init == "torch" else 0.0
    taken = [float((x @ basis.rows.T).square().sum() / x.square().sum()) for x in parts]
    return taken[0], taken[1], start / float(basis.weights.square().sum())


def main(folder: str, out: str) -> None:
    result = GridResult.load(folder)
    poisons = [p.label for p in result.grid.poisons]
    clean = ulfast.load_dataset("sample")
    figure, axes = plt.subplots(3, len(poisons), figsize=(3.6 * len(poisons), 7.6), sharex=True, squeeze=False)
    table: dict[str, dict[str, list[list[float]]]] = {}
    for column, poison in enumerate(poisons):
        above, *below = axes[:, column]
        none = result.row(poison, "none")
        assert none is not None
        cases = [case(clean, poison, seed) for seed in result.grid.seeds]
        above.axhline(100 * none.mean, color="#777", linestyle=":", label="no attack")
        for init, (colour, mark, label) in STYLE.items():
            rows = [(s, result.row(poison, f"{init} {s}")) for s in STEPS]
            known = [(s, row) for s, row in rows if row is not None]
            spread = [100 * (row.std or 0) for _, row in known]
            above.errorbar(
                [s for s, _ in known],
                [100 * row.mean for _, row in known],
                spread,
                color=colour,
                marker=mark,
                label=label,
                capsize=3,
            )
            found = np.array([[shares(*c, init, s) for c in cases] for s in STEPS])
            for axis, part in zip(below, (100 * found[:, :, 0], 100 * found[:, :, 1]), strict=True):
                axis.errorbar(STEPS, part.mean(1), part.std(1, ddof=1), color=colour, marker=mark, capsize=3)
            table[f"{poison} {init}"] = {str(s): v.T.tolist() for s, v in zip(STEPS, found, strict=True)}
        above.set_title(poison)
        below[-1].set_xscale("log")
        below[-1].set_xlabel("steps of the fit (256 images each)")
        for axis in (above, *below):
            axis.grid(alpha=0.3)
            axis.set_ylim(0, None)
    axes[0, 0].set_ylabel("clean test accuracy, %")
    axes[1, 0].set_ylabel("perturbation taken, %")
    axes[2, 0].set_ylabel("class means taken, %")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    print(json.dumps(table))


if __name__ == "__main__":
    main(*sys.argv[1:])
