"""`load_dataset`: reads whatever the user points at as a `Dataset`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError, MissingSplit
from ..registry import nearest
from ..runtime.files import recover
from ..runtime.made import expand
from ..runtime.progress import Progress
from ..runtime.reading import naming, reading, steady
from . import catalog
from .classes import matched
from .dataset import Dataset
from .objects import has_splits, read_object
from .readers import READERS
from .readers.request import Request
from .readers.wds import is_braces
from .resize import centre_square


def load_dataset(
    source: Any,
    *,
    split: str = "train",
    format: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    resize: int | None = None,
    test_data: Any = None,
    cache: str | os.PathLike[str] | None = None,
    stream: bool | None = None,
    skip_damaged: bool = False,
    label_field: str | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
    verify: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Read a data set from a folder, a file, a name or an object.

    Args:
        source: a folder that ulfast wrote, an image folder, a file or folder of one of the formats of `ulfast ls`, or a
            name (`sample`, `cifar10`, `cifar100`, `svhn`); a path that exists is taken as a path. Anything else is read
            item by item: a map-style dataset of torch, a Hugging Face dataset, a list of (image, label) or of
            dictionaries (see `ulfast.data.objects.read_object`).
        split: "train" or "test".
        format: forces a reader (see `ulfast ls`) instead of detecting it.
        limit: take a class-balanced subset of this many training images, drawn by `seed`; encoded images outside it are
            not decoded.
        resize: side in pixels; the shorter side is scaled to it and the centre square taken.
        test_data: where the test split comes from, if not from `source`.
        stream: decode images of image folders, shards, .parquet and .beton files on demand, in bounded memory, instead
            of now (default: if they take more than 4 GiB).
        cache: folder for downloads (default: ULFAST_CACHE, or ~/.cache/ulfast).
        skip_damaged: leave out images of image folders, shards and .parquet files that cannot be read, counted in
            `notes`, instead of an error.
        label_field: the integer field of a .beton file that holds the label, where there are several; for a WebDataset
            shard, the field of its `.json` (default: "label").
        input_key: what holds the images, where a file has several candidates: a column of a .parquet file, an array of
            an .npz file, the suffix of an image in a WebDataset shard ("jpg;png" for either).
        target_key: the same for the labels; for a shard, also a field of its `.json`.
        verify: check all images against their checksums, where an ulfast folder or a .beton file has them; otherwise a
            sample of a folder's images is checked, and those of a .beton file as they are read.
        progress: called as ``progress(stage, done, total, ...)`` during long reads.

    Returns:
        Dataset with uint8 images (n, H, W, C) and int64 labels (n,).

    Raises:
        InputError: there is nothing at `source`, nothing readable in it, or its images do not fit together.
    """
    if split not in ("train", "test"):
        raise InputError(f"split must be 'train' or 'test', got {split!r}")
    if resize is not None and resize < 8:
        raise InputError(f"--resize {resize} is too small: images need at least 8 pixels per side")
    apart = split == "test" and test_data is not None
    source = test_data if apart and test_data is not None else source
    if not isinstance(source, (str, os.PathLike)):
        if isinstance(source, Dataset) and source.split != split and not apart:
            raise MissingSplit(f"{source!r} is the {source.split} split: give the {split} images with test_data")
        dataset = read_object(
            source,
            split=split,
            input_key=input_key,
            target_key=target_key,
            resize=resize,
            skip_damaged=skip_damaged,
            progress=progress,
        )
        source = dataset.name or "the data set"
        return _checked(dataset, source, split, limit, seed, resize)
    path = expand(source)
    keys = (label_field, input_key, target_key)
    request = Request(path, split, apart, resize, stream, skip_damaged, *keys, progress, verify, limit, seed)
    return _checked(_read(source, request, format, cache), source, split, limit, seed, resize)


def _checked(
    dataset: Dataset, source: str | os.PathLike[str], split: str, limit: int | None, seed: int, resize: int | None
) -> Dataset:
    """The checks that every data set must pass, whatever it was read from."""
    if not len(dataset):
        raise MissingSplit(f"{source} has no {split} images: choose another data set")
    if resize is not None and dataset.image_shape[:2] != (resize, resize):
        images = np.stack([centre_square(image, resize) for image in dataset.images])
        dataset = replace(dataset, images=images)
    if min(dataset.image_shape[:2]) < 8:
        height, width, _ = dataset.image_shape
        raise InputError(f"{source}: images of {width} x {height} are too small: the minimum is 8 pixels per side")
    if split == "train":
        counts = np.bincount(dataset.labels, minlength=dataset.num_classes)
        if dataset.num_classes < 2:
            raise InputError(f"{source} has only one class: at least two are needed")
        if not counts.all():
            empty = dataset.classes[int(np.flatnonzero(counts == 0)[0])]
            raise InputError(f"{source}: class {empty!r} has no image: add some or renumber the labels")
        if limit is not None:
            dataset = dataset.balanced(limit, seed)
    return dataset


def load_splits(
    source: Any,
    *,
    test_data: Any = None,
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Dataset, Dataset | None]:
    """Training and test images of a data set, with the test classes matched by name; None where there are no test
    images.

    Raises:
        InputError: as for `load_dataset`; the test images have another shape or other classes, or `test_data` has none.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _splits(source, test_data, limit, seed, options)
    return steady(expand(source), lambda: _splits(source, test_data, limit, seed, options))


def _splits(
    source: str | os.PathLike[str],
    test_data: str | os.PathLike[str] | None,
    limit: int | None,
    seed: int,
    options: dict[str, Any],
) -> tuple[Dataset, Dataset | None]:
    train = load_dataset(source, limit=limit, seed=seed, **options)
    if test_data is None and not isinstance(source, (str, os.PathLike)) and not has_splits(source):
        return train, None  # it is a single split
    try:
        test = load_dataset(source, split="test", test_data=test_data, **options)
    except MissingSplit:
        if test_data is not None:
            raise
        return train, None
    with naming(source) if isinstance(source, (str, os.PathLike)) else contextlib.nullcontext():
        return train, matched(train, test, names=("training images", "test images"), part=True)


def load_named(name: str, *, split: str = "train", limit: int | None = None, seed: int = 0) -> Dataset:
    """A data set of the catalog, even if the current folder has something of the same name."""
    dataset = catalog.read(name, split)
    return dataset if limit is None or split != "train" else dataset.balanced(limit, seed)


def _read(
    source: str | os.PathLike[str], request: Request, format: str | None, cache: str | os.PathLike[str] | None
) -> Dataset:
    if format is not None and format not in READERS:
        raise InputError(f"unknown format {format!r}{nearest(format, READERS)}: known are {', '.join(READERS)}")
    path = request.path
    recover(path)
    if not path.exists() and not is_braces(path):
        if catalog.canonical(str(source)):
            return catalog.read(str(source), request.split, cache=cache, progress=request.progress)
        raise InputError(
            f"there is no file, folder or data set {str(source)!r}{nearest(str(source), catalog.NAMES)}:"
            f" the names are {', '.join(catalog.NAMES)}"
        )
    with reading(path, "make it readable"):
        if path.is_dir() and not any(path.iterdir()):
            raise InputError(f"{path} is empty: point at a data set")
        if format is None:
            format = next((name for name, reader in READERS.items() if reader.detect(path)), None)
    if format is None:
        raise InputError(
            f"{path} is not a data set that ulfast knows: expected one of {', '.join(READERS)}; see `ulfast ls`"
        )
    with reading(path, "check it, or get it again"):
        return steady(path, lambda: READERS[format].read(request))
