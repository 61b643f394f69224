"""`FFCVLoader`: FFCV's decoding threads behind the interface of `MemoryLoader`, with guards against FFCV's faults."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import ops
from ...errors import InputError
from ...ops.schemas import Directions, rows_of
from ...ops.state import ordinary
from ...runtime.machine import cores
from ..loaders.augment import Augment, resized_crop
from ..loaders.epoch import EpochLoader
from ..tensors import channel_statistics
from . import engine
from .checked import Checked
from .format import open_beton
from .images import as_dataset

POLL = 0.05  # seconds after which a thread waiting for room checks whether it is still wanted
BATCHES_AHEAD = 2


class FFCVLoader(EpochLoader):
    """Iterable of batches ``(x, y)``, like `MemoryLoader`: same order, same augmentation, same values, decoded by FFCV.

    FFCV decodes ahead in its threads; the caller's thread projects, augments and normalises in one call of the `ingest`
    kernel, which returns a fresh tensor, so batches may be kept. Draws depend on (seed, epoch, image number).

    What FFCV does not guard is guarded here: the file is checked when it is opened and each image when it is first
    read; an exception in the pipeline reaches the caller; leaving an epoch early ends its thread; torch keeps its
    number of threads; several loaders may run at once.

    Args:
        path: a .beton file.
        batch_size: images per batch.
        basis, mean, std, dtype, augment, shuffle, seed, drop_last, device: as for `MemoryLoader`.
        size: side in pixels of the result; the centre square, `crop` of the shorter side, is scaled to it (area
            averages). None: images as they are, which must then have one size.
        crop: side of that square as a share of the image's shorter side; ImageNet's evaluation takes 224 / 256.
        indices: which images of the file to use, in this order; draws and order number them from 0. None: all.
        threads: number of decoding threads (default: one per core).

    Raises:
        InputError: FFCV is missing, the file is damaged, or the images have several sizes and `size` is None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch_size: int,
        *,
        basis: Tensor | Directions | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dtype: torch.dtype = torch.float32,
        augment: Augment | None = None,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        size: int | None = None,
        crop: float = 224 / 256,
        indices: np.ndarray | None = None,
        threads: int | None = None,
    ) -> None:
        if not 0 < crop <= 1:
            raise ValueError(f"crop must be a share of the shorter side, above 0 and at most 1, got {crop}")
        beton = open_beton(path)
        shape = beton.image_shape if size is None else (size, size, 3)
        if shape is None:
            raise InputError(f"{path} has images of several sizes: give the size of the result, for example size=224")
        rows = np.arange(len(beton)) if indices is None else np.asarray(indices, np.int64)
        if rows.ndim != 1 or not len(rows) or rows.min() < 0 or rows.max() >= len(beton):
            raise InputError(f"indices must be numbers from 0 to {len(beton) - 1} of images in {path}")
        super().__init__(len(rows), batch_size, augment=augment, shuffle=shuffle, seed=seed, drop_last=drop_last)
        if mean is None or std is None:
            mean, std = channel_statistics(as_dataset(beton, resize=size))
        self.image_shape, self.device = shape, torch.device(device)
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32, device="cpu") for v in (mean, std))
        self.basis = None if basis is None else rows_of(basis, shape).cpu().float()
        self._rows, self._checked = rows, Checked(beton)
        self._labels = torch.from_numpy(beton.labels[rows])
        pieces = _pieces()
        decoder = pieces.simple() if size is None else pieces.centre((size, size), crop)
        self._dtype = dtype
        if len(np.unique(rows)) < len(rows):
            raise InputError("indices name an image twice")
        with _torch_threads():
            self._engine = pieces.loader(
                str(path),
                batch_size,
                num_workers=min(threads or cores(), pieces.most_threads),
                drop_last=False,
                os_cache=True,
                batches_ahead=BATCHES_AHEAD,
                seed=0,
                pipelines={
                    beton.image_field: [decoder, pieces.to_tensor()],
                    **dict.fromkeys(_others(beton.path, beton.image_field)),
                },
            )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order()
        # Put in the epoch's order once, so that a batch is a slice.
        height, width, _ = self.image_shape
        draws = (*self._draws(), self._boxes((height, width)))
        shifts, flips, boxes = (None if draw is None else draw[order] for draw in draws)
        labels = self._labels[order]
        classwise = self.basis is not None and self.basis.dim() == 3
        epoch = _pieces().epoch(self._engine, self._rows[order.numpy()].astype(np.uint64), self._checked.need)
        try:
            for begin, decoded in zip(range(0, len(order), self.batch_size), epoch, strict=True):
                part = slice(begin, begin + self.batch_size)
                # `decoded` is a view of FFCV's buffer, x a fresh tensor.
                x = ops.ingest(
                    decoded,
                    self.basis,
                    self.mean,
                    self.std,
                    dtype=self._dtype,
                    shift=None if shifts is None else shifts[part],
                    flip=None if flips is None else flips[part],
                    labels=labels[part] if classwise else None,
                )
                x = x.to(self.device)
                yield x if boxes is None else resized_crop(x, boxes[part]), labels[part].to(self.device)
        finally:
            epoch.close()
            self._checked.pass_ended()


