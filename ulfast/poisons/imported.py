"""Poisons that other people published, as data sets: seven layouts of files, read without running anything in them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, chunks
from ..data.readers.published import (
    LAYOUTS,
    ROUNDINGS,
    Entries,
    apply_entries,
    as_pixels,
    check_export,
    check_order,
    detect_layout,
    read_entries,
    read_ntga,
    read_pngs,
)
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.progress import Progress
from .statistics import PerturbationStatistics

CHUNK_BYTES = 4 << 20  # of pixels; the sum in float64 takes eight times as much


@ordinary
def import_published(
    source: str | os.PathLike[str],
    base: Dataset,
    *,
    layout: str = "auto",
    rounding: str = "truncate",
    name: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """A published poison as a Dataset: the base's labels, the poisoned pixels, byte for byte those of the programs that
    read such files.

    NTGA's images come in an order of their own, with labels that differ from the base's: then these are the labels, and
    the base gives the names of the classes alone.

    Args:
        source: file or folder.
        base: the clean training images it was made for, in their official order.
        layout: one of `LAYOUTS`, or "auto".
        rounding: of floats to pixels: "truncate", as those programs do, or "nearest".
        name: of the poison, for the manifest (default: the file's).
        progress: called as ``progress("import", done, total)``.

    Raises:
        InputError: unknown layout or rounding; damaged files; files that hold code; another number, size, order or
            other labels of images than the base's; values that are neither pixels nor perturbations.
    """
    path = Path(source)
    if rounding not in ROUNDINGS:
        raise InputError(f"unknown rounding {rounding!r}: known are {', '.join(ROUNDINGS)}")
    found = layout if layout != "auto" else detect_layout(path)
    if found not in LAYOUTS:
        raise InputError(f"unknown layout {found!r}: known are auto, {', '.join(LAYOUTS)}")
    check_export(path, base)
    labels = base.labels
    if found == "png-index":
        entries = Entries(read_pngs(path, base, progress), "images", "image", np.arange(len(base)))
    elif found == "ntga-npy":
        entries, labels = read_ntga(path, base)
    else:
        entries = read_entries(path, found, base)
    manifest: dict[str, Any] = {
        "method": name or path.stem,
        "parameters": {"layout": found, "kind": entries.kind, "per": entries.per, "rounding": rounding},
        "seed": None,
        "rate": 1.0,
    }
    images = np.empty((len(labels), *base.image_shape), np.uint8)
    if not np.array_equal(labels, base.labels):
        for begin, stop in chunks(images, CHUNK_BYTES):
            images[begin:stop] = as_pixels(entries.values[begin:stop], entries.unit, rounding)
        manifest["parameters"]["kind"] = "images in their own order"
        manifest |= {"statistics": {"images": 0}, "source": {"name": path.name, "images": len(labels)}}
        return replace(base, images=images, labels=labels, manifest=manifest)
    if entries.kind == "images":
        check_order(entries, base, path)
    statistics = PerturbationStatistics()
    for begin, stop in chunks(images, CHUNK_BYTES):
        clean = np.ascontiguousarray(base.images[begin:stop])
        images[begin:stop] = apply_entries(entries, clean, begin, rounding)
        statistics.add(clean, images[begin:stop])
        if progress:
            progress("import", stop, len(base))
    manifest |= {
        "statistics": statistics.summary(),
        "source": {"name": base.name, "split": base.split, "images": len(base), "sha256": base.checksum()},
    }
    return replace(base, images=images, manifest=manifest)
