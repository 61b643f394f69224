"""`poison_arrays`: arrays in, arrays out, for libraries without data sets."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.dataset import Dataset
from ..errors import InputError
from .run import poison

LAYOUTS = ("auto", "NHWC", "NCHW")


def poison_arrays(
    x: np.ndarray, y: np.ndarray, method: str = "lsp", *, layout: str = "auto", **options: Any
) -> np.ndarray:
    """Poison images given as an array, and return an array like it.

    Args:
        x: (n, H, W, C) or (n, C, H, W) with 1 or 3 channels: uint8, or floats in [0, 1].
        y: (n,) whole numbers, or (n, c) one-hot.
        method: name or alias of a poison.
        layout: "NHWC", "NCHW", or "auto": inferred from the axis with 1 or 3 channels.
        options: as for `ulfast.poison`: ``seed``, ``rate``, ``classes``, ``device``, and the method's parameters.

    Returns:
        An array of x's shape and dtype. Perturbations are whole levels of 255: uint8 images equal those of `poison`
        byte for byte; floats are moved by the same levels, keep their fraction between two levels, and stay in [0, 1].

    Raises:
        InputError: the shape or dtype is not one of these, floats are outside [0, 1], the layout is ambiguous, or as
            for `poison`.

    Example:
        >>> x_poisoned = ulfast.poison_arrays(x, y, "ops", seed=0)
    """
    x, y = np.asarray(x), np.asarray(y)
    first = _channels_first(x, layout)
    nhwc = x.transpose(0, 2, 3, 1) if first else x
    if y.ndim == 2:
        labels, classes = y.argmax(1), y.shape[1]
    elif y.ndim == 1 and (np.issubdtype(y.dtype, np.integer) or (y == np.floor(y)).all()):
        labels = y.astype(np.int64)
        classes = max(2, int(labels.max(initial=0)) + 1)
    else:
        raise InputError(f"y must be (n,) whole numbers or (n, c) one-hot, got {y.shape} {y.dtype}")
    stored = np.ascontiguousarray(nhwc if x.dtype == np.uint8 else np.rint(255.0 * nhwc).astype(np.uint8))
    clean = Dataset(stored, labels.astype(np.int64), tuple(map(str, range(classes))), "arrays")
    made = poison(clean, method, **options).images
    if x.dtype == np.uint8:
        out = made
    else:
        moved = nhwc + (made.astype(np.int16) - stored) / np.float64(255)
        # A pixel that the method sets rather than moves ends at a limit of the range, whatever its value was.
        moved = np.where(made != stored, np.where(made == 255, 1.0, np.where(made == 0, 0.0, moved)), nhwc)
        out = moved.clip(0, 1).astype(x.dtype)
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2) if first else out)


def _channels_first(x: np.ndarray, layout: str) -> bool:
    if layout not in LAYOUTS:
        raise InputError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if x.ndim != 4:
        raise InputError(f"x must be (n, H, W, C) or (n, C, H, W), got {x.shape}")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"x must be uint8, or floats in [0, 1], got {x.dtype}: convert it")
    if x.dtype != np.uint8 and x.size and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"x must lie in [0, 1], it goes from {x.min():g} to {x.max():g}: poison before normalisation")
    first, last = (x.shape[axis] in (1, 3) for axis in (1, 3))
    if layout != "auto":
        return layout == "NCHW"
    if first == last:
        why = "both places could be" if first else "no axis is"
        raise InputError(f"x has shape {x.shape}: {why} 1 or 3 channels; say layout='NHWC' or 'NCHW'")
    return first
