"""Published poisons as files: nine layouts, read without running any code in them.

The files hold pixels or perturbations in the order of a base data set, which supplies the labels; the layouts in `OWN`
have their own labels.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.made import EXPORT, marker_of, read_marker
from ...runtime.progress import Progress
from ...runtime.reading import reading, regular
from ..classes import unnamed
from ..dataset import Dataset
from .arrays import check_sizes, class_numbers, named_labels, nhwc, npz_arrays, npz_keys
from .image import decode
from .pairs import is_list, list_arrays
from .request import Request
from .restricted import check_expansion, load_pickle

LAYOUTS = {
    "png-index": "a folder (or its data/) of {index}.png in the base's order: tap, ar, lsp",
    "perturbation-pt": "a torch or safetensors file of perturbations, one per image or one per class: em, hypo, sep",
    "images-pt": "a torch file of images and labels, {'data', 'labels'}: pil",
    "int8-pickle": "a pickle of int8 perturbations in units of 1/255: rem",
    "lsp-npy": "simple_data.npy perturbations, simple_label.npy the class of each: lsp",
    "ntga-npy": "x_train*.npy images with one-hot y_train*.npy, in the base's order or one of their own: ntga",
    "pairs-pickle": "a pickle of a list of (image, label), in any order: eclipse, coin, dune",
    "images-npz": "an .npz of images and labels, {'data', 'targets'} or other usual names: avatar",
    "npy": ".npy or .npz of images or perturbations, one per image or one per class: ops",
}
OWN = ("ntga-npy", "pairs-pickle", "images-npz")  # layouts with labels; they need no base
ROUNDINGS = ("truncate", "nearest")

NUMBERED = re.compile(r"\d+\.png", re.IGNORECASE)  # with or without leading zeros
MAX_DEPTH = 8  # nested dictionaries of one entry
WHOLE = 0.25  # of white: a perturbation with a larger mean change must be in units of its own bound
ALIKE = 0.8  # from this correlation with the base on, values are images on another scale
FITTING = "give the base it was made for"
SAMPLED = 200  # images compared to infer what the numbers are and whether the order matches


@dataclass(frozen=True)
class Entries:
    """The content of a file, matched to the images of a base.

    Attributes:
        values: (m, H, W, C) uint8 pixels, or float32 or float64 pixels or perturbations.
        kind: "images" or "perturbation".
        per: "image" or "class".
        rows: (n,) int64, the entry for each image of the base.
        unit: unit of floats: "levels" (255 is white) or "shares" (1 is white).
    """

    values: np.ndarray
    kind: str
    per: str
    rows: np.ndarray
    unit: str = "levels"


def detect_layout(source: Path) -> str:
    """The layout, from `LAYOUTS`, of a path.

    Raises:
        InputError: the layout is unknown, or the path is a torch file that cannot be read.
    """
    if not source.exists():
        raise InputError(f"there is no {source}: check the path")
    if source.is_dir():
        if _png_folder(source) is not None:
            return "png-index"
        if (source / "simple_data.npy").is_file():
            return "lsp-npy"
        if list(source.glob("x_train*.npy")):
            return "ntga-npy"
        raise InputError(
            f"{source} has neither numbered .png files nor simple_data.npy nor x_train*.npy: say --layout, or name the"
            " file"
        )
    suffixes = {
        ".pt": "perturbation-pt",
        ".pth": "perturbation-pt",
        ".safetensors": "perturbation-pt",
        ".pkl": "int8-pickle",
        ".pickle": "int8-pickle",
        ".npy": "npy",
        ".npz": "npy",
    }
    if source.name == "simple_data.npy":
        return "lsp-npy"
    if source.name.startswith("x_train") and source.suffix == ".npy":
        return "ntga-npy"
    if source.suffix.lower() not in suffixes:
        raise InputError(f"{source} is of no known layout: say --layout {', '.join(LAYOUTS)}")
    layout = suffixes[source.suffix.lower()]
    if layout == "perturbation-pt" and _images_and_labels(_load_torch(source)):
        return "images-pt"
    if layout == "int8-pickle" and is_list(load_pickle(source)):
        return "pairs-pickle"
    return "images-npz" if source.suffix.lower() == ".npz" and _has_labels(source) else layout


def _has_labels(source: Path) -> bool:
    """Whether an archive has images and labels."""
    try:
        with np.load(source, allow_pickle=False) as content:
            npz_keys(content.files, Request(source, "train"))
    except InputError as error:
        return not isinstance(error, MissingSplit)  # several candidates: they are reported on reading
    except Exception:  # reported on reading
        return False
    return True


def apply_entries(entries: Entries, clean: np.ndarray, first: int, rounding: str = "truncate") -> np.ndarray:
    """Poisoned pixels (b, H, W, C) uint8 from the clean ones, which begin with image number `first`.

    Levels are added in float32 and shares in float64, as in the programs that read such files. Those drop the fraction
    of a level ("truncate"); "nearest" rounds.
    """
    values = entries.values[entries.rows[first : first + len(clean)]]
    if entries.kind == "images":
        return as_pixels(values, entries.unit, rounding)
    if entries.unit == "levels":
        return as_pixels((clean.astype(np.float32) + values).astype(np.float32, copy=False), "levels", rounding)
    return as_pixels(clean / 255.0 + values, "shares", rounding)


def as_pixels(values: np.ndarray, unit: str, rounding: str) -> np.ndarray:
    """uint8 pixels from uint8, or from floats in "levels" or "shares"; computed in the floats' own dtype."""
    if values.dtype == np.uint8:
        return values
    levels = (values * 255 if unit == "shares" else values).clip(0, 255)
    return (np.rint(levels) if rounding == "nearest" else levels).astype(np.uint8)


