"""Every verb that writes, over an output that is there: what kills, full disks and two writers share."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import ulfast
import ulfast.attacks
import ulfast.data.writers.resumable
import ulfast.poisons.run
import ulfast.projection.fit_state
from ulfast import load_dataset, write_dataset
from ulfast.cli.main import run as command_line
from ulfast.data.dataset import Dataset
from ulfast.report import pictures

from .forks import forked
from .tally import End, draws

SIDE = 16  # pixels


def quicken() -> None:
    """Everything is kept as often as it can be, and what costs time and writes nothing is left out."""
    ulfast.data.writers.resumable.COMMIT_SECONDS = ulfast.projection.fit_state.SAVE_SECONDS = 0.0
    ulfast.poisons.run.CHUNK_BYTES = ulfast.data.writers.resumable.CHUNK_BYTES = 10 * 3 * SIDE**2
    picture = {"comparison_figure", "basis_figure", "attack_figure"}
    for name in picture:
        setattr(pictures, name, lambda *_, **__: None)
    pictures.save = lambda _figure, path: Path(path).write_bytes(b"\x89PNG made with ulfast")  # type: ignore[assignment]


def images(version: str) -> Dataset:
    """Small smooth images of three classes; the version is in the manifest and in every pixel's last bit."""
    coarse = np.random.default_rng(0).integers(40, 216, (30, 4, 4, 3)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    pixels = ((coarse & 254) | (version == "new")).astype(np.uint8)
    return Dataset(pixels, np.arange(30) % 3, ("a", "b", "c"), "images", "train", {"method": version})


def old_and_new(folder: Path) -> tuple[Path, Path]:
    """Two data sets that differ in every pixel and in their manifest."""
    for name in ("old", "new"):
        data = images(name)
        write_dataset(folder / name, data, data)
    return folder / "old", folder / "new"


def outputs(out: Path) -> dict[str, tuple[Callable[[str], list[str]], Callable[[], str]]]:
    """Verb: the words for data, and what tells which version the output is; raises where it is neither."""

    def version(path: Path) -> str:
        data = load_dataset(path, verify=True)
        bit = int(data.images[0, 0, 0, 0]) & 1
        if data.manifest.get("method") in ("old", "new"):
            assert bit == (data.manifest["method"] == "new"), "images of one version, manifest of another"
        assert data.classes == ("a", "b", "c"), data.classes
        assert len({int(v) for v in np.unique(np.asarray(data.images[:]) & 1)}) == 1, "images of both versions"
        return "new" if bit else "old"

    def poisoned(path: Path) -> str:
        data = load_dataset(path, verify=True)
        return str(data.manifest["source"]["sha256"])

    def basis(path: Path) -> str:
        return hashlib.sha256(ulfast.Basis.load(path).rows.numpy().tobytes()).hexdigest()

    def trained(path: Path) -> str:
        config = json.loads((path / "config.json").read_text())
        if (path / "result.json").exists():
            ulfast.AttackResult.load(path)
        return str(config["data"]["training_fingerprint"])

    def words(*more: object) -> Callable[[str], list[str]]:
        return lambda data: [str(data if word == "DATA" else word) for word in (*more, "--overwrite", "--quiet")]

    convert, export = ("data", "convert", "DATA"), ("data", "export", "DATA", "--layout")
    fit = ("fit", "--data", "DATA", "--steps", 8, "--device", "cpu")
    attack = ("attack", "--data", "DATA", "--method", "none", "--epochs", 1, "--device", "cpu")
    commands: dict[str, tuple[str, tuple[object, ...], Callable[[Path], str]]] = {
        "folder": ("out", (*convert, "--to", "ulfast"), version),
        "beton": ("out.beton", convert, version),
        "npz": ("out.npz", (*export, "npz"), version),
        "imagefolder": ("out", (*export, "imagefolder"), version),
        "poison": ("out", ("poison", "--data", "DATA"), poisoned),
        "fit": ("out.safetensors", fit, basis),
        "attack": ("out", attack, trained),
    }
    return {
        verb: (words(*command, "--out", out / verb / name), lambda tell=tell, path=out / verb / name: tell(path))
        for verb, (name, command, tell) in commands.items()
    }


def silent(words: list[str]) -> tuple[int, str]:
    """Exit code of a command and what it complains of."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = command_line(words)
    return code, error.getvalue().strip()


class Outputs:
    """What the three parts share: outputs of every verb, old, to be overwritten with new ones."""

    part = ""

    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self.old, self.new = old_and_new(folder)
        self.out = folder / "out"
        self.verbs = outputs(self.out)
        self.calls: dict[str, int] = {}
        self.versions: dict[str, list[str]] = {}
        self.names: dict[str, list[str]] = {}
        for verb in self.verbs:
            told = [forked(lambda verb=verb, data=data: self._count(verb, data), seconds=120) for data in self.both()]
            self.versions[verb] = [json.loads(text)[0] for text in told][::-1]
            self.calls[verb] = json.loads(told[0])[1]
            self.names[verb] = self._listing(verb)
            assert self.versions[verb][0] != self.versions[verb][1], verb

    def both(self) -> tuple[Path, Path]:
        """The new data and the old, which is made last."""
        return self.new, self.old

    def ends(self, numbers: Iterator[int]) -> Iterator[End]:
        for number in numbers:
            draw = draws(self._seed, self.part, number)
            verb = draw.choice(sorted(self.verbs))
            for end, finding in self.attempt(verb, draw):
                yield End(number, end if finding is None else "finding", finding and f"{verb}: {finding}")

    def attempt(self, verb: str, draw: random.Random) -> Iterator[tuple[str, str | None]]:
        """How each attack on an output of a verb ended, and what is wrong; it leaves the old output behind."""
        raise TypeError(f"{type(self).__name__} does not say how to attack")

    def close(self) -> None:
        return None

    def _count(self, verb: str, data: Path) -> str:
        """The version that a command makes, and how many functions it calls."""
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        self._make(verb, data)
        sys.setprofile(None)
        return json.dumps([self.verbs[verb][1](), calls])

    def _make(self, verb: str, data: Path) -> None:
        code, said = silent(self.verbs[verb][0](str(data)))
        assert code == 0, said

    def _listing(self, verb: str) -> list[str]:
        return sorted(f.name for f in (self.out / verb).iterdir())

    def after(self, verb: str) -> str | None:
        """What is wrong with an output after something happened to its writer, and after the next command."""

        def work() -> str:
            if (found := self.verbs[verb][1]()) not in self.versions[verb]:
                return f"neither the old output nor the new one: {found}"
            try:
                self._make(verb, self.old)
                found = self.verbs[verb][1]()
            except Exception as error:
                return f"the next command: {type(error).__name__}: {error}"
            return "" if found == self.versions[verb][0] else f"the next command made {found}"

        end = forked(lambda: work() or "well", seconds=60)
        if end != "well":
            return f"neither the old output nor the new one: {end}" if end == "InputError" else end
        if (left := self._listing(verb)) != self.names[verb]:
            return f"left behind: {sorted(set(left) ^ set(self.names[verb]))}"
        return None
