"""One self-contained HTML page of results: no network, readable on a phone, in print, light and dark."""

from __future__ import annotations

import base64
import io
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from ..attacks.snapshots import Examples
from ..projection.basis import Basis
from ..runtime.files import atomic_file
from ..runtime.made import check_replace
from ..version import __version__
from .collect import CLEAN, NONE, Entry, Table, Value
from .networks import PALETTE, Inspection, Seen, inspected, scatter
from .text import cell

MOST_ROWS = 10  # of a basis
# Colours that are told apart in gray and by the colour-blind (Okabe and Ito); they read on light and on dark.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888", "#7B68EE")
DASHES = ("-", "--", "-.", ":")


def render(
    tables: list[Table], title: str = "Learning from unlearnable images", networks: Inspection | None = None
) -> str:
    """The page as text. `networks` says what to show of the trained networks; None: nothing."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(loader=PackageLoader("ulfast", "report"), autoescape=select_autoescape(default=True))
    environment.filters["percent"] = lambda share: "" if share is None else f"{100 * share:.1f} %"
    template = environment.get_template("page.html.j2")
    networks = networks or Inspection(features="none", saliency=False)
    shown = [_table(i, table, inspected(table, networks), networks.features) for i, table in enumerate(tables)]
    return template.render(
        title=title,
        tables=shown,
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def write(
    tables: list[Table],
    path: Path,
    title: str = "Learning from unlearnable images",
    networks: Inspection | None = None,
) -> None:
    """Renders to a file, atomically.

    Raises:
        InputError: a file is there that ulfast did not make.
    """
    check_replace(path)
    text = render(tables, title, networks)
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _table(number: int, table: Table, seen: dict[str, dict[str, Seen]], method: str) -> dict[str, Any]:
    entries = [e for value in table.values.values() for e in value.entries]
    rows: list[dict[str, Any]] = [
        {"poison": p, "cells": [_cell(table, p, a) for a in table.attacks], "key": f"row-{number}-{_slug(p)}"}
        for p in table.poisons
    ]
    return {
        "id": f"table-{number}",
        "title": table.title,
        "attacks": table.attacks,
        "rows": rows,
        "published": table.published_source if any(c["published"] for r in rows for c in r["cells"]) else "",
        "verdicts": [
            {"poison": v.poison, "text": v.sentence(), "key": f"row-{number}-{_slug(v.poison)}"}
            for v in table.verdicts()
        ],
        "poisons": [_poison(table, p, f"row-{number}-{_slug(p)}", seen[p]) for p in table.poisons],
        "method": {"pca": "PCA", "tsne": "t-SNE"}.get(method, ""),
        "legend": _legend(entries, seen),
        "runs": [_run(e) for e in entries],
        "classes": _classes(entries),
    }


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def _classes(entries: list[Entry]) -> int:
    return int(entries[0].result.config["data"]["classes"])


def _cell(table: Table, poison: str, attack: str) -> dict[str, Any]:
    value = table.values.get((poison, attack))
    published = table.published.get(poison, {}).get(attack)
    return {
        "text": cell(value),
        "mean": value.mean if value else None,
        "share": _share(table, value),
        "published": published,
        "key": value.entries[0].key if value else "",
        "tip": _tip(value),
    }


def _tip(value: Value | None) -> str:
    if value is None:
        return ""
    seeds = ", ".join(str(e.seed) for e in value.entries)
    return f"seed {seeds}" if len(value.entries) == 1 else f"{len(value.entries)} seeds: {seeds}"


def _share(table: Table, value: Value | None) -> float | None:
    """0 at chance, 1 at the accuracy of clean images (or the best there is)."""
    if value is None:
        return None
    low = 1 / _classes(list(value.entries))
    high = table.clean() or max(v.mean for v in table.values.values())
    return round(min(1.0, max(0.0, (value.mean - low) / max(high - low, 1e-9))), 3)


def _legend(entries: list[Entry], seen: dict[str, dict[str, Seen]]) -> list[tuple[str, str]]:
    """Classes of the points and their colours."""
    names = entries[0].result.config["data"].get("class_names", [])
    labels = {int(c) for row in seen.values() for one in row.values() for c in one.labels}
    return [(names[c], PALETTE[c]) for c in sorted(labels)]


def _poison(table: Table, poison: str, key: str, seen: dict[str, Seen]) -> dict[str, Any]:
    """Curves and pictures for a row."""
    values = {a: table.values[poison, a] for a in table.attacks if (poison, a) in table.values}
    first = {a: v.entries[0] for a, v in values.items()}
    return {
        "name": poison,
        "key": key,
        "curves": _curves(first),
        "strips": _strips(first),
        "looks": [
            _strip(f"{name}: looks at", one.saliency, ", ".join(one.classes))
            for name, one in seen.items()
            if one.saliency is not None
        ],
        "planes": _planes(seen, values, table),
        "about": _about(first),
    }


def _about(entries: dict[str, Entry]) -> str:
    """The poison's parameters and size, from the manifest."""
    for entry in entries.values():
        manifest = entry.result.config["data"]["manifest"]
        if entry.stage == "attack" and manifest.get("method"):
            size = manifest.get("statistics") or {}
            parts = [manifest["method"], *(f"{k} {_short(v)}" for k, v in manifest.get("parameters", {}).items())]
            if manifest.get("rate", 1) < 1:
                parts.append(f"rate {manifest['rate']:g}")
            if size.get("l2_mean") is not None:
                parts.append(f"L2 {size['l2_mean']:.2f}, largest change {255 * size['linf_max']:.0f} levels")
            if size.get("psnr_db"):
                parts.append(f"PSNR {size['psnr_db']:.1f} dB")
            return ", ".join(parts)
    return ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _curves(entries: dict[str, Entry]) -> str:
    """Test accuracy by epoch for every attack, an SVG as a data address."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    gray = "#808080"
    style = {
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": gray,
        "text.parse_math": False,
        "axes.edgecolor": gray,
        "axes.labelcolor": gray,
        "xtick.color": gray,
        "ytick.color": gray,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "ulfast",
    }
    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.4, 2.9), layout="constrained")
        axis = figure.subplots()
        for i, (attack, entry) in enumerate(entries.items()):
            rows = [row for row in entry.history if "test_accuracy" in row]
            axis.plot(
                [row["epoch"] for row in rows],
                [100 * row["test_accuracy"] for row in rows],
                DASHES[i // len(COLOURS) % len(DASHES)],
                marker="o",
                ms=3,
                lw=1.8,
                color=COLOURS[i % len(COLOURS)],
                label=attack,
            )
        axis.set(xlabel="epoch", ylabel="test accuracy, %", ylim=(0, None))
        axis.grid(axis="y", color=gray, alpha=0.25)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _strips(entries: dict[str, Entry]) -> list[dict[str, str]]:
    """Rows of pictures: clean, perturbation, poisoned, what an attack learned from, what it removed."""
    strips: list[dict[str, str]] = []
    shown = False
    for attack, entry in entries.items():
        path = entry.folder / "examples.npz"
        if entry.stage != "attack" or not path.is_file():
            continue
        found = Examples.load(path)
        names = ", ".join(found.classes)
        if not shown:
            shown = True
            changed = found.clean is not None and not np.array_equal(found.clean, found.given)
            if found.clean is not None and changed:
                difference = found.given.astype(np.float32) - found.clean
                peak = max(1.0, float(np.abs(difference).max()))
                scaled = (127.5 + 127.5 * difference / peak).round().astype(np.uint8)
                strips.append(_strip("clean", found.clean, names))
                strips.append(_strip(f"perturbation, ±{peak:.0f} levels", scaled, names))
            strips.append(_strip("poisoned" if changed else "images", found.given, names))
        if not np.array_equal(found.learned, found.given):
            strips.append(_strip(f"after {attack}", found.learned, names))
        basis = entry.folder / "basis.safetensors"
        if basis.is_file():
            pictures = Basis.load(basis).images()[:MOST_ROWS]
            strips.append(_strip(f"{attack}: removed", (pictures * 255).round().astype(np.uint8), names))
    return strips


def _planes(seen: dict[str, Seen], values: dict[str, Value], table: Table) -> list[dict[str, str]]:
    """A scatter plot for each network, with what stands below it."""
    found = []
    for name, one in seen.items():
        if one.points is not None:
            value = values.get(name) or table.values.get((CLEAN, NONE))
            shown = "" if one.variance is None else f", {100 * one.variance:.0f} % of the variance"
            source = "data:image/png;base64," + base64.b64encode(scatter(one)).decode()
            found.append({"name": name, "accuracy": cell(value), "shown": shown, "src": source})
    return found


def _strip(title: str, images: np.ndarray, names: str) -> dict[str, str]:
    """Images side by side as one PNG, a transparent line between them."""
    from PIL import Image

    _, height, width, channels = images.shape
    gap = max(1, width // 16)
    canvas = np.zeros((height, len(images) * (width + gap) - gap, 4), np.uint8)
    for i, image in enumerate(images):
        at = i * (width + gap)
        canvas[:, at : at + width, :3] = image if channels == 3 else np.repeat(image, 3, axis=2)
        canvas[:, at : at + width, 3] = 255
    out = io.BytesIO()
    Image.fromarray(canvas).save(out, "PNG", optimize=True)
    return {
        "title": title,
        "names": names,
        "count": str(len(images)),
        "src": "data:image/png;base64," + base64.b64encode(out.getvalue()).decode(),
    }


def _run(entry: Entry) -> dict[str, Any]:
    """A line of the table of runs, and everything that was written of it."""
    result, attack = entry.result, entry.stage == "attack"
    details = {"config": result.config, "environment": result.environment, "notes": result.notes if attack else {}}
    return {
        "key": entry.key,
        "poison": entry.poison,
        "attack": entry.attack,
        "seed": entry.seed,
        "test": entry.accuracy,
        "train": result.train_accuracy if attack else entry.history[-1]["train_accuracy"],
        "fit": result.seconds.get("fit", 0) + result.seconds.get("project", 0) if attack else 0,
        "seconds": result.seconds["train"] if attack else sum(row["seconds"] for row in entry.history),
        "rate": result.images_per_second if attack else entry.history[-1]["images_per_second"],
        "commit": result.environment.get("commit") or "",
        "folder": entry.folder.name,
        "details": json.dumps(details, indent=1, ensure_ascii=False),
        "baseline": entry.poison == CLEAN and entry.attack == NONE,
    }
