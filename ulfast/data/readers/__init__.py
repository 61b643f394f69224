"""Readers of data sets on disk. A new reader is one file and one line in `READERS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..dataset import Dataset
from . import arrays, beton, binaries, cifar, folder, imagefolder, pairs, parquet, wds
from .request import Request


@dataclass(frozen=True)
class Reader:
    """How one layout is recognised and read."""

    detect: Callable[[Path], bool]
    read: Callable[[Request], Dataset]
    summary: str


# In the order of detection: the most specific first.
READERS: dict[str, Reader] = {
    "ulfast": Reader(folder.detect, folder.read, "a folder that ulfast wrote"),
    "cifar-python": Reader(cifar.detect_python, cifar.read_python, "CIFAR-10/100, python version"),
    "cifar-binary": Reader(cifar.detect_binary, cifar.read_binary, "CIFAR-10/100, binary version"),
    "svhn": Reader(arrays.detect_svhn, arrays.read_svhn, "SVHN cropped digits (.mat)"),
    "idx": Reader(binaries.detect_idx, binaries.read_idx, "MNIST, Fashion-MNIST and EMNIST (idx files, also .gz)"),
    "stl10": Reader(binaries.detect_stl, binaries.read_stl, "STL-10, binary version"),
    "npz": Reader(arrays.detect_npz, arrays.read_npz, "numpy archive with images and labels"),
    "npy-pair": Reader(pairs.detect_npy, pairs.read_npy, "x_train*.npy images with y_train*.npy labels (NTGA)"),
    "pickle": Reader(pairs.detect_pickle, pairs.read_pickle, "a pickle of (image, label) pairs (ECLIPSE, COIN, DUNE)"),
    "beton": Reader(beton.detect, beton.read, "FFCV's .beton, x.test.beton beside x.beton"),
    "parquet": Reader(parquet.detect, parquet.read, "Hugging Face's .parquet files, or a folder of them"),
    "wds": Reader(wds.detect, wds.read, "WebDataset shards: .tar files, a folder of them, or name-{000..012}.tar"),
    "imagefolder": Reader(imagefolder.detect, imagefolder.read, "train/CLASS/*.jpg, test/ or val/ beside it"),
}
