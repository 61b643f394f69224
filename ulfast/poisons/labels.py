"""Selects the images to poison and the labels that drive the poison: some classes, clusters, a file, or random."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.dataset import Dataset, chunks
from ..data.readers.arrays import check_sizes, open_arrays
from ..data.tensors import as_tensor
from ..errors import InputError
from ..runtime.made import expand
from ..runtime.reading import reading, regular

CHUNK_BYTES = 64 << 20
SIDE = 8  # side in pixels to which images are shrunk before clustering

ASSIGNMENTS = ("class", "random")


def class_numbers(dataset: Dataset, given: Sequence[int | str] | str | None) -> list[int] | None:
    """Class numbers from numbers or names, or a comma-separated text of them; None for all.

    Raises:
        InputError: there is no such class.
    """
    if given is None:
        return None
    wanted = given.split(",") if isinstance(given, str) else list(given)
    found = set()
    for one in wanted:
        name = str(one).strip()
        if name in dataset.classes:
            found.add(dataset.classes.index(name))
        elif name.isdigit() and int(name) < dataset.num_classes:
            found.add(int(name))
        else:
            known = ", ".join(dataset.classes[:10]) + (" ..." if dataset.num_classes > 10 else "")
            raise InputError(f"classes: there is no class {name!r}: give names ({known}) or numbers from 0 on")
    if not found:
        raise InputError("classes: none is given: name at least one")
    return sorted(found)


def driving(dataset: Dataset, given: Any, seed: int) -> tuple[Dataset, dict[str, Any]]:
    """The data set with the labels that drive the perturbation, and their description for the manifest.

    Args:
        given: "kmeans:K", a file of labels (.npy, .npz, or text with one number per line), or (n,) integers.

    Raises:
        InputError: there is no such file, the labels are not integers or not one per image, or there is a single
            cluster.
    """
    if isinstance(given, str) and given.startswith("kmeans"):
        count = given.partition(":")[2]
        if not count.isdigit() or not 2 <= int(count) <= len(dataset):
            raise InputError(f"labels {given}: say kmeans:K with K from 2 to the number of images")
        labels = clusters(dataset, int(count), seed)
        about: dict[str, Any] = {"from": given}
    else:
        labels = _read(given) if isinstance(given, (str, os.PathLike)) else np.asarray(given)
        about = {"from": Path(given).name if isinstance(given, (str, os.PathLike)) else "an array"}
    if labels.shape != (len(dataset),):
        raise InputError(f"labels: {len(dataset):,} images need as many labels, these are {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or (len(labels) and labels.min() < 0):
        raise InputError("labels: they must be whole numbers from 0 on")
    used, numbers = np.unique(labels, return_inverse=True)
    if len(used) < 2:
        raise InputError("labels: a poison needs at least two, all of these are the same")
    numbers = numbers.reshape(-1)
    # The share of the most frequent class in each cluster: how the true labels relate to the driving ones.
    table = np.zeros((len(used), dataset.num_classes), np.int64)
    np.add.at(table, (numbers, dataset.labels), 1)
    about |= {"classes": len(used), "purity": float(table.max(1).sum() / len(labels))}
    return replace(dataset, labels=numbers, classes=tuple(f"label{value}" for value in used)), about


def clusters(dataset: Dataset, count: int, seed: int) -> np.ndarray:
    """Labels (n,) int64 from k-means (scipy's, k-means++ start) on the images shrunk to 8 x 8 pixels."""
    from scipy.cluster.vq import kmeans2

    small = []
    for begin, stop in chunks(dataset.images, CHUNK_BYTES):
        pixels = as_tensor(np.ascontiguousarray(dataset.images[begin:stop])).permute(0, 3, 1, 2).float() / 255
        small.append(nn.functional.adaptive_avg_pool2d(pixels, SIDE).flatten(1).double().numpy())
    points = np.concatenate(small)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about empty clusters, which are left out
        _, labels = kmeans2(points, count, iter=50, minit="++", seed=seed % (1 << 32))
    return np.asarray(labels, np.int64)


def _read(given: str | os.PathLike[str]) -> np.ndarray:
    path, hint = expand(given), "give kmeans:K, or a file with a number for each image (.npy, .npz or text)"
    if not path.exists():
        raise InputError(f"labels: there is no file {path}: {hint}")
    with reading(path, hint, "as labels"):
        if path.suffix == ".npz":
            with open_arrays(path) as file:
                check_sizes(path)
                found = [np.asarray(file[key]) for key in ("labels", "y", "targets") if key in file]
            if not found:
                raise InputError(f"{path} has no labels, y or targets: name the array so")
            return found[0]
        if path.suffix == ".npy":
            return np.asarray(np.load(regular(path), allow_pickle=False, mmap_mode="r"))
        return np.array([int(word) for word in regular(path).read_text(encoding="utf-8").split()], np.int64)


def shuffled_labels(labels: np.ndarray, seed: int) -> np.ndarray:
    """The same labels, permuted over the images: a control in which no perturbation is tied to a class."""
    generator = torch.Generator().manual_seed(seed % (1 << 63))
    return labels[torch.randperm(len(labels), generator=generator).numpy()]
