"""Writing data sets in layouts that other people's training code reads."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.files import atomic_file, atomic_folder
from ..runtime.progress import Progress
from .dataset import Dataset, chunks

EXPORTS = {
    "png-index": "data/{index}.png of the training images, in order",
    "imagefolder": "train/CLASS/NNNNN.png and test/CLASS/NNNNN.png",
    "npz": "x_train, y_train, x_test, y_test, classes in one .npz file",
    "beton": "FFCV's format, raw, FILE.beton with FILE.test.beton beside it",
    "perturbation-pt": "a torch file of the perturbation, (n, C, H, W) float32 in [-1, 1]",
}


@ordinary
def export_dataset(
    train: Dataset,
    out: str | os.PathLike[str],
    layout: str,
    *,
    test: Dataset | None = None,
    base: Dataset | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a data set in another layout, atomically.

    Args:
        layout: one of `EXPORTS`.
        test: for the layouts that hold test images.
        base: the clean training images, which perturbation-pt needs.

    Raises:
        InputError: unknown layout, nothing to subtract from, or an output that exists.
    """
    if layout not in EXPORTS:
        raise InputError(f"unknown layout {layout!r}: known are {', '.join(EXPORTS)}")
    path = Path(out)
    if layout == "npz":
        _one_file(path, ".npz", overwrite)
        arrays = {"x_train": train.images, "y_train": train.labels, "classes": np.array(train.classes)}
        if test is not None:
            arrays |= {"x_test": test.images, "y_test": test.labels}
        with atomic_file(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    elif layout == "beton":
        from .beton import write_beton
        from .readers.beton import test_file

        _one_file(path, ".beton", overwrite)
        for target, dataset in ((path, train), (test_file(path), test)):
            if dataset is not None:
                write_beton(target, dataset, overwrite=overwrite, progress=progress)
    elif layout == "perturbation-pt":
        _one_file(path, ".pt", overwrite)
        _perturbation(train, base, path)
    else:
        with atomic_folder(path, overwrite=overwrite) as folder:
            if layout == "png-index":
                (folder / "data").mkdir()
                _pngs(train, [folder / "data" / f"{i}.png" for i in range(len(train))], progress)
            else:
                for split, dataset in (("train", train), ("test", test)):
                    if dataset is not None:
                        _pngs(dataset, _class_paths(dataset, folder / split), progress)


def _one_file(path: Path, suffix: str, overwrite: bool) -> None:
    if path.suffix != suffix:
        raise InputError(f"--out {path} must end in {suffix} for this layout")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another --out, or say --overwrite to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)


def _class_paths(dataset: Dataset, folder: Path) -> list[Path]:
    names = [re.sub(r"[^\w.-]+", "_", name) or str(c) for c, name in enumerate(dataset.classes)]
    if len(set(names)) < len(names):
        names = [f"{c:04d}_{name}" for c, name in enumerate(names)]
    for name in names:
        (folder / name).mkdir(parents=True)
    return [folder / names[label] / f"{i:06d}.png" for i, label in enumerate(dataset.labels)]


def _pngs(dataset: Dataset, paths: list[Path], progress: Progress | None) -> None:
    from PIL import Image

    def write(i: int) -> None:
        image = dataset.images[i]
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(paths[i], compress_level=1)

    with ThreadPoolExecutor(4) as pool:
        for done, _ in enumerate(pool.map(write, range(len(paths)), chunksize=64), 1):
            if progress and (done % 500 == 0 or done == len(paths)):
                progress("export", done, len(paths))


def _perturbation(train: Dataset, base: Dataset | None, path: Path) -> None:
    import torch

    if base is None:
        raise InputError("perturbation-pt needs the clean images to subtract: give --base PATH|NAME")
    if base.images.shape != train.images.shape or (base.labels != train.labels).any():
        raise InputError(
            f"the base has {base.images.shape}, the data {train.images.shape} or other labels: it is not"
            " what was poisoned"
        )
    n, height, width, channels = train.images.shape
    delta = torch.empty(n, channels, height, width)
    for begin, stop in chunks(train.images, 16 << 20):
        difference = train.images[begin:stop].astype(np.float32) - base.images[begin:stop]
        delta[begin:stop] = torch.from_numpy(difference / 255).permute(0, 3, 1, 2)
    with atomic_file(path) as part:
        torch.save(delta, part)
