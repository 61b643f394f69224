"""Writing a data set folder: `SPLIT/images.npy`, `SPLIT/labels.npy`, `SPLIT/manifest.json`, all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...runtime.files import atomic_folder, check_free, write_json
from ...runtime.made import expand
from ...version import __version__
from ..classes import matched
from ..dataset import Dataset, chunks

FORMAT = "ulfast-dataset-1"
BLOCK = 1 << 22  # bytes of images covered by one checksum


def array_header(shape: Sequence[int], kind: str = "|u1") -> bytes:
    """The head of a .npy file, of uint8 unless `kind` names another dtype.

    numpy pads it to a multiple of 64 bytes, with room for the count to grow, so it can be rewritten in place.
    """
    head = io.BytesIO()
    about: Any = {"descr": kind, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(head, about)  # type: ignore[no-untyped-call]
    return head.getvalue()


class Digest:
    """Digests of the images' bytes, in order: SHA-256 of all, and CRC-32 of each block for partial reads."""

    def __init__(self) -> None:
        self._sha256, self._blocks, self._bytes = hashlib.sha256(), [0], 0

    def update(self, data: memoryview | bytes) -> None:
        data = memoryview(data).cast("B")
        self._sha256.update(data)
        at = 0
        while at < len(data):
            room = BLOCK - self._bytes % BLOCK
            if self._bytes and room == BLOCK:
                self._blocks.append(0)
            piece = data[at : at + room]
            self._blocks[-1] = zlib.crc32(piece, self._blocks[-1])
            at += len(piece)
            self._bytes += len(piece)

    def summary(self) -> dict[str, Any]:
        """The entries for the manifest."""
        return {"images_sha256": self._sha256.hexdigest(), "block": BLOCK, "images_crc32": self._blocks}


def complete_split(
    folder: Path,
    labels: np.ndarray,
    image_shape: Sequence[int],
    classes: Sequence[str],
    digest: Digest,
    about: dict[str, Any],
) -> None:
    """Writes labels and manifest of a split whose images are written and digested."""
    labels = np.ascontiguousarray(labels, np.int64)
    np.save(folder / "labels.npy", labels)
    manifest = {
        "format": FORMAT,
        "ulfast": __version__,
        "classes": list(classes),
        "image_shape": list(image_shape),
        "images": len(labels),
        **digest.summary(),
        "labels_crc32": zlib.crc32(labels.data),
        **about,
    }
    write_json(folder / "manifest.json", manifest)


class SplitWriter:
    """Streams one split to a folder. Created by `DatasetWriter.split`."""

    def __init__(self, folder: Path, image_shape: Sequence[int], classes: Sequence[str], about: dict[str, Any]) -> None:
        self._folder, self._shape, self._classes, self._about = folder, tuple(image_shape), tuple(classes), about
        folder.mkdir()
        self._file = (folder / "images.npy").open("wb")
        self._header(0)
        self._data_start = self._file.tell()
        self._labels: list[np.ndarray] = []
        self._digest = Digest()

    def _header(self, n: int) -> None:
        self._file.write(array_header((n, *self._shape)))

    def append(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Adds (m, H, W, C) uint8 images with their (m,) labels."""
        if images.dtype != np.uint8 or images.shape[1:] != self._shape or len(images) != len(labels):
            raise ValueError(
                f"append takes (m, {', '.join(map(str, self._shape))}) uint8 and m labels,"
                f" got {images.shape} {images.dtype} and {len(labels)} labels"
            )
        block = np.ascontiguousarray(images)
        self._file.write(block.data)
        self._digest.update(block.data)
        self._labels.append(np.asarray(labels, dtype=np.int64))

    def append_all(self, dataset: Dataset) -> None:
        """Adds a whole data set, piece by piece."""
        for begin, stop in chunks(dataset.images):
            self.append(dataset.images[begin:stop], dataset.labels[begin:stop])

    def set_manifest(self, manifest: dict[str, Any]) -> None:
        """Replaces the manifest, for entries known only after the last image."""
        self._about["manifest"] = manifest

    def close(self) -> None:
        """Completes the split. The writer calls it; call it earlier to read the split back."""
        if self._file.closed:
            return
        labels = np.concatenate(self._labels) if self._labels else np.zeros(0, np.int64)
        self._file.seek(0)
        self._header(len(labels))
        if self._file.tell() != self._data_start:
            raise RuntimeError("the header of images.npy changed its length")
        self._file.close()
        complete_split(self._folder, labels, self._shape, self._classes, self._digest, self._about)

    def abort(self) -> None:
        self._file.close()


class DatasetWriter:
    """Writes a data set folder of any size, atomically: readers see all of it or nothing.

    Args:
        path: the folder to create.
        overwrite: replace a folder that exists.

    Example:
        >>> with DatasetWriter("out") as writer:
        ...     split = writer.split("train", (32, 32, 3), classes)
        ...     for images, labels in batches:
        ...         split.append(images, labels)

    Raises:
        InputError: the folder exists, the disk is full, or the folder is not writable.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._path = expand(path)
        check_free(self._path, overwrite)
        self._overwrite = overwrite
        self._stack = contextlib.ExitStack()
        self._splits: list[SplitWriter] = []

    def __enter__(self) -> DatasetWriter:
        self.folder = self._stack.enter_context(atomic_folder(self._path, overwrite=self._overwrite))
        return self

    def split(
        self,
        name: str,
        image_shape: Sequence[int],
        classes: Sequence[str],
        *,
        source: str = "",
        manifest: dict[str, Any] | None = None,
    ) -> SplitWriter:
        """Starts the split "train" or "test"; `manifest` is kept as `Dataset.manifest`."""
        about = {"name": source, "split": name, "manifest": manifest or {}}
        writer = SplitWriter(self.folder / name, image_shape, classes, about)
        self._splits.append(writer)
        return writer

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            try:
                for split in self._splits:
                    split.close()
            except BaseException as error:
                if not self._stack.__exit__(type(error), error, error.__traceback__):
                    raise
                return None
        else:
            for split in self._splits:
                split.abort()
        return self._stack.__exit__(kind, value, trace)


def write_dataset(
    path: str | os.PathLike[str], train: Dataset, test: Dataset | None = None, *, overwrite: bool = False
) -> None:
    """Writes one or two splits to the folder `path`, atomically; the classes of `test` are matched by name.

    Raises:
        InputError: the splits are not of one data set; otherwise as for `DatasetWriter`.
    """
    test = None if test is None else matched(train, test, names=("training images", "test images"), part=True)
    with DatasetWriter(path, overwrite=overwrite) as writer:
        for name, dataset in (("train", train), ("test", test)):
            if dataset is None:
                continue
            split = writer.split(
                name, dataset.image_shape, dataset.classes, source=dataset.name, manifest=dataset.manifest
            )
            split.append_all(dataset)
