"""Published poisons, as files: five layouts, read without running anything in them.

The files hold pixels or perturbations and follow the order of a base data set, which supplies the labels.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runtime.progress import Progress
from ..dataset import Dataset
from .arrays import class_numbers
from .restricted import load_pickle

LAYOUTS = {
    "png-index": "a folder (or its data/) of {index}.png in the base's order: tap, ar, lsp",
    "perturbation-pt": "a torch or safetensors file of perturbations, one per image or one per class: em, hypo, sep",
    "int8-pickle": "a pickle of int8 perturbations in units of 1/255: rem",
    "ntga-npy": "x_train_*.npy images with one-hot y_train_*.npy: ntga",
    "npy": ".npy or .npz of images or perturbations, one per image or one per class: ops",
}


SAMPLED = 200  # images that are compared to find out what the numbers are and whether the order fits


@dataclass(frozen=True)
class Entries:
    """What a file holds: `values` (m, H, W, C), uint8 pixels or float32 in units of [0, 1], and what it is."""

    values: np.ndarray
    kind: str  # "images" or "perturbation"
    per: str  # "image" or "class"


def detect_layout(source: Path) -> str:
    """Which of `LAYOUTS` a path is.

    Raises:
        InputError: none of them.
    """
    if not source.exists():
        raise InputError(f"there is no {source}: check the path")
    if source.is_dir():
        if _png_folder(source) is not None:
            return "png-index"
        if list(source.glob("x_train_*.npy")):
            return "ntga-npy"
        raise InputError(f"{source} has neither numbered .png files nor x_train_*.npy: say --layout, or name the file")
    suffixes = {
        ".pt": "perturbation-pt",
        ".pth": "perturbation-pt",
        ".safetensors": "perturbation-pt",
        ".pkl": "int8-pickle",
        ".pickle": "int8-pickle",
        ".npy": "npy",
        ".npz": "npy",
    }
    if source.name.startswith("x_train_") and source.suffix == ".npy":
        return "ntga-npy"
    if source.suffix.lower() not in suffixes:
        raise InputError(f"{source} is of no known layout: say --layout {', '.join(LAYOUTS)}")
    return suffixes[source.suffix.lower()]


def apply_entries(entries: Entries, clean: np.ndarray, labels: np.ndarray, first: int) -> np.ndarray:
    """Poisoned pixels (b, H, W, C) uint8 of the clean ones, image number `first` and on."""
    rows = labels if entries.per == "class" else np.arange(first, first + len(clean))
    values = entries.values[rows]
    if entries.kind == "images":
        return values if values.dtype == np.uint8 else np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return np.rint((clean + 255 * values.astype(np.float32)).clip(0, 255)).astype(np.uint8)


def read_entries(path: Path, layout: str, base: Dataset) -> Entries:
    """The arrays of a file, their orientation, unit and meaning found out with the help of the base.

    Raises:
        InputError: as for `import_published`.
    """
    if layout == "ntga-npy":
        return _read_ntga(path, base)
    array = _load(path, layout)
    return interpret(array, base, str(path))


def interpret(array: np.ndarray, base: Dataset, where: str) -> Entries:
    """What an array is: one entry per image or class, pixels or perturbations, in which unit."""
    array = _nhwc(array, base, where)
    m = len(array)
    if m == len(base):
        per = "image"
    elif m == base.num_classes:
        per = "class"
    else:
        raise InputError(
            f"{where} has {m:,} entries: {base.name or 'the base'} has {len(base):,} images in {base.num_classes}"
            " classes"
        )
    if array.dtype == np.uint8:
        return Entries(array, "images", per)
    if array.dtype == np.int8:
        return Entries(array.astype(np.float32) / 255, "perturbation", per)
    if array.dtype.kind not in "fi":
        raise InputError(f"{where} holds {array.dtype}: perturbations and images are numbers")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinite values: get it again")
    peak = float(np.abs(array).max(initial=0))
    if peak > 255:
        raise InputError(f"{where} reaches {peak:.4g}: neither pixels in [0, 1] or [0, 255] nor perturbations of them")
    if peak > 1.5:  # whole levels, not shares of the range
        array /= 255
    if per == "image" and array.min() >= 0:
        rows = np.linspace(0, m - 1, min(m, SAMPLED)).astype(int)
        sample = array[rows]
        if np.abs(sample - base.images[rows].astype(np.float32) / 255).mean() < np.abs(sample).mean():
            return Entries(array, "images", per)
    return Entries(array, "perturbation", per)


def _nhwc(array: np.ndarray, base: Dataset, where: str) -> np.ndarray:
    height, width, channels = base.image_shape
    if array.ndim == 3:
        array = array[None] if base.num_classes != len(array) else array[..., None]
    if array.ndim != 4:
        raise InputError(f"{where} has shape {array.shape}: images have four dimensions")
    if array.shape[1:] == (height, width, channels):
        return array
    if array.shape[1:] == (channels, height, width):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    raise InputError(
        f"{where} has entries of shape {tuple(array.shape[1:])}, {base.name or 'the base'} has images of"
        f" {height} x {width} x {channels}: give the base it was made for"
    )


def _load(path: Path, layout: str) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{path} is a folder: layout {layout} is a file")
    if layout == "int8-pickle":
        return _only_array(load_pickle(path), path)
    if layout == "npy":
        try:
            content = np.load(path, allow_pickle=False)
            return _only_array(dict(content) if isinstance(content, np.lib.npyio.NpzFile) else content, path)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path} cannot be read as an array ({error}): get it again") from None
    return _only_array(_load_torch(path), path)


def _load_torch(path: Path) -> Any:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors and is not read, since that could run code: get the file from its official"
            " source, or save the tensor alone"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({str(error).splitlines()[0][:100]}): get it again") from None


def _only_array(content: Any, path: Path) -> np.ndarray:
    """The one array in what a file holds."""
    import torch

    while isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if isinstance(content, (list, tuple)) and content and all(hasattr(item, "shape") for item in content):
        content = np.stack([np.asarray(item) for item in content])
    if isinstance(content, torch.Tensor):
        content = content.detach().float().numpy() if content.dtype == torch.bfloat16 else content.detach().numpy()
    if not isinstance(content, np.ndarray):
        keys = f" ({', '.join(map(str, content))})" if isinstance(content, dict) else ""
        raise InputError(f"{path} holds a {type(content).__name__}{keys}, not one array")
    return content


def _read_ntga(path: Path, base: Dataset) -> Entries:
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("x_train_*.npy")) if path.is_dir() else [path]
    if len(files) != 1:
        raise InputError(f"{folder} has {len(files)} files x_train_*.npy: name the one to import")
    labels_file = files[0].with_name("y" + files[0].name[1:])
    entries = interpret(_load(files[0], "npy"), base, str(files[0]))
    if labels_file.is_file():
        labels = class_numbers(_load(labels_file, "npy"), str(labels_file))
        if labels.shape != base.labels.shape or (labels != base.labels).any():
            differ = int((labels != base.labels).sum()) if labels.shape == base.labels.shape else len(labels)
            raise InputError(
                f"{labels_file} differs from the labels of {base.name or 'the base'} in {differ:,} places:"
                " the order is another"
            )
    return entries


def _png_folder(source: Path) -> Path | None:
    for folder in (source / "data", source):
        if folder.is_dir() and any(re.fullmatch(r"\d+\.png", file.name) for file in folder.iterdir()):
            return folder
    return None


def read_pngs(source: Path, base: Dataset, progress: Progress | None) -> np.ndarray:
    from PIL import Image

    folder = _png_folder(source) if source.is_dir() else None
    if folder is None:
        raise InputError(f"{source} has no files 0.png, 1.png, ...: check the path, or the layout")
    numbers = {int(file.stem) for file in folder.iterdir() if re.fullmatch(r"\d+\.png", file.name)}
    missing = sorted(set(range(len(base))) - numbers)
    beyond = sorted(numbers - set(range(len(base))))
    if missing or beyond:
        what = f"lacks {missing[0]}.png" if missing else f"has {beyond[0]}.png"
        raise InputError(
            f"{folder} {what} ({len(numbers):,} files; {base.name or 'the base'} has {len(base):,} images): give the"
            " base it was made for"
        )
    height, width, channels = base.image_shape
    out = np.empty(base.images.shape, np.uint8)

    def read(i: int) -> None:
        try:
            with Image.open(folder / f"{i}.png") as image:
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except OSError as error:
            raise InputError(f"{folder / f'{i}.png'} cannot be read ({error}): get it again") from None
        if pixels.shape[:2] != (height, width):
            raise InputError(
                f"{folder / f'{i}.png'} is {pixels.shape[1]} x {pixels.shape[0]}, the base {width} x {height}"
            )
        out[i] = pixels.reshape(height, width, channels)

    with ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(read, range(len(base)), chunksize=64), 1):
            if progress and done % 1000 == 0:
                progress("png", done, len(base))
    return out


def check_order(values: np.ndarray, base: Dataset, path: Path) -> None:
    """Poisoned images are nearer to their own clean image than to another."""
    if len(values) != len(base):
        return
    n = len(base)
    rows = np.linspace(0, n - 1, min(n, SAMPLED)).astype(int)
    scale = 255.0 if values.dtype == np.uint8 else 1.0
    poisoned = values[rows].astype(np.float32) / scale
    own, other = (
        np.abs(poisoned - base.images[index].astype(np.float32) / 255).mean(axis=(1, 2, 3))
        for index in (rows, (rows + max(1, n // 3)) % n)
    )
    if (own < other).mean() < 0.9:
        raise InputError(
            f"{path} does not follow the order of {base.name or 'the base'}: only {100 * (own < other).mean():.0f} % of"
            " its images resemble the clean image of the same number more than another; give the base it was made for"
        )
