"""The picture of README.md: what a poison adds to images and costs a network, from the saved result of the demo.

python experiments/front.py docs/images/front.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ulfast
from ulfast.report.pictures import COLOURS, STYLE

RESULT = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "attacks" / "demo.json"
CLASSES = (1, 2, 4, 7, 8)
NAMES = ("clean", "poison", "poisoned")


def main(target: str) -> None:
    clean = ulfast.load_dataset("sample")
    poisoned = ulfast.poison(clean, "lsp", seed=0)
    added = poisoned.images.astype(np.int16) - clean.images
    shown = (128 + added * (127 / np.abs(added).max())).astype(np.uint8)
    picked = [int(np.flatnonzero(clean.labels == label)[3]) for label in CLASSES]
    result = json.loads(RESULT.read_text())
    bars = {
        "trained on clean images": (result["baselines"]["clean"], COLOURS["clean"]),
        "on poisoned images": (result["baselines"]["poisoned"], COLOURS["poisoned"]),
        f"on poisoned images, {result['method']}": (result["test_accuracy"], COLOURS["attack"]),
    }
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(9.6, 3.3), facecolor="white")
        for row, (name, images) in enumerate(zip(NAMES, (clean.images, shown, poisoned.images), strict=True)):
            for column, i in enumerate(picked):
                axis = figure.add_axes((0.075 + 0.093 * column, 0.68 - 0.315 * row, 0.088, 0.29))
                axis.imshow(images[i], interpolation="nearest")
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
                if column == 0:
                    axis.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=6)
        axis = figure.add_axes((0.60, 0.05, 0.36, 0.78))
        axis.set_title("accuracy on clean test images", fontsize=10)
        for row, (name, (share, colour)) in enumerate(bars.items()):
            axis.barh(-row, 100 * share, height=0.42, color=colour)
            axis.text(0.8, 0.29 - row, name, va="bottom", color="#333333")
            axis.text(100 * share + 1.5, -row, f"{100 * share:.1f} %", va="center", weight="bold", color=colour)
        axis.set(xlim=(0, 78), ylim=(-2.4, 0.75), xticks=[], yticks=[])
        axis.spines["bottom"].set_visible(False)
        figure.savefig(target, dpi=150)


if __name__ == "__main__":
    main(sys.argv[1])
