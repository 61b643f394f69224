"""Writing .beton files of any size: streamed, atomic, and resumable after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ...errors import InputError
from ...runtime.files import check_free, claimed, publish_with, write_json, writing
from ...runtime.machine import cores
from ...runtime.made import beside_new
from ...runtime.progress import Progress
from ...version import __version__
from ..dataset import Dataset, chunks
from . import format as fmt

MODES = ("raw", "jpeg", "mixed")
PAGE = 1 << 23  # FFCV's default, 8 MiB
CHECKPOINT_BYTES = 256 << 20  # of images between two points from which an interrupted writer can resume
CHUNK_BYTES = 16 << 20

# A line of the journal beside a file that is being written.
JOURNAL = np.dtype([("ptr", "<u8"), ("size", "<u8"), ("label", "<i8"), ("crc", "<u4"), ("mode", "u1")])


class BetonWriter:
    """Writes one split as one .beton file that FFCV reads, with `FILE.json` beside it.

    The images go to `FILE.part`; at a checkpoint they are flushed and noted in `FILE.part.journal`. The file appears
    under its own name once it is complete. With `resume` an interrupted file with the same settings is continued:
    `done` is the number of images that it has, and `complete` is True when nothing is left to do.

    Args:
        path: FILE.beton.
        count: number of images that will be appended.
        image_shape: (H, W, 3) or (H, W, 1), the same for all images.
        classes: their names.
        mode: "raw", "jpeg", or "mixed", where `share` of the images, drawn by `seed`, are JPEG.
        quality: of the JPEG, 1 to 100, with halved colour resolution as in FFCV.
        about: name, split and manifest of the data set, kept in FILE.json.
        identity: settings that a resumed file must match, besides all of the above (JSON-serialisable).
        threads: number of encoding threads (default: one per core).

    Raises:
        InputError: an image is larger than a page, the file exists, or the disk is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        count: int,
        image_shape: Sequence[int],
        classes: Sequence[str],
        *,
        mode: str = "raw",
        quality: int = 90,
        share: float = 0.5,
        seed: int = 0,
        about: dict[str, Any] | None = None,
        identity: dict[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        threads: int | None = None,
    ) -> None:
        self.path, self.count, self.classes = Path(path), count, list(classes)
        if self.path.suffix != ".beton":
            raise InputError(f"--out {path} must end in .beton")
        if mode not in MODES:
            raise InputError(f"unknown mode {mode!r}: known are {', '.join(MODES)}")
        if not 1 <= quality <= 100 or not 0 <= share <= 1:
            raise InputError(f"JPEG quality goes from 1 to 100 and the share from 0 to 1, got {quality} and {share}")
        height, width, channels = image_shape
        if max(height, width) > 65535 or height * width * 3 > fmt.MAX_PAGE // 2 or count < 1:
            raise InputError(f"{count} images of {width} x {height} do not fit a .beton file")
        # FFCV knows only RGB: gray images are written as three equal channels, and the manifest says so.
        self._shape, self._quality = (height, width, channels), quality
        self._page = max(PAGE, 1 << (2 * height * width * 3 - 1).bit_length())
        # The same images become JPEGs on every write, whatever the pieces.
        draws = np.random.Generator(np.random.Philox(seed)).random(count) if mode == "mixed" else np.zeros(count)
        self._jpeg = draws < {"raw": 0.0, "jpeg": 1.0, "mixed": share}[mode]
        self._rows = fmt.row_type([fmt.RGB, fmt.INT])
        self._tables = fmt.HEADER.itemsize + 2 * fmt.FIELD.itemsize + count * self._rows.itemsize
        self._start = -(-(self._tables + 4 * count) // self._page) * self._page
        self._about = about or {}
        self._identity = {
            "ulfast": __version__,
            "count": count,
            "shape": list(self._shape),
            "classes": self.classes,
            "mode": mode,
            "quality": quality,
            "share": share,
            "seed": seed,
            "about": self._about,
            **(identity or {}),
        }
        # Lets a command that was killed after this file continue with the next one.
        self._settle()
        self.complete = (
            resume and self.path.is_file() and fmt.read_manifest(self.path).get("settings") == self._digest()
        )
        self._part = self.path.with_name(self.path.name + ".part")
        self._journal = self.path.with_name(self.path.name + ".part.journal")
        self._settings = self.path.with_name(self.path.name + ".part.json")
        if self.complete:
            with claimed(self.path):
                self._discard()
        if not self.complete:
            check_free(self.path, overwrite)
        self._resume, self._threads = resume, threads or cores()
        self._notes: list[np.ndarray] = []  # of images flushed earlier
        self._fresh: list[tuple[int, int, int, int, int]] = []
        self._end, self._unflushed = self._start, 0
        self._file: BinaryIO
        self._claim = contextlib.ExitStack()

    def _digest(self) -> int:
        return zlib.crc32(json.dumps(self._identity, sort_keys=True).encode())

    @property
    def done(self) -> int:
        """Number of images in the file."""
        return sum(map(len, self._notes)) + len(self._fresh)

    def __enter__(self) -> BetonWriter:
        self._claim.enter_context(claimed(self.path, alone=True))
        try:
            self._begin()
        except BaseException:
            self._claim.close()
            raise
        return self

    def _begin(self) -> None:
        self._settle()
        with writing(self.path):
            if not (self._resume and self._recover()):
                self._discard()
                write_json(self._settings, self._identity)
                self._file = self._part.open("w+b")
            self._pool = ThreadPoolExecutor(self._threads)

    def _settle(self) -> None:
        """Finishes the work of a writer that was killed when the file had its name but not yet its manifest."""
        waiting = beside_new(fmt.manifest_path(self.path))
        if not waiting.exists():
            return
        with claimed(self.path), writing(self.path):
            try:
                mine = fmt.open_beton(self.path).about == json.loads(waiting.read_text(encoding="utf-8"))
            except (InputError, OSError, ValueError):
                mine = False
            if mine:
                os.replace(waiting, fmt.manifest_path(self.path))
            waiting.unlink(missing_ok=True)

    def _recover(self) -> bool:
        """Continues what an interrupted writer left; False if there is nothing or its settings differ."""
        try:
            same = json.loads(self._settings.read_text(encoding="utf-8")) == json.loads(json.dumps(self._identity))
            raw = self._journal.read_bytes()
            size = self._part.stat().st_size
        except (OSError, ValueError):
            return False
        notes = np.frombuffer(raw[: len(raw) - len(raw) % JOURNAL.itemsize], JOURNAL)
        if not same or not len(notes) or len(notes) > self.count or int((notes["ptr"] + notes["size"]).max()) > size:
            return False
        self._notes, self._end = [notes], int(notes["ptr"][-1] + notes["size"][-1])
        os.truncate(self._journal, notes.nbytes)
        os.truncate(self._part, self._end)
        self._file = self._part.open("r+b")
        return True

    def append(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Adds (m, H, W, C) uint8 images with their (m,) labels."""
        if images.dtype != np.uint8 or images.shape[1:] != self._shape or len(images) != len(labels):
            raise ValueError(
                f"append takes (m, {', '.join(map(str, self._shape))}) uint8 and m labels, got"
                f" {images.shape} {images.dtype} and {len(labels)} labels"
            )
        first = self.done
        if first + len(images) > self.count:
            raise ValueError(f"{self.count} images were announced, {first + len(images)} came")
        with writing(self.path):
            encoded = self._pool.map(self._encode, images, self._jpeg[first : first + len(images)])
            for (data, jpeg), label in zip(encoded, labels, strict=True):
                self._put(data, int(label), fmt.JPEG if jpeg else fmt.RAW)
            if self._unflushed >= CHECKPOINT_BYTES:
                self._checkpoint()

    def _encode(self, image: np.ndarray, jpeg: bool) -> tuple[bytes | memoryview, bool]:
        if image.shape[2] == 1:
            image = image.repeat(3, 2)
        if not jpeg:
            return np.ascontiguousarray(image).data.cast("B"), False
        import simplejpeg

        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image), self._quality, colorsubsampling="420")
        return data, True

    def _put(self, data: bytes | memoryview, label: int, mode: int) -> None:
        size = len(data)
        room = self._page - self._end % self._page
        if size > room:  # the rest of the page stays unused
            self._end += room
        self._file.seek(self._end)
        self._file.write(data)
        self._fresh.append((self._end, size, label, zlib.crc32(data), mode))
        self._end += size
        self._unflushed += size

    def _checkpoint(self) -> None:
        """Flushes the images to the disk before the journal records them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        notes = np.array(self._fresh, JOURNAL)
        with self._journal.open("ab") as journal:
            journal.write(notes.tobytes())
            journal.flush()
            os.fsync(journal.fileno())
        self._notes.append(notes)
        self._fresh, self._unflushed = [], 0

    def _finish(self) -> None:
        if self.done != self.count:
            raise ValueError(f"{self.count} images were announced, {self.done} came")
        notes = np.concatenate([*self._notes, np.array(self._fresh, JOURNAL)])
        header = np.array([(fmt.VERSION, 2, self._page, self.count, self._end)], fmt.HEADER)
        fields = np.zeros(2, fmt.FIELD)
        for row, (kind, name) in enumerate(((fmt.RGB, b"image"), (fmt.INT, b"label"))):
            fields[row]["kind"] = kind
            fields[row]["name"][: len(name)] = np.frombuffer(name, np.uint8)
        samples = np.zeros(self.count, self._rows)
        height, width, _ = self._shape
        for key, value in (("mode", notes["mode"]), ("width", width), ("height", height), ("data_ptr", notes["ptr"])):
            samples["f0"][key] = value
        samples["f1"] = notes["label"]
        allocated = np.zeros(self.count, fmt.ALLOCATION)
        allocated["sample"], allocated["ptr"], allocated["size"] = np.arange(self.count), notes["ptr"], notes["size"]
        head = b"".join(a.tobytes() for a in (header, fields, samples, notes["crc"]))
        self._file.seek(self._end)
        self._file.write(allocated.tobytes())
        self._file.seek(0)
        self._file.write(head)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        publish_with(self._part, self.path, fmt.manifest_path(self.path), self._described())
        self._discard()

    def _described(self) -> dict[str, Any]:
        """The manifest of the finished file."""
        mapped = np.memmap(self._part, np.uint8, "r")
        end = int(np.frombuffer(mapped[: fmt.HEADER.itemsize], fmt.HEADER)["table"][0])
        return {
            "format": fmt.FORMAT,
            "ulfast": __version__,
            "classes": self.classes,
            "images": self.count,
            "image_shape": list(self._shape),
            "bytes": len(mapped),
            "settings": self._digest(),
            "tables_sha256": fmt.tables_checksum(mapped, self._tables + 4 * self.count, end),
            **self._about,
        }

    def _discard(self) -> None:
        for file in (self._part, self._journal, self._settings):
            file.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        try:
            if kind is None:
                with writing(self.path):
                    self._finish()
        except BaseException as error:
            kind = type(error)
            raise
        finally:
            if kind is not None:
                if self._resume and not self._file.closed:
                    with contextlib.suppress(OSError):  # a full disk: the previous checkpoint counts
                        self._checkpoint()
                with contextlib.suppress(OSError):
                    self._file.close()
                if not self._resume:
                    self._discard()
            self._claim.close()


def write_beton(
    path: str | os.PathLike[str],
    dataset: Dataset,
    *,
    mode: str = "raw",
    quality: int = 90,
    share: float = 0.5,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a data set as a .beton file; see `BetonWriter`. `progress` is called as ``progress("convert", done, n)``.

    Raises:
        InputError: as for `BetonWriter`.
    """
    about = {"name": dataset.name, "split": dataset.split, "manifest": dataset.manifest}
    options: dict[str, Any] = {"mode": mode, "quality": quality, "share": share, "seed": seed, "about": about}
    writer = BetonWriter(
        path,
        len(dataset),
        dataset.image_shape,
        dataset.classes,
        identity={"data": dataset.fingerprint()},
        resume=resume,
        overwrite=overwrite,
        **options,
    )
    if writer.complete and not overwrite:
        return
    with writer:
        for begin, stop in chunks(dataset.images, CHUNK_BYTES):
            if stop > writer.done:
                begin = max(begin, writer.done)
                writer.append(dataset.images[begin:stop], dataset.labels[begin:stop])
            if progress:
                progress("convert", stop, len(dataset))