def read_entries(path: Path, layout: str, base: Dataset, scale: float | None = None) -> Entries:
    """The arrays of a file; their orientation, unit and meaning are inferred with the help of the base.

    With `scale` they are taken as perturbations, clipped to [-1, 1] and multiplied by it.

    Raises:
        InputError: as for `import_published`.
    """
    if layout == "lsp-npy":
        return _read_lsp(path, base)
    if layout == "images-pt":
        return _read_images_pt(path, base)
    # Perturbations in torch files are first multiplied by 255 and then added; those in .npy files are added to shares.
    array, unit = _load(path, layout, base), "shares" if layout == "npy" else "levels"
    if scale is not None:
        if array.dtype.kind != "f":
            raise InputError(f"{path} holds {array.dtype}, but --scale is for floats in [-1, 1]: leave it out")
        array = array.astype(np.float32, copy=False).clip(-1, 1) * np.float32(scale)
    return interpret(array, base, str(path), unit)


def interpret(array: np.ndarray, base: Dataset, where: str, unit: str) -> Entries:
    """Infers what an array is: one entry per image or per class, pixels or perturbations, and the unit.

    `unit` is the unit in which perturbations in units of [0, 1] are added.
    """
    array = _nhwc(array, base, where)
    m = len(array)
    if m == len(base):
        per, rows = "image", np.arange(m)
    elif m == base.num_classes:
        per, rows = "class", base.labels
    else:
        raise InputError(
            f"{where} has {m:,} entries: {base.name or 'the base'} has {len(base):,} images in {base.num_classes}"
            f" classes: {FITTING}"
        )
    if array.dtype == np.uint8:
        return Entries(array, "images", per, rows)
    array, found = _floats(array, where)
    if per == "image":
        some = np.linspace(0, m - 1, min(m, SAMPLED)).astype(int)
        sample, clean = array[some] * (255 if found == "shares" else 1), base.images[some].astype(np.float32)
        if array.min(initial=0) >= 0 and np.abs(sample - clean).mean() < np.abs(sample).mean():
            return Entries(array, "images", per, rows, found)
        if sample.std() and clean.std() and np.corrcoef(sample.ravel(), clean.ravel())[0, 1] > ALIKE:
            raise InputError(
                f"{where} looks like the images of {base.name or 'the base'} on another scale, not like a perturbation:"
                " undo the normalisation"
            )
    if found == "shares" and unit == "levels":
        array, found = (array * 255).clip(-255, 255), "levels"
    return Entries(array, "perturbation", per, rows, found)


def check_size(entries: Entries, where: str) -> None:
    """Raises InputError for values far too large for a perturbation: they are in units of their own bound."""
    change = float(np.abs(entries.values[:SAMPLED]).mean()) / (255 if entries.unit == "levels" else 1)
    if entries.kind == "perturbation" and change > WHOLE:
        raise InputError(
            f"{where} changes pixels by {change:.2f} of white on average, too much for a perturbation: if its bound is"
            " stored elsewhere, give it with --scale 8/255, else undo its scaling"
        )


def _floats(array: np.ndarray, where: str) -> tuple[np.ndarray, str]:
    """The values as float32 or float64, and their unit."""
    if array.dtype.kind not in "fi":
        raise InputError(f"{where} holds {array.dtype}: perturbations and images are numbers: save them as such")
    unit = "levels" if array.dtype.kind == "i" else "shares"  # -1, 0 and 1 too
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    peak = float(max(array.max(initial=0), -array.min(initial=0)))
    if not np.isfinite(peak):
        raise InputError(f"{where} holds NaN or infinite values: get it again")
    if peak > 255:
        raise InputError(
            f"{where} reaches {peak:.4g}: neither pixels in [0, 1] or [0, 255] nor perturbations of them: undo"
            " its scaling"
        )
    return array, "levels" if peak > 1.5 else unit


