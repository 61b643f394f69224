"""Writing data sets in layouts that other training code reads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.files import atomic_folder, check_free, claimed, publish_with, write_json, write_tensors, writing
from ..runtime.made import EXPORT, MARKER, count_files, digest, expand, marker_of
from ..runtime.progress import Progress
from ..version import __version__
from .classes import aligned, matched
from .dataset import Dataset, chunks
from .png import save_png
from .writers.parquet import write_parquet
from .writers.wds import write_wds

EXPORTS = {
    "png-index": "data/{index}.png of the training images, in order",
    "imagefolder": "train/CLASS/NNNNN.png and test/CLASS/NNNNN.png",
    "npz": "x_train, y_train, x_test, y_test, classes in one .npz file",
    "wds": "WebDataset shards, train-000000.tar, ... of PNG images, with the info.json of timm",
    "parquet": "data/train-00000-of-00003.parquet, ... of PNG images, as Hugging Face's datasets reads them",
    "beton": "FFCV's format, raw, FILE.beton with FILE.test.beton beside it",
    "perturbation-pt": "a torch file of the perturbation, (n, C, H, W) float32 in [-1, 1]",
}
WITH_TEST = ("imagefolder", "npz", "wds", "parquet", "beton")  # layouts that also hold test images
FOLDERS = ("png-index", "imagefolder", "wds", "parquet")
SHARDED = {"wds": write_wds, "parquet": write_parquet}
LONGEST = 80  # characters of a class folder's name


@ordinary
def export_dataset(
    train: Dataset,
    out: str | os.PathLike[str],
    layout: str,
    *,
    test: Dataset | None = None,
    base: Dataset | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a data set in another layout, atomically. The class names are stored with it: in the file, in `ulfast.json`
    in the folder, or in `FILE.ulfast.json` beside it.

    Args:
        layout: one of `EXPORTS`.
        test: test images, for the layouts that hold them; their classes are matched by name.
        base: the clean training images, which perturbation-pt needs.
        shard_size: images per file, for the layouts with several files (default: 1,000 for wds, 10,000 for parquet).

    Raises:
        InputError: the layout is unknown, the sets do not fit together, `base` is missing, or the output exists.
    """
    if layout not in EXPORTS:
        raise InputError(f"unknown layout {layout!r}: known are {', '.join(EXPORTS)}")
    path = expand(out)
    if test is not None:
        test = matched(train, test, names=("training images", "test images"), part=True)
    about: dict[str, Any] = {
        "format": EXPORT,
        "ulfast": __version__,
        "layout": layout,
        "classes": list(train.classes),
        "image_shape": list(train.image_shape),
        "images": len(train),
    }
    if layout == "npz":
        _one_file(path, ".npz", overwrite)
        arrays = {"x_train": train.images, "y_train": train.labels, "classes": np.array(train.classes)}
        if test is not None:
            arrays |= {"x_test": test.images, "y_test": test.labels}
        with _file_with_marker(path, about) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    elif layout in SHARDED:
        SHARDED[layout](path, splits_of(train, test), size=shard_size, overwrite=overwrite, progress=progress)
    elif layout == "beton":
        from .beton import write_beton
        from .readers.beton import test_file

        _one_file(path, ".beton", overwrite)
        for target, dataset in ((path, train), (test_file(path), test)):
            if dataset is not None:
                write_beton(target, dataset, overwrite=overwrite, progress=progress)
    elif layout == "perturbation-pt":
        _one_file(path, ".pt", overwrite)
        delta = _perturbation(train, base)
        with _file_with_marker(path, {**about, "labels": train.labels.tolist()}) as part:
            write_tensors(part, delta)
    else:
        with atomic_folder(path, overwrite=overwrite) as folder:
            if layout == "png-index":
                (folder / "data").mkdir()
                _pngs(train, [folder / "data" / f"{i}.png" for i in range(len(train))], progress)
                about |= {"entries": ["data"], "labels": train.labels.tolist()}
            else:
                names = class_folders(train.classes)
                about |= {"entries": ["train", "test"], "folders": names, "channels": train.image_shape[2]}
                for split, dataset in (("train", train), ("test", test)):
                    if dataset is not None:
                        _pngs(dataset, _class_paths(dataset, names, folder / split), progress)
            write_json(folder / MARKER, {**about, "files": count_files(folder)})


def splits_of(train: Dataset, test: Dataset | None) -> dict[str, Dataset]:
    """By name."""
    return {"train": train} | ({"test": test} if test is not None else {})


def _one_file(path: Path, suffix: str, overwrite: bool) -> None:
    if path.suffix != suffix:
        raise InputError(f"--out {path} must end in {suffix} for this layout")
    if path.is_dir():
        raise InputError(f"--out {path} is a folder: give a file name")
    check_free(path, overwrite)


@contextlib.contextmanager
def _file_with_marker(path: Path, about: dict[str, Any]) -> Iterator[Path]:
    """A temporary name for a file that gets its own name at the end, with `about` beside it."""
    with claimed(path, alone=True), writing(path):
        part = path.with_name(f".{path.name}.tmp")
        try:
            yield part
            publish_with(part, path, marker_of(path), {**about, "sha256": digest(part)})
        finally:
            part.unlink(missing_ok=True)


def class_folders(classes: Sequence[str]) -> list[str]:
    """Folder names that torchvision's sorting puts in the order of the classes.

    Numbers are padded with zeros. Names that sort in another order or are not valid folder names get their number as a
    prefix.
    """
    width = len(str(max(len(classes) - 1, 0)))
    if all(name.isascii() and name.isdecimal() for name in classes):
        names = [name.zfill(max(map(len, classes))) for name in classes]
    else:
        names = [re.sub(r"[^\w.-]+", "_", name)[:LONGEST] for name in classes]
    plain = all(name and name[0] not in "._" for name in names)
    if not plain or names != sorted(names) or len({name.casefold() for name in names}) < len(names):
        names = [f"{c:0{width}d}_{name}" for c, name in enumerate(names)]
    return names


def _class_paths(dataset: Dataset, names: Sequence[str], folder: Path) -> list[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
    return [folder / names[label] / f"{i:06d}.png" for i, label in enumerate(dataset.labels)]


def _pngs(dataset: Dataset, paths: list[Path], progress: Progress | None) -> None:
    def write(i: int) -> None:
        save_png(dataset.images[i], paths[i])

    with ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(write, range(len(paths)), chunksize=64), 1):
            if progress and (done % 500 == 0 or done == len(paths)):
                progress("export", done, len(paths))


def _perturbation(train: Dataset, base: Dataset | None) -> Any:
    """(n, C, H, W) float32 tensor."""
    import torch

    if base is None:
        raise InputError("perturbation-pt needs the clean images to subtract: give --base PATH|NAME")
    base = aligned(train, base, names=("the data", "the base"))
    n, height, width, channels = train.images.shape
    delta = torch.empty(n, channels, height, width)
    for begin, stop in chunks(train.images, 16 << 20):
        difference = train.images[begin:stop].astype(np.float32) - base.images[begin:stop]
        delta[begin:stop] = torch.from_numpy(difference / 255).permute(0, 3, 1, 2)
    return delta
