"""Data sets that already exist as Python objects: of torch and torchvision, of Hugging Face, or lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError, MissingSplit
from ..runtime.progress import Progress
from .dataset import Dataset
from .mapped import room
from .readers.arrays import named_labels, pixels
from .resize import centre_square

BLOCK = 256  # images between two progress reports
TEST_SPLITS = ("test", "validation", "val", "valid", "eval")
INPUTS, TARGETS = ("image", "img", "images", "x", "pixel_values"), ("label", "labels", "target", "y", "fine_label")


def from_hf(
    dataset: Any,
    *,
    split: str = "train",
    input_key: str | None = None,
    target_key: str | None = None,
    resize: int | None = None,
    skip_damaged: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Converts a Hugging Face `datasets.Dataset`, in memory; `datasets` itself is not imported.

    Args:
        dataset: an object with `features` and `column_names`, or a `DatasetDict`, of which `split` is taken.
        split: "train" or "test".
        input_key: the column with the images (default: the only one of type Image).
        target_key: the column with the labels (default: the only ClassLabel, which has the class names).
        resize: side in pixels; the shorter side is scaled to it and the centre square taken.
        skip_damaged: leave out images that cannot be read, counted in `notes`.
        progress: called as ``progress("read", done, total)``.

    Returns:
        Dataset with uint8 images (n, H, W, C) and int64 labels (n,).

    Raises:
        InputError: there is no such column, or several; or images have several sizes and `resize` is None.
    """
    if isinstance(dataset, Mapping):
        dataset = _split(dataset, split)
    features, columns = getattr(dataset, "features", None), list(getattr(dataset, "column_names", None) or ())
    if not isinstance(features, Mapping) or not columns or not hasattr(dataset, "__len__"):
        raise InputError(
            f"from_hf takes a Hugging Face dataset, with features, columns and a length, got {_kind(dataset)}: load a"
            " streamed one without streaming=True"
        )
    image = input_key or _column(features, "Image", INPUTS, "images", "input_key")
    label = target_key or _column(features, "ClassLabel", TARGETS, "labels", "target_key")
    for key in (image, label):
        if key not in columns:
            raise InputError(f"the dataset has no column {key}: it has {', '.join(columns)}")
    names = getattr(features[label], "names", None)
    return _collect(
        len(dataset),
        lambda i: _columns(dataset[i], image, label),
        tuple(map(str, names)) if names else (),
        name=str(getattr(getattr(dataset, "info", None), "dataset_name", None) or "dataset"),
        split=split,
        resize=resize,
        skip_damaged=skip_damaged,
        progress=progress,
    )