def _others(path: Any, image_field: str) -> list[str]:
    """The fields of the file other than the images: the labels are known from the table."""
    from ffcv.reader import Reader

    return [name for name in Reader(str(path)).field_names if name != image_field]


class _torch_threads:
    """Restores torch's number of threads, which FFCV's loader sets for the whole process."""

    def __enter__(self) -> None:
        self.threads = torch.get_num_threads()

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self.threads)


class _Pieces(NamedTuple):
    """Our subclasses of FFCV's classes, made once FFCV is imported."""

    loader: Any
    epoch: Any
    project: Any
    to_tensor: Any
    simple: Any
    centre: Any
    most_threads: int


@lru_cache(maxsize=1)
def _pieces() -> _Pieces:
    engine.load()
    with _torch_threads():
        import numba
        from ffcv.fields.rgb_image import CenterCropRGBImageDecoder, SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.pipeline.operation import Operation
        from ffcv.transforms import ToTensor

    compiling = threading.Lock()  # the first batch compiles; one at a time

    class PerBatch(Operation):  # type: ignore[misc]
        """A function of (decoded images, their row numbers) on torch tensors; not compiled, holds no lock."""

        def __init__(self, function: Callable[[Tensor, np.ndarray], Tensor], dtype: torch.dtype) -> None:
            super().__init__()
            self.function, self.dtype = function, dtype

        def generate_code(self) -> Callable[..., Tensor]:
            function = self.function

            def run(images: Tensor, _: Any, rows: np.ndarray) -> Tensor:
                return function(images, rows)

            run.with_indices = True  # type: ignore[attr-defined]
            return run

        def declare_state_and_memory(self, previous_state: Any) -> Any:
            from dataclasses import replace

            return replace(previous_state, jit_mode=False, dtype=self.dtype), None

    class Epoch(EpochIterator):  # type: ignore[misc]
        """One pass, whose thread ends when told to and whose errors reach the caller."""

        @ordinary  # FFCV allocates on the default device
        def __init__(self, loader: Any, order: np.ndarray, check: Callable[[np.ndarray], None]) -> None:
            self._check = check
            self.closed = False
            super().__init__(loader, order)

        def run(self) -> None:
            try:
                numba.set_num_threads(self.loader.num_workers)  # FFCV's own call would also set torch's
                slots = self.loader.batches_ahead + 2
                for number, rows in enumerate(self.iter_ixes):
                    if self.terminate_event.is_set():
                        return
                    self._check(rows)
                    with contextlib.nullcontext() if number else compiling:
                        (x,) = self.run_pipeline(number, rows, number % slots, None)
                    self._offer(x)
                self._offer(None)
            except BaseException as error:
                self._offer(error)

        def _offer(self, item: Any) -> None:
            while not self.terminate_event.is_set():
                try:
                    return self.output_queue.put(item, timeout=POLL)
                except queue.Full:
                    pass
            return None

        def __next__(self) -> Tensor:
            item = self.output_queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                raise StopIteration
            return item  # type: ignore[no-any-return]

        def close(self) -> None:
            if self.closed:
                return
            self.closed = True
            self.terminate_event.set()
            while not self.output_queue.empty():  # a thread that waits for room continues at once
                self.output_queue.get_nowait()
            self.join()
            self.memory_context.__exit__(None, None, None)

        def __del__(self) -> None:  # the base class's would close again, from any thread
            pass

    class Project(PerBatch):
        """See `ffcv_project`."""

        def __init__(self, basis: Tensor | Directions) -> None:
            super().__init__(lambda images, rows: ops.project(images, basis), torch.float32)

    return _Pieces(
        Loader,
        Epoch,
        Project,
        ToTensor,
        SimpleRGBImageDecoder,
        CenterCropRGBImageDecoder,
        numba.config.NUMBA_NUM_THREADS,  # type: ignore[attr-defined]
    )


def ffcv_project(basis: Tensor | Directions) -> Any:
    """The projection as an operation for other FFCV pipelines, placed right after `ToTensor`.

    Takes the decoded (b, H, W, C) uint8 images and returns ``x - (x B^T) B`` as a fresh (b, H, W, C) float32 tensor in
    units of [0, 1], not clipped. It must come before any crop or flip: the basis knows unshifted pixels.

    Args:
        basis: a `Basis` or its (k, H*W*C) orthonormal rows, float32, on the CPU.

    Raises:
        InputError: FFCV is missing.
    """
    return _pieces().project(basis)
