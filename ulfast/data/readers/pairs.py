"""Sets in which every image has its own label: NTGA's `x_train*.npy` with `y_train*.npy`, and pickled lists of (image,
label), in which the programs of ECLIPSE, COIN and DUNE store their poisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ..dataset import Dataset
from .arrays import named_labels, nhwc, pixels
from .request import Request
from .restricted import load_pickle

PICKLES = (".pkl", ".pickle")
SAMPLED = 200  # images from which the order of flat pixels is inferred
SMOOTHER = 0.8  # the right order has at most this share of the other order's neighbour differences
TEST_NAMES = ("test", "val")


def detect_npy(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".npy" and path.name.startswith("x_") and _beside(path) is not None
    return path.is_dir() and any(_beside(file) is not None for file in path.glob("x_*.npy"))


def _beside(images: Path) -> Path | None:
    """The label file of an image file: the same name with y, or the only one of its split."""
    same = images.with_name("y" + images.name[1:])
    if same.is_file():
        return same
    split = images.stem.split("_")[1]
    others = sorted(images.parent.glob(f"y_{split}*.npy"))
    return others[0] if len(others) == 1 else None


def read_npy(request: Request) -> Dataset:
    """`x_train*.npy` images, (n, H, W, C) or (n, C, H, W), uint8 or floats in [0, 1], with `y_train*.npy`, one-hot or
    numbers; test images are in `x_test*.npy` or `x_val*.npy`.

    Raises:
        InputError: there are several such files, labels are missing, or values are neither pixels nor labels.
    """
    path, split, sole = request.path, request.split, request.sole
    if path.is_file() and split == "test" and not sole and path.name.startswith("x_train"):
        path = path.parent
    if path.is_file():
        file = path
    else:
        names = ("train",) if split == "train" else TEST_NAMES
        names = (*names, "train") if sole else names
        found = next((files for name in names if (files := sorted(path.glob(f"x_{name}*.npy")))), [])
        if not found:
            raise MissingSplit(f"{path} has no x_{names[0]}*.npy: give the {split} images with --test-data")
        if len(found) > 1:
            raise InputError(f"{path} has {found[0].name} and {found[1].name}: point --data at one of them")
        file = found[0]
    labels_file = _beside(file)
    if labels_file is None:
        raise InputError(f"{file} has no y{file.stem[1:]}.npy beside it: put their labels there")
    labels, classes = named_labels(_load(labels_file), (), str(labels_file))
    return Dataset(pixels(_load(file), str(file)), labels, classes, file.stem, split)


def _load(file: Path) -> np.ndarray:
    """An .npy file, memory-mapped, so that its header is first compared with its size."""
    try:
        array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many types for a damaged file
        raise InputError(f"{file} cannot be read as an array ({str(error)[:100]}): get it again") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{file} is an archive with the suffix of an array: rename it to .npz")
    return array


def detect_pickle(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in PICKLES


def read_pickle(request: Request) -> Dataset:
    """A list of (image, label): see `list_arrays`.

    Raises:
        InputError: the file holds something else, or is a pickle that could run code.
    """
    path = request.path
    if request.split == "test" and not request.sole:
        raise MissingSplit(f"{path} holds the training images: give the test images with --test-data")
    content = load_pickle(path)
    if not is_list(content):
        raise InputError(f"{path} holds no list of (image, label): import a perturbation with `ulfast data import`")
    images, numbers = list_arrays(content, path)
    labels, classes = named_labels(numbers, (), f"{path}, labels")
    return Dataset(pixels(images, str(path)), labels, classes, path.stem, request.split)


def is_list(content: Any) -> bool:
    """Whether the content of a pickle is a list of (image, label)."""
    if not isinstance(content, (list, tuple)) or not content:
        return False
    first = content[0]
    return (
        isinstance(first, (list, tuple))
        and len(first) == 2
        and isinstance(first[0], (bytes, bytearray, np.ndarray))
        and not isinstance(first[1], (bytes, bytearray))
    )


def list_arrays(content: Sequence[Any], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W, C), uint8 or floats, and labels (n,) from a list of (image, label).

    An image is an array, (C, H, W) or (H, W, C), or the bytes of a square one: interleaved pixels or colour planes,
    whichever makes neighbours more alike.

    Raises:
        InputError: images have several sizes, or bytes are not of a square image or their order cannot be inferred.
    """
    images: list[np.ndarray] = []
    labels: list[Any] = []
    for i, entry in enumerate(content):
        if not isinstance(entry, (list, tuple)) or len(entry) != 2:
            raise InputError(f"{path}: entry {i} is not a pair of an image and a label: get it again")
        image, label = entry
        image = np.frombuffer(image, np.uint8) if isinstance(image, (bytes, bytearray)) else image
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "uf":
            raise InputError(f"{path}: image {i} is a {type(image).__name__}, not bytes, uint8 or floats: get it again")
        if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
            raise InputError(f"{path}: images 0 and {i} differ, {images[0].shape} and {image.shape}: get it again")
        if np.ndim(label):
            label = np.argmax(label) if np.sum(label) == 1 else label
        if np.ndim(label) or not isinstance(label, (int, float, np.number)):
            raise InputError(f"{path}: the label of image {i} is not a class number: get it again")
        images.append(image)
        labels.append(label)
    stack = np.stack(images)
    if stack.ndim == 2:
        stack = _square(stack, path)
    elif stack.ndim == 4 and stack.shape[1] in (1, 3) and stack.shape[3] in (1, 3):
        raise InputError(f"{path}: images of shape {stack.shape[1:]} have colours first and last: save them as bytes")
    return nhwc(stack, str(path)), np.asarray(labels)


def _square(flat: np.ndarray, path: Path) -> np.ndarray:
    """(n, d) pixels as (n, H, W, C)."""
    for channels in (3, 1):
        side = math.isqrt(flat.shape[1] // channels)
        if channels * side * side == flat.shape[1]:
            break
    else:
        raise InputError(f"{path}: images of {flat.shape[1]:,} bytes are not square: save them as (H, W, C) arrays")
    if channels == 1:
        return flat.reshape(-1, side, side, 1)
    by_pixel = flat.reshape(-1, side, side, 3)
    by_plane = flat.reshape(-1, 3, side, side).transpose(0, 2, 3, 1)
    some = np.linspace(0, len(flat) - 1, min(len(flat), SAMPLED)).astype(int)
    rough = [_roughness(images[some]) for images in (by_pixel, by_plane)]
    if min(rough) > SMOOTHER * max(rough):
        raise InputError(
            f"{path}: cannot tell whether its bytes are interleaved pixels or colour planes: save the images as"
            " (H, W, C) arrays"
        )
    return by_pixel if rough[0] < rough[1] else by_plane


def _roughness(images: np.ndarray) -> float:
    """Mean difference between vertical and horizontal neighbours."""
    images = images.astype(np.float32)
    return float(np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean())
