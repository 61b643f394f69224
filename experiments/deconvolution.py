"""How well the filters of `cuda` are inferred from images, and the images restored (docs/research/deconvolution.md).

    python experiments/deconvolution.py [--data NAME=PATH[:SIDE] ...] [--limit 5000] [--json FILE]

Without --data, the images that come with the package. SIDE resizes. From 96 px on the filters are 9 x 9, as published.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ulfast
from ulfast import ops
from ulfast.analysis.border import dark_border
from ulfast.projection.deconvolution import fit_class_filters
from ulfast.runtime import environment

CUT = 4  # pixels of border that are not compared


def true_filters(data: ulfast.Dataset, seed: int) -> np.ndarray:
    """The kernels that `cuda` draws, (c, K, K), each with sum one."""
    large = min(data.image_shape[:2]) >= 96
    side, blur = (9, 0.06) if large else (3, 0.3)
    u = ops.philox_uniform(seed, ops.philox.STREAM_CUDA, 0, data.num_classes, side * side + 1)
    kernels = u[:, :-1] * blur
    one = (u[:, -1] * side * side).long().clamp_max(side * side - 1)
    kernels[torch.arange(len(kernels)), one] = 1.0
    filters = kernels.view(-1, side, side).double().numpy()
    return filters / filters.sum((1, 2), keepdims=True)


def psnr(images: np.ndarray, clean: np.ndarray, cut: int, shift: tuple[int, int] = (0, 0)) -> float:
    """PSNR in decibels, each image optimally scaled, without `cut` pixels at its border, shifted back by `shift`."""
    want = clean[:, cut:-cut, cut:-cut].astype(float)
    got = np.roll(images, shift, (1, 2))[:, cut:-cut, cut:-cut].astype(float)
    scale = (got * want).sum((1, 2, 3), keepdims=True) / np.square(got).sum((1, 2, 3), keepdims=True).clip(1e-9)
    return float(-10 * np.log10(np.square((got * scale - want) / 255).mean()))


def measured(data: ulfast.Dataset, rate: float, seed: int = 0) -> dict[str, Any]:
    poisoned = ulfast.poison(data, "cuda", seed=seed, rate=rate)
    border, filters = dark_border(poisoned), true_filters(data, seed)
    start = time.perf_counter()
    found = fit_class_filters(poisoned, border.width)
    fit_seconds = time.perf_counter() - start
    restored = found.undo(poisoned, np.arange(len(poisoned)))
    changed = (np.asarray(poisoned.images) != np.asarray(data.images)).any((1, 2, 3))
    before, after = [], []
    for c, kernel in enumerate(filters):
        own = changed & (data.labels == c)
        if own.any():
            clean = np.asarray(data.images[own])
            middle = len(kernel) // 2
            y, x = (int(i) - middle for i in np.unravel_index(int(kernel.argmax()), kernel.shape))
            before.append(psnr(np.asarray(poisoned.images[own]), clean, middle + CUT, (y, x)))
            after.append(psnr(restored[own], clean, middle + CUT))
    error = np.abs(found.kernels - filters)
    return {
        "images": len(data),
        "shape": list(data.image_shape),
        "classes": data.num_classes,
        "rate": rate,
        "clean_share": dark_border(data).share,
        "share": border.share,
        "width": border.width,
        "kernel_error_mean": float(error.mean()),
        "kernel_error_max": float(error.max()),
        "found": float(found.convolved[changed].mean()),
        "false": float(found.convolved[~changed].mean()) if (~changed).any() else None,
        "psnr_before": float(np.mean(before)),
        "psnr_after": float(np.mean(after)),
        "psnr_after_least": float(np.min(after)),
        "fit_seconds": fit_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=["sample=sample"])
    parser.add_argument("--rates", nargs="*", type=float, default=[1.0, 0.1])
    parser.add_argument("--limit", type=int, default=5000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for text in options.data:
        name, _, where = text.partition("=")
        path, _, side = where.partition(":")
        data = ulfast.load_dataset(path, limit=options.limit, resize=int(side) if side else None)
        for rate in options.rates:
            rows.append({"name": name, **measured(data, rate)})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        text = json.dumps({"environment": environment.describe(), "seed": 0, "rows": rows}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