def read_object(
    source: Any,
    *,
    split: str = "train",
    input_key: str | None = None,
    target_key: str | None = None,
    resize: int | None = None,
    skip_damaged: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Reads an object that is not a path: a `Dataset`, a Hugging Face dataset, a map-style dataset of torch, or a list.

    Items are (image, label) or dictionaries; images are Pillow images, arrays or tensors, uint8 or floats in [0, 1].
    Class names come from the object's `classes`.

    Raises:
        InputError: the object is something else, an item has more than two values, or images do not fit together.
    """
    reading: dict[str, Any] = {"split": split, "resize": resize, "skip_damaged": skip_damaged, "progress": progress}
    if isinstance(source, Dataset):
        return source
    if has_splits(source):
        source = _split(source, split)
    if hasattr(source, "features") and hasattr(source, "column_names"):
        return from_hf(source, input_key=input_key, target_key=target_key, **reading)
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, Mapping):
        raise InputError(
            f"a data set is a path, a name, or an object with a length and items (image, label), not {_kind(source)}"
        )
    classes = getattr(source, "classes", None)
    known = tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()
    name = type(source).__name__ if not isinstance(source, (list, tuple)) else "list"
    return _collect(len(source), lambda i: _pair(source[i], i, input_key, target_key), known, name=name, **reading)


def has_splits(source: Any) -> bool:
    """Whether an object maps split names to datasets, as a `datasets.DatasetDict` does."""
    return isinstance(source, Mapping) and any(name in source for name in ("train", *TEST_SPLITS))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _split(parts: Mapping[str, Any], split: str) -> Any:
    """The dataset of a split, out of several by name."""
    names = ("train",) if split == "train" else TEST_SPLITS
    found = next((parts[name] for name in names if name in parts), None)
    if found is None:
        raise MissingSplit(f"there is no {names[0]} among {', '.join(map(str, parts))}: give a single split")
    return found


def _column(features: Mapping[str, Any], kind: str, usual: tuple[str, ...], what: str, option: str) -> str:
    """The only column of a type, or the only one with a usual name if no column has the type."""
    found = [key for key, feature in features.items() if type(feature).__name__ == kind]
    found = found or [key for key in usual if key in features]
    if len(found) != 1:
        many = f"several columns of {what} ({', '.join(found)})" if found else f"no column of {what}"
        raise InputError(f"the dataset has {many}, of {', '.join(features)}: name it with {option}=")
    return found[0]


def _columns(row: Any, image: str, label: str) -> tuple[Any, Any]:
    return row[image], row[label]


def _pair(item: Any, i: int, input_key: str | None, target_key: str | None) -> tuple[Any, Any]:
    """The image and label of an item."""
    if isinstance(item, Mapping):
        keys = [
            key or next((one for one in usual if one in item), None)
            for key, usual in ((input_key, INPUTS), (target_key, TARGETS))
        ]
        if None in keys or any(key not in item for key in keys):
            raise InputError(f"item {i} has {', '.join(map(str, item))}: name two of them with input_key=, target_key=")
        return item[keys[0]], item[keys[1]]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        count = f"{len(item)} values" if isinstance(item, (tuple, list)) else _kind(item)
        raise InputError(f"item {i} is {count}, not an image and a label: wrap the dataset so that it gives these two")
    return item[0], item[1]


def _collect(
    count: int,
    item: Any,
    classes: tuple[str, ...],
    *,
    name: str,
    split: str,
    resize: int | None,
    skip_damaged: bool,
    progress: Progress | None,
) -> Dataset:
    """Requests every item once, in order, in the calling thread: a foreign dataset need not be thread-safe."""
    images: np.ndarray | None = None
    labels: list[Any] = []
    notes: dict[str, int] = {}
    for i in range(count):
        try:
            picture, label = item(i)
            image = _pixels(picture, f"{name}, image {i}")
        except (OSError, SyntaxError) as error:  # what Pillow raises
            if not skip_damaged:
                raise InputError(f"{name}, image {i} cannot be read ({error}): repair or remove it") from None
            notes["damaged images, left out"] = notes.get("damaged images, left out", 0) + 1
            continue
        if resize is not None:
            image = centre_square(image, resize)
        if images is None:
            images = room((count, *image.shape))
        if image.shape[2] < images.shape[3]:  # a gray image among colour images
            image = image.repeat(3, 2)
        elif image.shape[2] > images.shape[3]:  # the first colour image among gray ones
            images = images.repeat(3, 3)
        if image.shape != images.shape[1:]:
            sizes = f"{images.shape[2]} x {images.shape[1]} and {image.shape[1]} x {image.shape[0]}"
            raise InputError(f"images differ in size: {sizes} ({name}, image {i}): say resize=")
        images[len(labels)] = image
        labels.append(_label(label))
        if progress and ((i + 1) % BLOCK == 0 or i + 1 == count):
            progress("read", i + 1, count)
    if images is None:
        raise InputError(f"{name} has no image: give another")
    numbers, names = named_labels(labels, classes, f"{name}, its labels")
    return Dataset(images[: len(labels)], numbers, names, name, split, notes=notes)


def _label(label: Any) -> Any:
    """A number or a name: the value of a tensor or array, the class of a one-hot vector."""
    array = np.asarray(label)
    if array.ndim == 1 and array.size > 1 and array.dtype.kind in "biuf" and array.sum() == 1 and array.max() == 1:
        return int(array.argmax())
    return array.reshape(-1)[0].item() if array.size == 1 else label


def _pixels(picture: Any, where: str) -> np.ndarray:
    """A Pillow image, an array or a tensor as (H, W, C) uint8."""
    if hasattr(picture, "convert") and hasattr(picture, "mode"):
        if picture.mode.startswith("I") or picture.mode == "F":
            raise InputError(f"{where} has {picture.mode} pixels: scale it to 8 bits first")
        array = np.asarray(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
        return array[..., None] if array.ndim == 2 else array
    if hasattr(picture, "detach"):
        picture = picture.detach().cpu().numpy()
    if isinstance(picture, (list, tuple)):
        picture = np.asarray(picture)
    if not isinstance(picture, np.ndarray) or picture.ndim not in (2, 3):
        shape = f" of shape {picture.shape}" if isinstance(picture, np.ndarray) else ""
        raise InputError(f"{where} is {_kind(picture)}{shape}, not a picture, an array or a tensor: convert it")
    picture = picture[..., None] if picture.ndim == 2 else picture
    if picture.shape[2] not in (1, 3) and picture.shape[0] in (1, 3):
        picture = picture.transpose(1, 2, 0)
    return pixels(picture[None], where)[0]