def _nhwc(array: np.ndarray, base: Dataset, where: str) -> np.ndarray:
    height, width, channels = base.image_shape
    if array.ndim == 3:
        array = array[None] if base.num_classes != len(array) else array[..., None]
    if array.ndim != 4:
        raise InputError(f"{where} has shape {array.shape}: images have four dimensions: reshape it")
    if array.shape[1:] == (height, width, channels):
        return array
    if array.shape[1:] == (channels, height, width):
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1))
    raise InputError(
        f"{where} has entries of shape {tuple(array.shape[1:])}, {base.name or 'the base'} has images of"
        f" {height} x {width} x {channels}: {FITTING}"
    )


def _load(path: Path, layout: str, base: Dataset | None = None) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{path} is a folder: layout {layout} is a file")
    if layout == "int8-pickle":
        return _only_array(load_pickle(path), path)
    if layout == "npy":
        with reading(path, what="as an array"):
            # Memory-mapped: a header may declare more than the file has.
            content = np.load(regular(path), allow_pickle=False, mmap_mode="r")
            if isinstance(content, np.lib.npyio.NpzFile):
                with content:
                    check_sizes(path)
                    content = dict(content)
        return _only_array(content, path)
    return _only_array(_fitting(_load_torch(path), base, path), path)


def _load_torch(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    with reading(path):
        regular(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            _check_shared(content, path)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path} holds more than tensors and is not read, since that could run code: get the file from its"
                " official source, or save the tensor alone"
            ) from error
        return content


def _fitting(content: Any, base: Dataset | None, path: Path) -> Any:
    """The one tensor, out of a checkpoint with several entries, whose images have the size of the base's."""
    if base is None or not isinstance(content, dict) or len(content) < 2:
        return content
    height, width, channels = base.image_shape
    shapes, counts = ((height, width, channels), (channels, height, width)), (len(base), base.num_classes)
    inside = {str(key): value for key, value in content.items()}
    for key, value in content.items():
        if isinstance(value, dict):
            inside |= {f"{key}.{name}": one for name, one in value.items()}
    found = {
        key: value
        for key, value in inside.items()
        if getattr(value, "ndim", 0) == 4 and tuple(value.shape[1:]) in shapes and len(value) in counts
    }
    if len(found) > 1:
        raise InputError(f"{path} holds {', '.join(found)}, not one array of that size: save the perturbation alone")
    return next(iter(found.values())) if found else content


def _check_shared(content: Any, path: Path) -> None:
    try:
        check_expansion(content, path.stat().st_size)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} holds {error}, and is not read: get it again") from error


def _only_array(content: Any, path: Path) -> np.ndarray:
    """The one array in the content of a file."""
    import torch

    for _ in range(MAX_DEPTH):  # a dictionary may hold itself
        if isinstance(content, dict) and len(content) == 1:
            content = next(iter(content.values()))
    if isinstance(content, (list, tuple)) and content and all(hasattr(item, "shape") for item in content):
        content = np.stack([np.asarray(item) for item in content])
    if isinstance(content, torch.Tensor):
        if content.layout != torch.strided or content.is_quantized:
            raise InputError(f"{path} holds a tensor that is sparse or quantised: save the array alone, dense")
        if content.numel() * content.element_size() > content.untyped_storage().nbytes():
            raise InputError(
                f"{path} holds fewer values than its shape {tuple(content.shape)} needs: save it contiguous"
            )
        content = content.detach().float().numpy() if content.dtype == torch.bfloat16 else content.detach().numpy()
    if not isinstance(content, np.ndarray):
        keys = f" ({', '.join(map(str, content))})" if isinstance(content, dict) else ""
        raise InputError(f"{path} holds a {type(content).__name__}{keys}, not one array: save the array alone")
    return content


def _images_and_labels(content: Any) -> bool:
    return isinstance(content, dict) and {"data", "labels"} <= set(content)


def _labels(content: Any, where: str) -> np.ndarray:
    """(m,) int64 from an array, tensor or list of class numbers or one-hot rows."""
    with reading(where, "these are not class numbers, get it again"):
        return class_numbers(np.asarray(content), where)


