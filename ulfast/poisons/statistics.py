"""The size of a perturbation: L0, L2, L-infinity, PSNR, SSIM, clipped pixels; streamed, in constant memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import ops
from ..data.dataset import Dataset
from ..data.tensors import as_tensor

SSIM_IMAGES = 200  # per class


class PerturbationStatistics:
    """Accumulates statistics over batches of clean and poisoned uint8 images, after rounding and clipping.

    L0 counts pixel positions (all channels together), L2 and L-infinity are in units of [0, 1].
    """

    def __init__(self) -> None:
        self.images = 0
        self._sum = {"l0": 0.0, "l2": 0.0, "linf": 0.0}
        self._max = {"l0": 0.0, "l2": 0.0, "linf": 0.0}
        self._squares = 0.0
        self._values = 0
        self._extreme = 0
        self._changed = 0

    def add(self, clean: np.ndarray, poisoned: np.ndarray, chosen: np.ndarray | None = None) -> None:
        """Adds two batches, (b, H, W, C) uint8 each; `chosen` (b,) bool marks those that were poisoned at all."""
        if chosen is not None:
            clean, poisoned = clean[chosen], poisoned[chosen]
        if not len(clean):
            return
        counts = ops.count_changes(as_tensor(clean), as_tensor(poisoned)).numpy()
        l0, values, extreme, linf, squares = counts.T.astype(np.float64)
        for key, row in {"l0": l0, "l2": np.sqrt(squares) / 255, "linf": linf / 255}.items():
            self._sum[key] += float(row.sum())
            self._max[key] = max(self._max[key], float(row.max()))
        self._squares += float(squares.sum())
        self._changed += int(values.sum())
        self._extreme += int(extreme.sum())
        self._values += clean.size
        self.images += len(clean)

    def record(self) -> dict[str, Any]:
        """The sums so far, exactly representable in JSON."""
        return {
            "images": self.images,
            "sum": self._sum,
            "max": self._max,
            "squares": self._squares,
            "values": self._values,
            "extreme": self._extreme,
            "changed": self._changed,
        }

    def merge(self, record: dict[str, Any]) -> None:
        """Adds the sums of another record."""
        for key in self._sum:
            self._sum[key] += record["sum"][key]
            self._max[key] = max(self._max[key], record["max"][key])
        self._squares += record["squares"]
        self._values += record["values"]
        self._changed += record["changed"]
        self._extreme += record["extreme"]
        self.images += record["images"]

    def summary(self) -> dict[str, Any]:
        """Mean and largest norms, PSNR in dB, and the share of changed values that ended at 0 or 255."""
        if not self.images:
            return {"images": 0}
        mse = self._squares / self._values / 255**2
        return {
            "images": self.images,
            **{f"{key}_mean": value / self.images for key, value in self._sum.items()},
            **{f"{key}_max": value for key, value in self._max.items()},
            "psnr_db": -10 * math.log10(mse) if mse else None,
            "clipped_share": self._extreme / self._changed if self._changed else 0.0,
        }


def class_statistics(clean: Dataset, poisoned: Dataset) -> dict[str, dict[str, Any]]:
    """`PerturbationStatistics.summary` and the mean SSIM of every class and of "all".

    SSIM (Wang et al., 2004, window 11) is kornia's, over up to `SSIM_IMAGES` images per class; None where kornia is not
    installed, or images are smaller than its window.
    """
    rows: dict[str, dict[str, Any]] = {}
    total = PerturbationStatistics()
    similarities = []
    for c, name in enumerate(clean.classes):
        members = np.flatnonzero(clean.labels == c)
        one = PerturbationStatistics()
        for i in range(0, len(members), 1024):
            a, b = clean.images[members[i : i + 1024]], poisoned.images[members[i : i + 1024]]
            one.add(a, b)
            total.add(a, b)
        picked = members[np.linspace(0, len(members) - 1, min(len(members), SSIM_IMAGES)).astype(int)]
        similarity = ssim(clean.images[picked], poisoned.images[picked]) if len(picked) else None
        if similarity is not None:
            similarities.append(similarity)
        rows[name] = {**one.summary(), "ssim": similarity}
    rows["all"] = {**total.summary(), "ssim": float(np.mean(similarities)) if similarities else None}
    return rows


def ssim(a: np.ndarray, b: np.ndarray, window: int = 11) -> float | None:
    """Mean structural similarity of (n, H, W, C) uint8 images, or None without kornia or below the window's size."""
    if min(a.shape[1:3]) < window:
        return None
    try:
        from kornia.metrics import ssim as kornia_ssim
    except ImportError:
        return None
    import torch

    x, y = (torch.from_numpy(np.ascontiguousarray(v)).permute(0, 3, 1, 2).float() / 255 for v in (a, b))
    return float(kornia_ssim(x, y, window).mean())
