"""Figures with matplotlib, without a display."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..runtime.files import atomic_file
from ..runtime.made import SIGNATURE, check_replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..analysis.diagnosis import Diagnosis
    from ..attacks.result import AttackResult
    from ..data.dataset import Dataset
    from ..profiling.measure import Timing
    from ..projection.basis import Basis

# Distinct in print, in gray and for the colour-blind (Okabe and Ito).
COLOURS = {"clean": "#009E73", "poisoned": "#D55E00", "attack": "#0072B2"}
STYLES = {"clean": "--", "poisoned": ":", "attack": "-"}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666", "#7B68EE", "#000000")
MAX_COLUMNS = 10
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # names of classes may hold dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


def _figure(width: float, height: float) -> Figure:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Any, path: Path, dpi: int = 150) -> None:
    """Writes a PNG (or what the suffix says), atomically, signed so that it may be replaced.

    Raises:
        InputError: a file is there that ulfast did not make.
    """
    import matplotlib

    check_replace(path)
    kind = path.suffix.lstrip(".").lower() or "png"
    signature = {"Software" if kind == "png" else "Creator": SIGNATURE}
    with matplotlib.rc_context(STYLE), atomic_file(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(part, dpi=dpi, format=kind, metadata=signature)


def _show(axis: Any, image: np.ndarray) -> None:
    picture = image.squeeze(-1) if image.shape[-1] == 1 else image
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype.kind == "f" else 255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _stacked(figure: Any, *heights: float) -> Any:
    """Parts of a figure, one below the other."""
    return figure.subfigures(len(heights), 1, height_ratios=heights)


def attack_figure(result: AttackResult, classes: tuple[str, ...]) -> Figure:
    """Test accuracy by epoch for every training, and below it what the linear model learned of each class."""
    import matplotlib
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        pictures = result.basis.images() if result.basis is not None else None
        count = 0 if pictures is None else min(len(pictures), MAX_COLUMNS)
        figure = _figure(7.2, 3.0 + (1.15 if count else 0))
        upper, lower = _stacked(figure, 3, 1.15) if count else (figure, None)
        axis = upper.subplots()
        labels = {
            "clean": "clean images",
            "poisoned": f"poisoned ({result.poison or 'as given'})",
            "attack": f"poisoned, {result.method}",
        }
        for name, rows in {**result.baseline_history, "attack": result.history}.items():
            seen = [row for row in rows if "test_accuracy" in row]
            accuracy, epochs = [100 * row["test_accuracy"] for row in seen], [row["epoch"] for row in seen]
            axis.plot(epochs, accuracy, STYLES[name], color=COLOURS[name], lw=2, label=labels[name])
            axis.annotate(
                f" {accuracy[-1]:.1f}",
                (epochs[-1], accuracy[-1]),
                color=COLOURS[name],
                va="center",
                fontweight="bold",
                annotation_clip=False,
            )
        axis.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(0, None), xlim=(1, None))
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(f"{result.model} on clean test images")
        axis.legend(loc="lower right")
        if lower is not None and pictures is not None:
            lower.suptitle(
                "what the linear model learned, and the projection removes",
                x=0.01,
                ha="left",
                fontsize=10,
                fontweight="bold",
            )
            for c, panel in enumerate(np.atleast_1d(lower.subplots(1, count))):
                _show(panel, pictures[c])
                panel.set_xlabel(classes[c] if len(pictures) == len(classes) else str(c), fontsize=7)
    return figure


def roofline_figure(rows: Sequence[Timing], top: dict[str, float]) -> Figure:
    """Arithmetic rate over arithmetic intensity of every case, under the machine's measured roof."""
    import matplotlib

    peak, bandwidth = top["sgemm_flops_per_s"] / 1e9, top["copy_bytes_per_s"] / 1e9
    shown = [row for row in rows if row.bytes and row.flops]
    intensity = [row.flops / row.bytes for row in shown]
    with matplotlib.rc_context(STYLE):
        figure = _figure(7.2, 4.2)
        axis = figure.subplots()
        low, high = min([0.1, *intensity]) / 2, max([10 * peak / bandwidth, *intensity]) * 2
        edges = np.geomspace(low, high, 200)
        axis.plot(edges, np.minimum(peak, bandwidth * edges), color="#333333", lw=2)
        axis.annotate(
            f"copy {bandwidth:.0f} GB/s",
            (low * 1.2, bandwidth * low * 1.2),
            rotation=32,
            fontsize=8,
            color="#333333",
            va="bottom",
        )
        axis.annotate(f"sgemm {peak:.0f} GFLOP/s", (high, peak), ha="right", va="bottom", fontsize=8, color="#333333")
        for i, (row, x) in enumerate(zip(shown, intensity, strict=True)):
            peer = row.flops / row.seconds[row.best_peer] / 1e9
            colour = CYCLE[i % len(CYCLE)]
            axis.plot([x, x], [peer, row.gflop_per_s], color=colour, lw=1, alpha=0.6)
            axis.plot(x, row.gflop_per_s, "o", color=colour, label=row.case)
            axis.plot(x, peer, "o", color=colour, mfc="white")
        axis.set(xscale="log", yscale="log", xlabel="flops a byte", ylabel="GFLOP/s", xlim=(low, high))
        axis.set_title("filled: ours; hollow: the best peer")
        axis.grid(color="#eeeeee")
        axis.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    return figure