def _read_images_pt(path: Path, base: Dataset) -> Entries:
    content = _load_torch(path)
    if not _images_and_labels(content):
        raise InputError(f"{path} is not a dictionary of 'data' and 'labels': leave --layout out")
    labels = _labels(content["labels"], f"{path}, labels")
    if labels.shape != base.labels.shape:
        raise InputError(f"{path} has {len(labels):,} labels, {base.name or 'the base'} {len(base):,}: {FITTING}")
    if differ := int((labels != base.labels).sum()):
        raise InputError(f"{path} differs from the labels of {base.name or 'the base'} in {differ:,} places: {FITTING}")
    entries = interpret(_only_array(content["data"], path), base, f"{path}, data", "levels")
    if entries.kind != "images":
        raise InputError(f"{path}, data does not look like the images of {base.name or 'the base'}: {FITTING}")
    return entries


def _read_lsp(path: Path, base: Dataset) -> Entries:
    """Every image takes the next perturbation of its class, in the order of both files."""
    file = path / "simple_data.npy" if path.is_dir() else path
    labels_file = file.with_name("simple_label.npy")
    if not labels_file.is_file():
        raise InputError(
            f"there is no {labels_file}, which gives the class of each perturbation: put it there, or say --layout npy"
            " if they follow the order of the base"
        )
    array, unit = _floats(_nhwc(_load(file, "npy"), base, str(file)), str(file))
    labels = _labels(_load(labels_file, "npy"), str(labels_file))
    if len(labels) != len(array):
        raise InputError(f"{labels_file} has {len(labels):,} labels for {len(array):,} perturbations: get both again")
    rows = np.empty(len(base), np.int64)
    for c, name in enumerate(base.classes):
        images, own = np.flatnonzero(base.labels == c), np.flatnonzero(labels == c)
        if len(own) < len(images):
            raise InputError(
                f"{file} has {len(own):,} perturbations of class {c}, {base.name or 'the base'} has {len(images):,}"
                f" images of it ({name}): {FITTING}"
            )
        rows[images] = own[: len(images)]
    return Entries(array, "perturbation", "image", rows, unit)


def read_own(path: Path, layout: str, base: Dataset | None) -> tuple[Entries, np.ndarray, tuple[str, ...]]:
    """The images, labels (m,) int64 and class names of a layout in `OWN`.

    If the labels equal the base's, or there are none, the images are those of the base; otherwise they are a set of
    their own, for which a base supplies only the class names.

    Raises:
        InputError: as for `import_published`.
    """
    names: tuple[str, ...] = ()
    if layout == "ntga-npy":
        array, numbers, where = _ntga(path, base)
    elif layout == "images-npz":
        if path.is_dir():
            raise InputError(f"{path} is a folder: layout {layout} is a file")
        array, numbers, names, keys = npz_arrays(Request(path, "train"))
        where = f"{path}, {keys[0]}"
    else:
        content = load_pickle(path)
        if not is_list(content):
            raise InputError(f"{path} holds no list of (image, label): leave --layout out")
        array, numbers = list_arrays(content, path)
        where = str(path)
    array = _nhwc(array, base, where) if base is not None else np.ascontiguousarray(nhwc(array, where))
    labels, classes = named_labels(numbers, names, f"{where}, its labels")
    if base is not None:
        if not unnamed(classes):
            labels = _by_name(labels, classes, base, where)
        classes = base.classes
    if len(labels) != len(array):
        raise InputError(f"{where} has {len(labels):,} labels for {len(array):,} images: get both again")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        whose = f"{base.name or 'the base'} has" if base is not None else "there are"
        raise InputError(f"{where} has labels up to {labels.max()}, {whose} {len(classes)} classes: {FITTING}")
    if base is not None and np.array_equal(labels, base.labels):
        return interpret(array, base, where, "shares"), labels, classes
    unit = "levels"
    if array.dtype != np.uint8:
        array, unit = _floats(array, where)
        if array.min(initial=0) < 0:
            raise InputError(
                f"{where} has pixels below 0: with labels of its own it must hold images in [0, 1]: undo its scaling"
            )
    return Entries(array, "images", "image", np.arange(len(array)), unit), labels, classes


def _by_name(labels: np.ndarray, classes: tuple[str, ...], base: Dataset, where: str) -> np.ndarray:
    """The labels of a file that names its classes, numbered as in the base."""
    place = {name: c for c, name in enumerate(base.classes)}
    if other := [name for name in classes if name not in place]:
        raise InputError(f"{where} has the class {other[0]!r}, which {base.name or 'the base'} lacks: {FITTING}")
    return np.array([place[name] for name in classes], np.int64)[labels]


