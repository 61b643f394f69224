"""A data set folder written in any order by one or several processes, and resumed after a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from ... import distributed
from ...errors import InputError
from ...runtime.files import SETTINGS, check_free, claimed, part_folder, publish, write_json, writing
from ...runtime.progress import Progress
from ..classes import matched, same_everywhere
from ..dataset import Dataset, chunks
from .folder import Digest, SplitWriter, array_header, complete_split

# Seconds of work that a kill may lose.
COMMIT_SECONDS = 5.0
CHUNK_BYTES = 16 << 20
Range = tuple[int, int]


class RowWriter:
    """Writes `OUT/train` by ranges of rows, in the folder `.OUT.part` beside it, which becomes OUT at the end.

    Ranges that have reached the disk are noted in `.OUT.part/.done-RANK`, one JSON line each; any number of processes
    may resume the work of any other number. An error before the first note removes the folder; after it the folder
    stays.

    Args:
        path: OUT.
        dataset: supplies labels, shape and classes of the output.
        identity: settings that a resumed run must match (JSON-serialisable).
        resume: continue the work found there.
        anew: start over if the work found there has other settings, instead of raising an error.

    Example:
        >>> with RowWriter(out, dataset, settings) as writer:
        ...     for begin, stop in writer.left(ranges):
        ...         writer.put(begin, stop, images, note)
        ...     notes = writer.finish(manifest)

    Raises:
        InputError: OUT exists, there is nothing to resume, the settings differ, another process is writing, or the disk
            is full.
    """

    def __init__(
        self,
        path: Path,
        dataset: Dataset,
        identity: dict[str, Any],
        *,
        resume: bool = False,
        anew: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.path, self.folder = path, part_folder(path)
        self._dataset, self._identity, self._resume, self._overwrite = dataset, identity, resume, overwrite
        self._anew = anew
        self._header = array_header(dataset.images.shape)
        self._row = int(np.prod(dataset.image_shape))
        self._fresh: list[str] = []
        self._notes: dict[Range, Any] = {}
        self._digest, self._hashed = Digest(), 0  # of the rows that came in order
        self._told = time.monotonic()
        self._claim, self._file = contextlib.ExitStack(), -1

    def __enter__(self) -> RowWriter:
        try:
            self._enter()
        except BaseException:
            self._close()
            raise
        return self

    def _enter(self) -> None:
        if distributed.is_main():
            check_free(self.path, self._overwrite)
            self._claim.enter_context(claimed(self.path, alone=True))
            check_free(self.path, self._overwrite)
            with writing(self.path):
                self._open_folder()
        distributed.wait()
        with writing(self.path):
            self._file = os.open(self.folder / "train" / "images.npy", os.O_RDWR)
        self._notes = self._read()
        distributed.wait()  # until all have read the same state

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
        self._claim.close()

    def _open_folder(self) -> None:
        self.folder.mkdir(exist_ok=True)
        settings = self.folder / SETTINGS
        if self._resume and settings.is_file():
            kept = json.loads(settings.read_text(encoding="utf-8"))
            other = [key for key, value in json.loads(json.dumps(self._identity)).items() if kept.get(key) != value]
            if other and not self._anew:
                raise InputError(
                    f"{self.folder} belongs to a run with another {', '.join(other)}: give the same"
                    " settings, or leave --resume out"
                )
            if not other:
                for notes in self.folder.glob(".done-*"):  # a kill may have cut the last line short
                    os.truncate(notes, notes.read_bytes().rfind(b"\n") + 1)
                return
        try:
            self._begin(settings)
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _begin(self, settings: Path) -> None:
        for entry in self.folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (self.folder / "train").mkdir()
        with (self.folder / "train" / "images.npy").open("wb") as file:
            file.write(self._header)
            need = self._row * len(self._dataset)
            file.truncate(len(self._header) + need)
        if need > shutil.disk_usage(self.folder).free:  # found now, not after hours
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_json(settings, self._identity)  # last: the folder is then complete

    def _read(self) -> dict[Range, Any]:
        """The notes of all processes, including those of an earlier run."""
        notes = {}
        for file in sorted(self.folder.glob(".done-*")):
            for line in file.read_text(encoding="utf-8").splitlines():
                begin, stop, note = json.loads(line)
                notes[begin, stop] = note
        return notes

    def left(self, ranges: list[Range]) -> list[Range]:
        """The ranges that are not yet written and belong to this process."""
        todo = [piece for piece in ranges if piece not in self._notes]
        return todo[slice(*distributed.share(len(todo)))]

    def put(self, begin: int, stop: int, images: np.ndarray, note: Any) -> None:
        """Writes rows [begin, stop), (stop - begin, H, W, C) uint8, with a JSON-serialisable note that `finish`
        returns.
        """
        block = np.ascontiguousarray(images).data.cast("B")
        if len(block) != (stop - begin) * self._row:
            raise ValueError(f"rows {begin} to {stop} take {(stop - begin) * self._row} bytes, {len(block)} came")
        with writing(self.path):
            at, done = len(self._header) + begin * self._row, 0
            while done < len(block):
                done += os.pwrite(self._file, block[done:], at + done)
            if begin == self._hashed:
                self._digest.update(block)
                self._hashed = stop
            self._fresh.append(json.dumps([begin, stop, note]) + "\n")
            if time.monotonic() - self._told >= COMMIT_SECONDS:
                self.commit()

    def commit(self) -> None:
        """Flushes the rows to the disk before the note that records them."""
        os.fsync(self._file)
        with (self.folder / f".done-{distributed.rank()}").open("a", encoding="utf-8") as notes:
            notes.write("".join(self._fresh))
            notes.flush()
            os.fsync(notes.fileno())
        self._fresh, self._told = [], time.monotonic()

    def gather(self) -> list[Any] | None:
        """Called when every row is written. Returns the notes in row order in the first process, None in the others."""
        fresh = [json.loads(line) for line in self._fresh]
        if distributed.size() > 1:
            with writing(self.path):
                self.commit()
            fresh = []
        distributed.wait()
        if not distributed.is_main():
            return None
        notes = self._read() | {(begin, stop): note for begin, stop, note in fresh}
        at = 0
        for begin, stop in sorted(notes):
            if begin != at:
                raise RuntimeError(f"rows {at} to {begin} were not written")
            at = stop
        if at != len(self._dataset):
            raise RuntimeError(f"rows {at} to {len(self._dataset)} were not written")
        return [notes[piece] for piece in sorted(notes)]

    def finish(self, manifest: dict[str, Any]) -> None:
        """Completes the split `train`; only in the first process."""
        with writing(self.path), open(self.folder / "train" / "images.npy", "rb") as file:
            file.seek(len(self._header) + self._hashed * self._row)
            while block := file.read(1 << 24):
                self._digest.update(block)
            about = {"name": self._dataset.name, "split": "train", "manifest": manifest}
            complete_split(
                self.folder / "train",
                self._dataset.labels,
                self._dataset.image_shape,
                self._dataset.classes,
                self._digest,
                about,
            )

    def append_test(self, test: Dataset) -> None:
        """Adds the split `test`; only in the first process."""
        with writing(self.path):
            shutil.rmtree(self.folder / "test", ignore_errors=True)
            about = {"name": test.name, "split": "test", "manifest": test.manifest}
            split = SplitWriter(self.folder / "test", test.image_shape, test.classes, about)
            split.append_all(test)
            split.close()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> None:
        try:
            if kind is None and distributed.is_main():
                with writing(self.path):
                    for file in self.folder.glob(".done-*"):
                        file.unlink()
                    (self.folder / SETTINGS).unlink()
                    publish(self.folder, self.path)
            elif kind is not None and self._file >= 0 and any(self.folder.glob(".done-*")):
                with contextlib.suppress(OSError):  # a full disk: the earlier notes count
                    self.commit()
            elif kind is not None and distributed.size() == 1 and self._file >= 0:
                shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            self._close()
        if kind is None:
            distributed.wait()


def write_resumable(
    path: Path,
    train: Dataset,
    test: Dataset | None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """`write_dataset` with all processes, resuming where a killed run stopped.

    Args:
        progress: called as ``progress("convert", done, total)``.
    """
    test = None if test is None else matched(train, test, names=("training images", "test images"), part=True)
    same_everywhere(train, test)
    identity = {
        "name": train.name,
        "images": len(train),
        "image_shape": list(train.image_shape),
        "data": train.fingerprint(),
        "manifest": train.manifest,
    }
    with RowWriter(path, train, identity, resume=True, anew=True, overwrite=overwrite) as writer:
        left = writer.left(chunks(train.images, CHUNK_BYTES))
        done = len(train) - sum(stop - begin for begin, stop in left)
        for begin, stop in left:
            writer.put(begin, stop, train.images[begin:stop], None)
            done += stop - begin
            if progress:
                progress("convert", done, len(train))
        if writer.gather() is not None:
            writer.finish(train.manifest)
            if test is not None:
                writer.append_test(test)
