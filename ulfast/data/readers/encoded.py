"""Many encoded images, wherever they are stored, as one array: decoded now by a thread pool, or on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np

from ...errors import InputError
from ...runtime.machine import cores
from ...runtime.progress import Progress
from ..lazy import LazyImages, streams
from .image import decode
from .request import Request

BLOCK = 256  # images decoded between two progress reports


@dataclass(frozen=True)
class Encoded:
    """Encoded images: files, members of archives or rows of tables.

    Attributes:
        count: number of images.
        name: name of image i, for errors.
        read: returns the encoded bytes of image i; called from several threads.
        channels: 3, or 1 if the images were written as gray images.
    """

    count: int
    name: Callable[[int], Path | str]
    read: Callable[[int], bytes]
    channels: int = 3

    def decode(self, i: int, resize: int | None, notes: Counter[str] | None = None) -> np.ndarray:
        """Image i as (H, W, channels) uint8."""
        return decode(self.name(i), resize, channels=self.channels, notes=notes, read=lambda: self.read(i))

    def decode_into(self, i: int, resize: int | None, out: np.ndarray, notes: Counter[str] | None = None) -> None:
        """Decodes image i into `out`.

        Raises:
            InputError: the image does not have the size of `out`, or cannot be read.
        """
        image = self.decode(i, resize, notes)
        if image.shape != out.shape:
            sizes = f"{out.shape[1]} x {out.shape[0]} and {image.shape[1]} x {image.shape[0]}"
            raise InputError(f"images differ in size: {sizes} ({self.name(0)}, {self.name(i)}): say --resize S")
        out[:] = image

    def take(self, rows: np.ndarray) -> Encoded:
        """The images at `rows`."""
        name, read = self.name, self.read
        return replace(self, count=len(rows), name=lambda i: name(int(rows[i])), read=lambda i: read(int(rows[i])))


def read_images(
    source: Encoded, labels: np.ndarray, request: Request, notes: Counter[str]
) -> tuple[np.ndarray, np.ndarray]:
    """The images, (n, H, W, channels) uint8, with their labels; large sets are decoded on demand. With `request.limit`,
    those alone that it asks for.

    With `request.skip_damaged`, images that cannot be read are left out and counted in `notes`.

    Raises:
        InputError: an image cannot be read, there is none, or images have several sizes and `request.resize` is None.
    """
    if request.skip_damaged:
        good = _readable(source, request.progress)
        if not good.all():
            notes["damaged images, left out"] += int((~good).sum())
            source, labels = source.take(np.flatnonzero(good)), labels[good]
    if (rows := request.chosen(labels)) is not None:
        source, labels = source.take(rows), labels[rows]
    if not source.count:
        raise InputError(f"{request.path} has no {request.split} image that can be read: get it again")
    shape = source.decode(0, request.resize).shape
    if streams(source.count, shape, request.stream):
        lazy = LazyImages((source.count, *shape), lambda i, out: source.decode_into(i, request.resize, out))
        return cast(np.ndarray, lazy), labels
    return _decode_all(source, request.resize, shape, request.progress, notes), labels


def _readable(source: Encoded, progress: Progress | None) -> np.ndarray:
    """(n,) bool: which of the images can be decoded."""

    def good(i: int) -> bool:
        try:
            source.decode(i, None)
        except InputError:
            return False
        return True

    out = np.zeros(source.count, bool)
    with ThreadPoolExecutor(cores()) as pool:
        for i, ok in enumerate(pool.map(good, range(source.count))):
            out[i] = ok
            if progress and ((i + 1) % BLOCK == 0 or i + 1 == source.count):
                progress("check", i + 1, source.count)
    return out


def _decode_all(
    source: Encoded,
    resize: int | None,
    shape: tuple[int, ...],
    progress: Progress | None,
    notes: Counter[str],
) -> np.ndarray:
    """All images as one array; the decoders release the GIL."""
    out = np.empty((source.count, *shape), np.uint8)

    def work(i: int) -> Counter[str]:
        own: Counter[str] = Counter()
        source.decode_into(i, resize, out[i], own)
        return own

    with ThreadPoolExecutor(cores()) as pool:
        try:
            for begin in range(0, source.count, BLOCK):
                stop = min(begin + BLOCK, source.count)
                for own in pool.map(work, range(begin, stop)):
                    notes += own
                if progress:
                    progress("read", stop, source.count)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return out
