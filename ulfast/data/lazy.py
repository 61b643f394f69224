"""Images that are decoded on demand, for data sets that do not fit into memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import InputError
from ..runtime.machine import cores

# Data sets larger than this once decoded are read piece by piece; ULFAST_STREAM_BYTES sets another limit.
STREAM_BYTES = 4 << 30
# Batches decoded ahead of the one in use; images given to a thread at a time, where a batch has enough of them.
AHEAD, SHARE = 2, 16

Read = Callable[[int, np.ndarray], None]


def streams(count: int, shape: Sequence[int], wanted: bool | None) -> bool:
    """Whether images are decoded on demand: as requested, otherwise by their size.

    Raises:
        InputError: ULFAST_STREAM_BYTES is not a number.
    """
    if wanted is not None:
        return wanted
    limit = os.environ.get("ULFAST_STREAM_BYTES", str(STREAM_BYTES))
    if not limit.isdecimal():
        raise InputError(f"ULFAST_STREAM_BYTES is {limit!r}: give a number of bytes")
    return count * int(np.prod(shape)) > int(limit)


class LazyImages:
    """Looks like a read-only (n, H, W, C) uint8 array; indexing the first axis decodes images, on one thread per core.

    Args:
        shape: (n, H, W, C).
        read: ``read(i, out)`` writes image i to out (H, W, C); called from several threads.
        rows: (n,) which images of `read` these are; None: 0 to n - 1.
    """

    ndim, dtype, itemsize = 4, np.dtype(np.uint8), 1
    flags = SimpleNamespace(c_contiguous=True)

    def __init__(self, shape: Sequence[int], read: Read, rows: np.ndarray | None = None) -> None:
        self.shape = tuple(int(side) for side in shape)
        self._read = read
        self._rows = np.arange(self.shape[0]) if rows is None else rows

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    nbytes = size

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index: np.ndarray) -> LazyImages:
        """The images at `index`, still undecoded."""
        rows = self._rows[index]
        return LazyImages((len(rows), *self.shape[1:]), self._read, rows)

    def read_into(self, index: np.ndarray, out: np.ndarray) -> None:
        """Decodes the images at `index` one by one in the calling thread."""
        for row, image in zip(self._rows[index], out, strict=True):
            self._read(int(row), image)

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, (int, np.integer)):
            image = np.empty(self.shape[1:], np.uint8)
            self._read(int(self._rows[key]), image)
            return image
        index = np.arange(len(self))[key]
        out = np.empty((index.size, *self.shape[1:]), np.uint8)
        with ThreadPoolExecutor(cores()) as pool:
            wait(spread(pool, self, index.ravel(), out))
        return out.reshape(*index.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)


def spread(pool: ThreadPoolExecutor, images: LazyImages, index: np.ndarray, out: np.ndarray) -> list[Future[None]]:
    """Submits the decoding of a batch to a pool, in pieces."""
    piece = max(1, min(SHARE, -(-len(index) // cores())))
    return [
        pool.submit(images.read_into, index[i : i + piece], out[i : i + piece]) for i in range(0, len(index), piece)
    ]


def wait(pieces: Sequence[Future[None]]) -> None:
    """Waits until all have ended and only then raises the first error, so that no thread still writes to `out`."""
    errors = [error for piece in pieces if (error := piece.exception()) is not None]
    if errors:
        raise errors[0]


def prefetch(
    images: LazyImages, batches: Sequence[np.ndarray], ahead: int = AHEAD, threads: int | None = None
) -> Iterator[np.ndarray]:
    """The images of each batch of indices, (b, H, W, C), decoded while the caller works on the batch before.

    A batch is valid until the next one is requested: only `ahead` + 1 buffers are allocated. Ending the iteration
    early, or an error in it, ends its threads.
    """
    size = max(map(len, batches), default=0)
    buffers = [np.empty((size, *images.shape[1:]), np.uint8) for _ in range(min(ahead + 1, len(batches)))]
    pending: deque[tuple[list[Future[None]], np.ndarray]] = deque()
    pool = ThreadPoolExecutor(threads or cores(), thread_name_prefix="ulfast-decode")
    try:
        for i in range(len(batches) + ahead):
            if i < len(batches):
                out = buffers[i % len(buffers)][: len(batches[i])]
                pending.append((spread(pool, images, np.asarray(batches[i]), out), out))
            if i >= ahead:
                pieces, out = pending.popleft()
                wait(pieces)
                yield out
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
