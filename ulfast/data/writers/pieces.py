"""A data set as a folder of numbered files of some thousand images each: WebDataset shards or Parquet files.

One file is written at a time, so a set that is decoded on demand is written in bounded memory. If a run is killed, its
complete files are kept, and the next run resumes after them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runtime.files import SETTINGS, check_free, claimed, part_folder, publish, sync, write_json, writing
from ...runtime.made import EXPORT, MARKER, count_files
from ...runtime.progress import Progress
from ...version import __version__
from ..dataset import Dataset
from ..png import pngs

BLOCK_BYTES = 16 << 20  # of pixels encoded at a time


@dataclass(frozen=True)
class Piece:
    """Images [begin, stop) of a split, for one file."""

    split: str
    dataset: Dataset
    name: str
    begin: int
    stop: int

    def blocks(self) -> list[tuple[int, int]]:
        """The ranges of images that are read at a time."""
        rows = max(1, BLOCK_BYTES // int(np.prod(self.dataset.image_shape)))
        return [(begin, min(begin + rows, self.stop)) for begin in range(self.begin, self.stop, rows)]

    def encoded(self) -> Iterator[tuple[int, bytes, int]]:
        """Yields (number, PNG, label) for each image."""
        blocks = (self.dataset.images[begin:stop] for begin, stop in self.blocks())
        for number, image in enumerate(pngs(blocks), self.begin):
            yield number, image, int(self.dataset.labels[number])


def pieces_of(splits: dict[str, Dataset], size: int, name: Callable[[str, int, int], str]) -> list[Piece]:
    """Divides a set into files of `size` images; `name` gets the split, the file's number, and the file count."""
    pieces = []
    for split, dataset in splits.items():
        starts = range(0, len(dataset), size)
        for i, begin in enumerate(starts):
            stop = min(begin + size, len(dataset))
            pieces.append(Piece(split, dataset, name(split, i, len(starts)), begin, stop))
    return pieces


def write_pieces(
    path: Path,
    pieces: Sequence[Piece],
    write: Callable[[Path, Piece], None],
    finish: Callable[[Path], None],
    *,
    layout: str,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes the folder `path`, all or nothing.

    Args:
        write: writes the file of a piece.
        finish: writes the files that describe the whole set, after all pieces.
        layout: name of the layout, for `ulfast.json`.
        resume: start after the files that an interrupted run with the same settings left, and keep complete files on
            another interruption.
        settings: of the command that is interrupted and resumed (JSON-able). Complete files are then kept without
            `resume` too, and a run with other settings cannot be resumed.
        progress: called as ``progress("export", done, total)``.

    Raises:
        InputError: `path` exists, another process is writing it, the disk is full, or the settings are others.
    """
    check_free(path, overwrite)
    train = pieces[0].dataset
    identity = {
        **(settings or {}),
        "ulfast": __version__,
        "layout": layout,
        "files": [[piece.name, piece.begin, piece.stop] for piece in pieces],
        "data": {
            piece.split: piece.dataset.fingerprint() for piece in {piece.split: piece for piece in pieces}.values()
        },
        "manifest": train.manifest,
    }
    total, done = sum(piece.stop - piece.begin for piece in pieces), 0
    with writing(path), _part(path, identity, resume, settings is not None) as part:
        for piece in pieces:
            file = part / piece.name
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                fresh = file.with_name(f".{file.name}")
                write(fresh, piece)
                sync(fresh)  # a file with its final name is complete, whatever happens
                os.replace(fresh, file)
            done += piece.stop - piece.begin
            if progress:
                progress("export", done, total)
        finish(part)
        about = {
            "format": EXPORT,
            "ulfast": __version__,
            "layout": layout,
            "classes": list(train.classes),
            "image_shape": list(train.image_shape),
            "images": len(train),
            "entries": sorted(entry.name for entry in part.iterdir() if entry.name != SETTINGS),
            "files": count_files(part) - 1,  # not counting the settings
        }
        write_json(part / MARKER, about)
        (part / SETTINGS).unlink()
        publish(part, path)


@contextlib.contextmanager
def _part(path: Path, identity: dict[str, Any], resume: bool, asked: bool) -> Iterator[Path]:
    """The folder beside `path` in which it is built, with the earlier files that may be kept. With `asked`, a run is
    resumed only if the user says so.
    """
    with claimed(path, alone=True):
        part = part_folder(path)
        part.mkdir(parents=True, exist_ok=True)
        settings = part / SETTINGS
        identity = json.loads(json.dumps(identity))
        try:
            kept = json.loads(settings.read_text(encoding="utf-8")) if resume else {}
        except (OSError, ValueError):
            kept = {}
        other = [key for key, value in identity.items() if kept.get(key) != value]
        if kept and other and asked:
            raise InputError(
                f"{part} belongs to a run with another {', '.join(other)}: give the same"
                " settings, or leave --resume out"
            )
        if other:
            for entry in part.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            write_json(settings, identity)
        try:
            yield part
        except BaseException:
            whole = any(entry != settings and not entry.name.startswith(".") for entry in part.iterdir())
            if not resume and not (asked and whole):
                shutil.rmtree(part, ignore_errors=True)
            raise