def lines_figure(lines: dict[str, list[tuple[float, float]]], xlabel: str, ylabel: str, title: str) -> Figure:
    """Curves by name, each a list of (x, y), with their last value beside them in the legend."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = _figure(7.2, 3.4)
        axis = figure.subplots()
        for i, (name, points) in enumerate(lines.items()):
            x, y = zip(*points, strict=True)
            style = "-" if i < len(CYCLE) else "--"
            axis.plot(x, y, style, color=CYCLE[i % len(CYCLE)], lw=1.8, label=f"{name}  {y[-1]:.1f}")
        axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
        axis.set_title(title)
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def comparison_figure(
    clean: Dataset, poisoned: Dataset, *, seed: int = 0, title: str = "", per_class: int = 1
) -> Figure:
    """Rows clean, perturbation (rescaled to the largest value shown), poisoned; one column per class. With more
    images per class the three rows are repeated for each.
    """
    import matplotlib

    rng = np.random.default_rng(seed)
    columns = min(clean.num_classes, MAX_COLUMNS)
    picks = np.empty((per_class, columns), np.int64)
    for c in range(columns):
        rows = np.flatnonzero(clean.labels == c)
        touched = [i for i in rows[:200] if (clean.images[i] != poisoned.images[i]).any()]
        pool = touched if len(touched) >= per_class else rows
        picks[:, c] = rng.choice(pool, per_class, replace=len(pool) < per_class)
    before, after = clean.images[picks], poisoned.images[picks]
    difference = after.astype(np.float32) - before
    peak = max(float(np.abs(difference).max()), 1.0)
    shown = 0.5 + 0.5 * difference / peak
    names = ("clean", f"perturbation\n(\u00b1{peak:.0f} levels)", "poisoned")
    with matplotlib.rc_context(STYLE):
        figure = _figure(0.85 * columns + 1.1, 0.4 + 0.9 * 3 * per_class)
        axes = figure.subplots(3 * per_class, columns, squeeze=False)
        for row in range(3 * per_class):
            images = (before, shown, after)[row % 3][row // 3]
            for column in range(columns):
                _show(axes[row, column], images[column])
            axes[row, 0].set_ylabel(names[row % 3], rotation=0, ha="right", va="center", fontsize=8)
        for column in range(columns):
            axes[0, column].set_title(clean.classes[column][:12], fontsize=8, loc="center", fontweight="normal")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def basis_figure(basis: Basis, classes: tuple[str, ...]) -> Figure:
    """The learned weights of each class as pictures, ten per row."""
    import matplotlib

    pictures = basis.images()[:100]
    rows = -(-len(pictures) // MAX_COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = _figure(0.85 * min(len(pictures), MAX_COLUMNS) + 0.3, 1.05 * rows + 0.35)
        axes = figure.subplots(rows, min(len(pictures), MAX_COLUMNS), squeeze=False).ravel()
        for axis in axes[len(pictures) :]:
            axis.set_axis_off()
        for c, picture in enumerate(pictures):
            _show(axes[c], picture)
            axes[c].set_xlabel(classes[c] if len(pictures) <= len(classes) else str(c), fontsize=7)
        figure.suptitle(f"linear weights, rank {basis.rank}", x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def diagnosis_figure(diagnosis: Diagnosis, dataset: Dataset, seed: int = 0) -> Figure:
    """The patch spectrum with its thresholds, what the linear model learned, what marked images of the `dataset` have
    in common (`seed` draws some of them), and the leading patch directions.
    """
    import matplotlib

    from ..analysis.detail import patterns
    from ..projection.patches import PRESENT

    names = [name[:12] for name in dataset.classes]
    weights = list(diagnosis.linear.basis.images()[:MAX_COLUMNS])
    directions = list(diagnosis.patches.directions[:MAX_COLUMNS].permute(0, 2, 3, 1).numpy())
    common = list(patterns(dataset, diagnosis.detail, seed).items())[:MAX_COLUMNS]
    rows = [("linear weights of each class", weights, names if len(weights) <= len(names) else range(1, 11))]
    if common:
        title = f"what the {len(diagnosis.detail.images):,} marked images have in common, by class"
        rows += [(title, [_signed(p.numpy()) for _, p in common], [names[c] for c, _ in common])]
    title = "patch directions that differ most between classes"
    rows += [(title, [_signed(d) for d in directions], range(1, len(directions) + 1))]
    with matplotlib.rc_context(STYLE):
        figure = _figure(7.2, 2.8 + 1.2 * len(rows))
        upper, *lower = _stacked(figure, 2.6, *[1.2] * len(rows))
        axis = upper.subplots()
        values = diagnosis.patches.spectrum[:100].numpy()
        axis.bar(np.arange(1, len(values) + 1), values, color=np.where(values > PRESENT, "#D55E00", "#0072B2"))
        axis.axhline(PRESENT, color="#D55E00", ls=":", lw=1.5)
        axis.text(len(values), PRESENT, "poisoned from here ", color="#D55E00", ha="right", va="bottom", fontsize=8)
        axis.set(xlabel="direction", ylabel="eigenvalue", xlim=(0, len(values) + 1), ylim=(0, None))
        axis.set_title(f"{diagnosis.verdict}: how much the classes' patch statistics differ")
        for part, (title, images, labels) in zip(lower, rows, strict=True):
            part.suptitle(title, x=0.01, ha="left", fontsize=9, fontweight="bold")
            columns = max(len(images), min(MAX_COLUMNS, len(weights)))  # a few pictures as large as the row above
            panels = np.atleast_1d(part.subplots(1, columns))
            for panel in panels[len(images) :]:
                panel.set_axis_off()
            for panel, image, label in zip(panels, images, labels, strict=False):
                _show(panel, image)
                panel.set_xlabel(str(label), fontsize=7)
    return figure


def _signed(image: np.ndarray) -> np.ndarray:
    """Values around 0 as colours around gray, by the largest."""
    return 0.5 + 0.5 * image / max(float(np.abs(image).max()), 1e-12)
