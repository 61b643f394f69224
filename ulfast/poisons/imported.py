"""Published poisons as data sets: nine file layouts, read without running any code in them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, chunks
from ..data.readers.published import (
    LAYOUTS,
    OWN,
    ROUNDINGS,
    Entries,
    apply_entries,
    as_pixels,
    check_export,
    check_order,
    check_size,
    detect_layout,
    read_entries,
    read_own,
    read_pngs,
)
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.made import expand
from ..runtime.progress import Progress
from ..runtime.reading import reading
from .statistics import PerturbationStatistics

CHUNK_BYTES = 4 << 20  # of pixels; their sum in float64 takes eight times as much


@ordinary
def import_published(
    source: str | os.PathLike[str],
    base: Dataset | None = None,
    *,
    layout: str = "auto",
    rounding: str = "truncate",
    scale: float | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a published poison as a Dataset with the labels of the base and the poisoned pixels, byte for byte those of
    the programs that read such files.

    Files of the layouts in `OWN` have labels. If these differ from the base's, or there is no base, the files are a set
    in their own order, and a base supplies only the class names.

    Args:
        source: file or folder.
        base: the clean training images for which it was made, in their official order; the layouts in `OWN` need none.
        layout: one of `LAYOUTS`, or "auto".
        rounding: rounding of floats to pixels: "truncate", as in those programs, or "nearest".
        scale: factor for a perturbation in [-1, 1] that is stored without its bound, such as 8 / 255; it is first
            clipped to [-1, 1].
        name: name of the poison for the manifest (default: the file's).
        progress: called as ``progress("import", done, total)``.

    Raises:
        InputError: the layout or rounding is unknown; files are damaged or hold code; number, size, order or labels of
            the images differ from the base's; or values are neither pixels nor perturbations.
    """
    path = expand(source)
    with reading(path):
        return _imported(path, base, layout, rounding, scale, name, progress)


def _imported(
    path: Path,
    base: Dataset | None,
    layout: str,
    rounding: str,
    scale: float | None,
    name: str | None,
    progress: Progress | None,
) -> Dataset:
    if rounding not in ROUNDINGS:
        raise InputError(f"unknown rounding {rounding!r}: known are {', '.join(ROUNDINGS)}")
    found = layout if layout != "auto" else detect_layout(path)
    if found not in LAYOUTS:
        raise InputError(f"unknown layout {found!r}: known are auto, {', '.join(LAYOUTS)}")
    if scale is not None and (found in (*OWN, "png-index", "images-pt", "int8-pickle") or not 0 < scale <= 1):
        raise InputError(f"--scale {scale:g} must be in (0, 1], and is for perturbations in [-1, 1]: leave it out")
    parameters: dict[str, Any] = {"layout": found, "rounding": rounding} | ({"scale": scale} if scale else {})
    manifest: dict[str, Any] = {"method": name or path.stem, "parameters": parameters, "seed": None, "rate": 1.0}
    labels, classes = (base.labels, base.classes) if base is not None else (None, ())
    if found in OWN:
        if base is not None:
            check_export(path, base)
        entries, labels, classes = read_own(path, found, base)
    elif base is None:
        raise InputError(f"{path} has no labels and follows the order of a clean data set: give that with --base")
    elif found == "png-index":
        check_export(path, base)
        entries = Entries(read_pngs(path, base, progress), "images", "image", np.arange(len(base)))
    else:
        check_export(path, base)
        entries = read_entries(path, found, base, scale)
        check_size(entries, str(path))
    parameters |= {"kind": entries.kind, "per": entries.per}
    assert labels is not None
    images = np.empty((len(labels), *entries.values.shape[1:]), np.uint8)
    if base is None or not np.array_equal(labels, base.labels):
        for begin, stop in chunks(images, CHUNK_BYTES):
            images[begin:stop] = as_pixels(entries.values[begin:stop], entries.unit, rounding)
        parameters["kind"] = "images in their own order"
        manifest |= {"statistics": {"images": 0}, "source": {"name": path.name, "images": len(labels)}}
        title = base.name if base is not None else path.stem
        return Dataset(images, labels, classes, title, "train", manifest)
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
