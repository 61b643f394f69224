"""Folders of images, a folder a class: `train/CLASS/*.jpg` with `test/` or `val/` beside it, or CLASS folders alone."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...runtime.machine import cores
from ...runtime.progress import Progress
from ..dataset import Dataset
from ..lazy import LazyImages, streams
from ..resize import centre_square
from .request import Request

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _split_folder(path: Path, split: str) -> Path | None:
    return next((path / name for name in SPLITS[split] if (path / name).is_dir()), None)


def _images_in(folder: Path) -> list[Path]:
    found = []
    for base, names, files in os.walk(folder, followlinks=True):
        names.sort()
        found += [
            Path(base, name) for name in sorted(files) if Path(name).suffix.lower() in SUFFIXES and name[0] != "."
        ]
    return found


def detect(path: Path) -> bool:
    return path.is_dir() and bool(_folders(path))


def read(request: Request) -> Dataset:
    """Decodes every image to RGB, large sets on demand. Classes are the folder names, sorted."""
    path, split, resize = request.path, request.split, request.resize
    root = _split_folder(path, split)
    if root is None:
        other = _split_folder(path, "test" if split == "train" else "train")
        if request.sole and other is not None:
            root = other
        elif other is None and (split == "train" or request.sole):
            root = path
        else:
            raise InputError(
                f"{path} has no {split} images ({' or '.join(SPLITS[split])} folder): give them with --test-data"
            )
    classes = _folders(root)
    if not classes:
        raise InputError(f"{root} has no class folders: expected {root}/CLASS/*.jpg")
    members = [_images_in(folder) for folder in classes]
    for folder, files in zip(classes, members, strict=True):
        if not files:
            raise InputError(f"class {folder} has no image: add some or remove the folder")
    files = [file for group in members for file in group]
    labels = np.repeat(np.arange(len(classes)), [len(group) for group in members])
    shape = decode(files[0], resize).shape
    images: np.ndarray | LazyImages
    if streams(len(files), shape, request.stream):
        images = LazyImages((len(files), *shape), lambda i, out: _decode_into(files, i, resize, out))
    else:
        images = decode_all(files, resize, request.progress)
    return Dataset(images, labels, tuple(folder.name for folder in classes), path.name, split)  # type: ignore[arg-type]


def _decode_into(files: list[Path], i: int, resize: int | None, out: np.ndarray) -> None:
    image = decode(files[i], resize)
    if image.shape != out.shape:
        sizes = f"{out.shape[1]} x {out.shape[0]} and {image.shape[1]} x {image.shape[0]}"
        raise InputError(f"images differ in size: {sizes} ({files[0]}, {files[i]}): say --resize S")
    out[:] = image


def decode_all(files: list[Path], resize: int | None, progress: Progress | None) -> np.ndarray:
    """All files as one (n, H, W, 3) array, on a pool of threads; the decoders release the GIL.

    Raises:
        InputError: an unreadable image, or images of different sizes and no `resize`.
    """
    first = decode(files[0], resize)
    out = np.empty((len(files), *first.shape), np.uint8)

    def work(i: int) -> None:
        _decode_into(files, i, resize, out[i])

    with ThreadPoolExecutor(cores()) as pool:
        block = 256
        try:
            for begin in range(0, len(files), block):
                stop = min(begin + block, len(files))
                list(pool.map(work, range(begin, stop)))
                if progress:
                    progress("read", stop, len(files))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return out


def decode(file: Path, resize: int | None = None) -> np.ndarray:
    """One image as (H, W, 3) uint8; with `resize`, the shorter side brought to it and the centre square taken."""
    from PIL import Image

    try:
        import simplejpeg
    except ImportError:  # Pillow reads the same pixels, in more time
        simplejpeg = None
    try:
        data = file.read_bytes()
        image = None
        if simplejpeg is not None and simplejpeg.is_jpeg(data):
            try:
                image = simplejpeg.decode_jpeg(data, "RGB")
            except ValueError:
                image = None  # CMYK and other rare kinds: Pillow knows them
        if image is None:
            with Image.open(io.BytesIO(data)) as picture:
                image = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} cannot be read as an image ({error}): repair or remove it") from None
    return image if resize is None else centre_square(image, resize)
