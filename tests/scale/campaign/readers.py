"""One damaged file: it is read as one of one line, or read; in bounded memory and time, and no process dies of it."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from ulfast import InputError

from .damage import damaged
from .forks import MEMORY, forked, in_one_fork
from .samples import Sample, samples
from .tally import End, draws

BATCH = 200  # tries of one fork
ZEROS = bytes(1 << 16)
OTHERS = 1 << 16  # bytes of a file from which pieces come, at most


class Readers:
    """One damaged file: a value, or an InputError of one line that names it. Where there are checksums, the value is
    what was written.

    A fork makes many tries one after the other; the one at which it ended is made again alone, and so is every finding.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self.samples = samples(folder)
        self._names = sorted(self.samples)
        self._raw = {file: file.read_bytes() for one in self.samples.values() for file in one.files}
        self._others = [raw for raw in self._raw.values() if len(raw) <= OTHERS]
        # In this process too, so that no fork has to import anything.
        self._whole = {name: one.read() for name, one in self.samples.items()}

    def ends(self, numbers: Iterator[int]) -> Iterator[End]:
        left = list(islice(numbers, BATCH))
        while left:
            done = 0
            for number, said in in_one_fork(self._quietly, left):
                done += 1
                yield self._end(number, said)
            if done < len(left):  # it died of the next one
                yield self._end(left[done], "no word")
                done += 1
            left = left[done:] or list(islice(numbers, BATCH))

    def close(self) -> None:
        return None

    def drawn(self, draw: random.Random) -> tuple[str, Path]:
        """The sample and the file that a try damages."""
        name = draw.choice(self._names)
        return name, draw.choice(self.samples[name].files)

    def _end(self, number: int, said: str) -> End:
        if said in ("read", "InputError"):
            return End(number, said)
        name, file = self.drawn(draws(self._seed, "readers", number))
        _write(file, self._raw[file])
        alone = forked(lambda: self._quietly(number), memory=MEMORY)
        _write(file, self._raw[file])
        if alone in ("read", "InputError"):
            if said == "no word":  # the tries before it had left no room or time
                return End(number, alone)
            alone = f"{said} (after others; alone: {alone})"
        return End(number, "finding", f"{name}, {file.name}: {alone}")

    def _quietly(self, number: int) -> str:
        with open(os.devnull, "wb") as nowhere:  # libtiff and libpng write to the standard error
            os.dup2(nowhere.fileno(), 2)
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        return self._try(number)

    def _try(self, number: int) -> str:
        draw = draws(self._seed, "readers", number)
        name, file = self.drawn(draw)
        raw, sample = self._raw[file], self.samples[name]
        _write(file, damaged(raw, draw, self._others))
        try:
            value = sample.read()
        except InputError as error:
            return _line(error, sample)
        finally:
            _write(file, raw)
        if sample.checked and value != self._whole[name]:
            return "other content than was written, in spite of a checksum"
        return "read"


def _line(error: InputError, sample: Sample) -> str:
    text = str(error)
    if "\n" in text:
        return f"an InputError of several lines: {text}"
    if str(sample.place) not in text and not any(file.name in text for file in sample.files):
        return f"an InputError that names no file: {text}"
    return "InputError"


def _write(file: Path, raw: bytes) -> None:
    """A new file of that name, as the old one may still be mapped."""
    file.unlink(missing_ok=True)
    with file.open("wb") as out:
        for begin in range(0, len(raw), len(ZEROS)):
            block = raw[begin : begin + len(ZEROS)]
            if block == ZEROS:  # pages of a .beton
                out.seek(len(block), os.SEEK_CUR)
            else:
                out.write(block)
        out.truncate()
