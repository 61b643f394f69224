"""What the networks of a page make of images: their features in two dimensions, and the pixels that decide."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import torch

from ..analysis.inspection import plane, saliency
from ..attacks.checkpoints import outline_of, trained_network
from ..attacks.snapshots import Examples
from ..data.classes import matched
from ..data.dataset import Dataset
from ..data.load import load_named
from ..errors import InputError
from ..runtime.devices import same_generators
from ..runtime.progress import Progress
from ..training.refit import MakeLoader, features, head_of
from .collect import CLEAN, NONE, Entry, Table

POINTS, MOST_CLASSES = 500, 10
# Matplotlib's ten colours of categories, which read on light and on dark.
PALETTE = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd"),
    *("#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"),
)
BRIGHT = 99  # percentile of an image's saliency that is shown white


@dataclass
class Inspection:
    """What is shown of the networks.

    Attributes:
        test: clean test images whose features are shown. None: those of the package, for runs that were tested on them.
        features: "pca", "tsne" (needs scikit-learn) or "none".
        saliency: whether to show which pixels decide.
        device: that computes it.
        progress: called as ``progress("networks", done, total)``.
        left_out: why networks are missing, once this has run.
    """

    test: Dataset | None = None
    features: str = "pca"
    saliency: bool = True
    device: str = "auto"
    progress: Progress | None = None
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What a network makes of the images.

    Attributes:
        points: (n, 2) features of test images; labels (n,). None where there are no test images.
        variance: share that the points show, None for t-SNE.
        saliency: (k, H, W, 1) uint8 of the row's example images, whose classes are `classes`; None without them.
    """

    points: np.ndarray | None
    labels: np.ndarray
    variance: float | None
    saliency: np.ndarray | None
    classes: tuple[str, ...] = ()


def inspected(table: Table, asked: Inspection) -> dict[str, dict[str, Seen]]:
    """Poison -> name of a network -> what it sees, each poison's networks beside the one trained on clean images."""
    rows = {
        p: {a: table.values[p, a].entries[0] for a in table.attacks if (p, a) in table.values} for p in table.poisons
    }
    if asked.features == "none" and not asked.saliency:
        return {poison: {} for poison in rows}
    reference = rows.get(CLEAN, {}).get(NONE)
    for poison, entries in rows.items():
        if poison != CLEAN and reference is not None:
            rows[poison] = {CLEAN: reference, **entries}
    tests: dict[str, Dataset | None] = {}
    found: dict[str, dict[str, Seen]] = {}
    total, done = sum(map(len, rows.values())), 0
    with same_generators():
        for poison, entries in rows.items():
            found[poison] = {}
            examples = _examples([entry for name, entry in entries.items() if name != CLEAN])
            for name, entry in entries.items():
                seen = _seen(entry, examples, tests, asked)
                if seen is not None:
                    found[poison][name] = seen
                done += 1
                if asked.progress:
                    asked.progress("networks", done, total)
    return found


def _examples(entries: list[Entry]) -> Examples | None:
    """Images that the networks of a row were trained on."""
    paths = [entry.folder / "examples.npz" for entry in entries if entry.stage == "attack"]
    return next((Examples.load(path) for path in paths if path.is_file()), None)


def _seen(entry: Entry, examples: Examples | None, tests: dict[str, Dataset | None], asked: Inspection) -> Seen | None:
    result = entry.result
    outline = outline_of(result)
    try:
        network = trained_network(entry.folder, result, entry.stage, asked.device)
        if network is not None and asked.features != "none":
            head_of(network[0])
    except InputError as error:  # damaged, timm is not here, no linear layer: the rest of the page does without it
        asked.left_out.append(str(error))
        return None
    if network is None or outline is None:
        return None
    model, make, half = network
    points, labels, variance = None, np.empty(0, np.int64), None
    if asked.features != "none":
        key = str(result.config["data"].get("test_fingerprint"))
        if key not in tests:
            tests[key] = _test(entry, asked)
        test = tests[key]
        if test is not None:
            x, y = features(model, make(test), half)
            made, variance = plane(x, asked.features)
            points, labels = made.numpy(), y.cpu().numpy()
    looks = _saliency(model, make, examples, outline.classes) if examples is not None and asked.saliency else None
    return Seen(points, labels, variance, looks, examples.classes if examples is not None else ())


def _test(entry: Entry, asked: Inspection) -> Dataset | None:
    """Some test images of the first classes; None where those that the run was tested on are not at hand."""
    outline = outline_of(entry.result)
    assert outline is not None
    names = ("the run's images", "test images")
    if asked.test is not None:
        test = matched(outline, asked.test, names=names, part=True)
    else:
        test = load_named("sample", split="test")
        if outline.image_shape != test.image_shape or not set(test.classes) <= set(outline.classes):
            return None
        test = matched(outline, test, names=names, part=True)
        if test.fingerprint() != entry.result.config["data"].get("test_fingerprint"):
            return None
    test = test.subset(np.flatnonzero(test.labels < MOST_CLASSES))
    if len(test) < 2:
        return None
    return test.balanced(max(POINTS, test.num_classes))


def _saliency(
    model: torch.nn.Module, make: MakeLoader, examples: Examples, classes: tuple[str, ...]
) -> np.ndarray | None:
    """Of each image as gray pixels, its brightest white; None for images of classes that the network does not know."""
    if not set(examples.classes) <= set(classes):
        return None
    images = torch.from_numpy(examples.given.copy()).permute(0, 3, 1, 2).float().to(make.device) / 255
    labels = torch.tensor([classes.index(name) for name in examples.classes], device=make.device)
    found = saliency(model, images, labels, make.mean, make.std).cpu().numpy()
    peak = np.percentile(found, BRIGHT, axis=(1, 2), keepdims=True)
    shown: np.ndarray = (255 * np.clip(found / np.maximum(peak, 1e-12), 0, 1)).round().astype(np.uint8)
    return shown[..., None]


def scatter(seen: Seen) -> bytes:
    """The points as a PNG with a transparent ground, a colour for each class."""
    import matplotlib
    from matplotlib.figure import Figure

    assert seen.points is not None
    with matplotlib.rc_context({"axes.edgecolor": "#808080"}):
        figure = Figure(figsize=(2.4, 2.4), layout="constrained")
        axis = figure.subplots()
        colours = np.array(PALETTE)[seen.labels % len(PALETTE)]
        order = np.random.default_rng(0).permutation(len(colours))  # or the last class covers the others
        x, y = seen.points[order].T
        axis.scatter(x, y, s=10, c=colours[order], alpha=0.8, linewidths=0)
        axis.set(xticks=[], yticks=[])
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=125, transparent=True)
    return out.getvalue()
