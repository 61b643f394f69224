"""Poisons that other people published, as data sets: five layouts of files, read without running anything in them.

The files hold pixels or perturbations and follow the order of a base data set, which supplies the labels.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, chunks
from ..data.readers.published import (
    LAYOUTS,
    Entries,
    apply_entries,
    check_order,
    detect_layout,
    read_entries,
    read_pngs,
)
from ..errors import InputError
from ..runtime.progress import Progress
from .statistics import PerturbationStatistics


def import_published(
    source: str | os.PathLike[str],
    base: Dataset,
    *,
    layout: str = "auto",
    name: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """A published poison as a Dataset: the base's labels, the poisoned pixels.

    Args:
        source: file or folder.
        base: the clean training images it was made for, in their official order.
        layout: one of `LAYOUTS`, or "auto".
        name: of the poison, for the manifest (default: the file's).
        progress: called as ``progress("import", done, total)``.

    Raises:
        InputError: unknown layout; damaged files; files that hold code; another number, size or order of images than
            the base's; values that are neither pixels nor perturbations.
    """
    path = Path(source)
    found = layout if layout != "auto" else detect_layout(path)
    if found not in LAYOUTS:
        raise InputError(f"unknown layout {found!r}: known are auto, {', '.join(LAYOUTS)}")
    if found == "png-index":
        entries = Entries(read_pngs(path, base, progress), "images", "image")
    else:
        entries = read_entries(path, found, base)
    if entries.kind == "images":
        check_order(entries.values, base, path)
    statistics = PerturbationStatistics()
    images = np.empty(base.images.shape, np.uint8)
    for begin, stop in chunks(base.images, 16 << 20):
        clean = np.ascontiguousarray(base.images[begin:stop])
        images[begin:stop] = apply_entries(entries, clean, base.labels[begin:stop], begin)
        statistics.add(clean, images[begin:stop])
        if progress:
            progress("import", stop, len(base))
    manifest: dict[str, Any] = {
        "method": name or path.stem,
        "parameters": {"layout": found, "kind": entries.kind, "per": entries.per},
        "seed": None,
        "rate": 1.0,
        "statistics": statistics.summary(),
        "source": {"name": base.name, "split": base.split, "images": len(base), "sha256": base.checksum()},
    }
    return replace(base, images=images, manifest=manifest)