def _ntga(path: Path, base: Dataset | None) -> tuple[np.ndarray, np.ndarray, str]:
    """The images of `x_train*.npy`, the labels of the `y_train*.npy` beside it, and the name of the former."""
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("x_train*.npy")) if path.is_dir() else [path]
    if len(files) != 1:
        raise InputError(f"{folder} has {len(files)} files x_train*.npy: name the one to import")
    array = _load(files[0], "npy")
    named = files[0].with_name("y" + files[0].name[1:])
    beside = [named] if named.is_file() else sorted(folder.glob("y_train*.npy"))
    if len(beside) > 1:
        raise InputError(f"{folder} has {len(beside)} files y_train*.npy: name the one of {files[0].name} {named.name}")
    if beside:
        return array, _labels(_load(beside[0], "npy"), str(beside[0])), str(files[0])
    if base is None or len(array) != len(base):
        raise InputError(f"{files[0]} has {len(array):,} images and no {named.name} beside it: put their labels there")
    return array, base.labels, str(files[0])


def _png_folder(source: Path) -> Path | None:
    for folder in (source / "data", source):
        if folder.is_dir() and any(NUMBERED.fullmatch(file.name) for file in folder.iterdir()):
            return folder
    return None


def read_pngs(source: Path, base: Dataset, progress: Progress | None) -> np.ndarray:
    folder = _png_folder(source) if source.is_dir() else None
    if folder is None:
        raise InputError(f"{source} has no files 0.png, 1.png, ...: check the path, or the layout")
    numbers: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        if NUMBERED.fullmatch(file.name):
            other = numbers.setdefault(int(file.stem), file)
            if other != file:
                raise InputError(f"{folder} has {other.name} and {file.name}, of one number: remove the wrong one")
    missing = sorted(set(range(len(base))) - set(numbers))
    beyond = sorted(set(numbers) - set(range(len(base))))
    if missing or beyond:
        what = f"lacks {missing[0]}.png" if missing else f"has {beyond[0]}.png"
        raise InputError(
            f"{folder} {what} ({len(numbers):,} files; {base.name or 'the base'} has {len(base):,} images): give the"
            " base it was made for"
        )
    height, width, channels = base.image_shape
    out = np.empty(base.images.shape, np.uint8)

    def read(i: int) -> None:
        file = numbers[i]
        if not file.is_file():
            raise InputError(f"{file} is not a file: get it again")
        pixels = decode(file, channels=channels)
        if pixels.shape[:2] != (height, width):
            raise InputError(f"{file} is {pixels.shape[1]} x {pixels.shape[0]}, the base {width} x {height}: {FITTING}")
        out[i] = pixels.reshape(height, width, channels)

    with ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(read, range(len(base)), chunksize=64), 1):
            if progress and done % 1000 == 0:
                progress("png", done, len(base))
    return out


def check_export(path: Path, base: Dataset) -> None:
    """Compares the class names that `ulfast data export` wrote beside a file with the base, image by image.

    Raises:
        InputError: the number of images differs, or an image has another class.
    """
    about = read_marker(path)
    classes, labels = about.get("classes"), about.get("labels")
    if about.get("format") != EXPORT or not isinstance(classes, list) or not isinstance(labels, list):
        return
    with reading(marker_of(path), "remove it to import without its classes"):
        names = [str(classes[label]) for label in labels]
    mine = [base.classes[label] for label in base.labels]
    if len(names) != len(mine):
        raise InputError(f"{path} has {len(names):,} images, {base.name or 'the base'} {len(mine):,}: {FITTING}")
    if other := [i for i, (name, own) in enumerate(zip(names, mine, strict=True)) if name != own]:
        raise InputError(
            f"{path} differs from the classes of {base.name or 'the base'} in {len(other):,} images: image {other[0]}"
            f" is {names[other[0]]!r} there and {mine[other[0]]!r} here: {FITTING}"
        )


def check_order(entries: Entries, base: Dataset, path: Path) -> None:
    """Checks that poisoned images are nearer to their own clean image than to another."""
    if entries.per != "image":
        return
    n = len(base)
    rows = np.linspace(0, n - 1, min(n, SAMPLED)).astype(int)
    poisoned = as_pixels(entries.values[rows], entries.unit, "nearest").astype(np.float32)
    own, other = (
        np.abs(poisoned - base.images[index].astype(np.float32)).mean(axis=(1, 2, 3))
        for index in (rows, (rows + max(1, n // 3)) % n)
    )
    if (own < other).mean() < 0.9:
        raise InputError(
            f"{path} does not follow the order of {base.name or 'the base'}: only {100 * (own < other).mean():.0f} % of"
            f" its images resemble the clean image of the same number more than another; {FITTING}"
        )
