"""A campaign against what ulfast promises of files: damaged ones, kills, full disks, two writers, bad downloads.

`tools/campaign.sh` runs it; `docs/safety.md` says what each part checks. Every try is a fork of this process and
follows from the seed, the part and its number, so that one can be run again: `--seed S --part readers --try 17`.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the first optimizer would

import ulfast
import ulfast.attacks
import ulfast.data.download
import ulfast.data.writers.resumable
import ulfast.poisons.run
import ulfast.projection.fit_state
from ulfast import InputError, load_dataset, write_dataset
from ulfast.cli.main import run as command_line
from ulfast.data.beton import write_beton
from ulfast.data.dataset import Dataset
from ulfast.data.export import export_dataset
from ulfast.grids.grid import Grid
from ulfast.poisons.imported import import_published
from ulfast.report import pictures
from ulfast.runtime.files import save_tensors
from ulfast.training.checkpoint import load_weights

MEMORY = 4 << 30  # beyond what the process has, that a damaged file may ask for
SECONDS = 20  # for one try
PARTS = ("readers", "kills", "disks", "writers", "downloads")


@dataclass
class Tally:
    """What a part has tried, how it ended, and what it found."""

    tries: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


class Fork:
    """A fork of this process that does some work; a process without other threads, which would not survive it."""

    def __init__(self, work: Callable[[], str], *, memory: int | None = None, seconds: float = SECONDS) -> None:
        self._read, write = os.pipe()
        self._end, self.said = time.monotonic() + seconds, ""
        self._child = os.fork()
        if not self._child:
            os.close(self._read)
            self._work(work, write, memory)
        os.close(write)

    @staticmethod
    def _work(work: Callable[[], str], write: int, memory: int | None) -> None:
        said = "no word"
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if memory is not None:
                used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
            said = work()
        except InputError as error:
            said = "InputError" if "\n" not in str(error) else f"an InputError of several lines: {error}"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            with contextlib.suppress(BaseException):
                os.write(write, said.encode("utf-8", "backslashreplace")[:4000])
            os._exit(0)

    def running(self) -> bool:
        """False once it has ended; `said` is then what it returned, "InputError", another error, a signal or "hang"."""
        if self.said:
            return False
        done, status = os.waitpid(self._child, os.WNOHANG)
        if not done and time.monotonic() < self._end:
            return True
        if not done:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        with open(self._read, "rb") as pipe:
            self.said = pipe.read().decode() or "nothing"
        code = os.waitstatus_to_exitcode(status) if done else 0
        if not done:
            self.said = "hang"
        elif code < 0:
            self.said = f"killed by {signal.Signals(-code).name}"
        return False


def forked(work: Callable[[], str], *, memory: int | None = None, seconds: float = SECONDS) -> str:
    """How a fork that does some work ended."""
    fork = Fork(work, memory=memory, seconds=seconds)
    while fork.running():
        time.sleep(0.001)
    return fork.said


def images(seed: int = 0, n: int = 30, size: int = 32, method: str = "") -> Dataset:
    """Small smooth images of three classes; `method` is in the manifest and in every pixel's last bit."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (n, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    pixels = ((coarse & 254) | (method == "new")).astype(np.uint8)
    return Dataset(pixels, np.arange(n) % 3, ("a", "b", "c"), "images", "train", {"method": method} if method else {})


# readers: one damaged file


def seeds(folder: Path) -> dict[str, tuple[list[Path], Callable[[], object]]]:
    """What is read: its files, and how. The files lie in `folder`."""
    data, base = images(), images()
    found: dict[str, tuple[list[Path], Callable[[], object]]] = {}

    def of(name: str, read: Callable[[], object] | None = None, place: Path | None = None) -> None:
        place = place or folder / name
        files = sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]
        found[name] = files, read or (lambda: whole(load_dataset(place)))

    write_dataset(folder / "folder", data, data)
    of("folder")
    export_dataset(data, folder / "plain.npz", "npz")
    of("plain.npz")
    np.savez_compressed(folder / "packed.npz", images=data.images, labels=data.labels)
    of("packed.npz")
    for mode in ("raw", "jpeg"):
        write_beton(folder / f"{mode}.beton", data, mode=mode)
        found[f"{mode}.beton"] = (
            [folder / f"{mode}.beton", folder / f"{mode}.beton.json"],
            lambda mode=mode: whole(load_dataset(folder / f"{mode}.beton")),
        )
    shutil.copy(folder / "jpeg.beton", folder / "foreign.beton")
    of("foreign.beton")
    export_dataset(data, folder / "pngs", "imagefolder")
    of("pngs")
    from PIL import Image

    for i in range(6):
        for kind in ("jpg", "gif", "bmp", "webp", "tiff", "ppm"):
            place = folder / "mixed" / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.images[i]).save(place / f"{i}.{kind}")
    of("mixed")
    planes = data.images.transpose(0, 3, 1, 2).reshape(len(data), -1)
    python = folder / "cifar"
    python.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (python / name).write_bytes(pickle.dumps({b"data": planes, b"labels": data.labels.tolist()}, 2))
    of("cifar")
    binary = folder / "binary"
    binary.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (binary / name).write_bytes(np.c_[data.labels.astype(np.uint8), planes].tobytes())
    of("binary")
    from scipy.io import savemat

    for name, packed in (("svhn", False), ("svhn-packed", True)):
        (folder / name).mkdir()
        content = {"X": np.moveaxis(data.images, 0, 3), "y": (np.arange(30) % 10 + 1).astype(np.uint8)[:, None]}
        savemat(folder / name / "train_32x32.mat", content, do_compression=packed)
        of(name)
    delta = torch.rand(len(data), 3, 32, 32) / 16
    torch.save(delta, folder / "delta.pt")
    torch.save({"data": torch.from_numpy(data.images.copy()), "labels": data.labels.tolist()}, folder / "images.pt")
    torch.save(delta, folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "delta.pkl").write_bytes(pickle.dumps((delta * 255).to(torch.int8).permute(0, 2, 3, 1).numpy()))
    np.save(folder / "delta.npy", delta.permute(0, 2, 3, 1).numpy())
    for name in ("delta.pt", "images.pt", "old.pt", "delta.pkl", "delta.npy"):
        of(name, lambda name=name: whole(import_published(folder / name, base)))
    basis = ulfast.fit_basis(data, steps=5, device="cpu")
    basis.save(folder / "b.safetensors")
    of("b.safetensors", lambda: ulfast.Basis.load(folder / "b.safetensors").orthogonality_error)
    save_tensors(folder / "last.pt", {"model": {"weight": torch.rand(64, 64)}, "state": {"epoch": 1}})
    of("last.pt", lambda: load_weights(folder / "last.pt"))
    grid = (
        "name: g\ndata: sample\npoisons: [clean, {method: lsp, eps: 0.5, rate: 0.5}]\nattacks: [none]\nseeds: [0, 1]\n"
    )
    (folder / "g.yaml").write_text(grid)
    of("g.yaml", lambda: Grid.load(folder / "g.yaml"))
    return found


def whole(dataset: Dataset) -> int:
    """Touches every image and label of a data set."""
    return int(np.asarray(dataset.images[:]).sum() + dataset.labels.sum())


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """A file with some damage."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        n = len(data)
        # Headers are small and matter more than pixels.
        at = draw.randrange(min(n, draw.choice((64, 512, 4096, n)) or 1)) if n else 0
        if draw.random() < 0.15 and n:
            at = n - 1 - at
        kind = draw.randrange(9)
        if kind == 0 and n:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and n:
            data[at] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.randrange(1, 64))
        elif kind == 5:
            data[at : at + 64] = bytes(64)
        elif kind == 6:
            value = draw.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1))
            size = draw.choice((2, 4, 8))
            data[at : at + size] = (value % 256**size).to_bytes(size, draw.choice(("little", "big")))
        elif kind == 7:
            data += data[at : at + draw.randrange(1, 4096)]
        elif n:  # digits are sizes and shapes in headers of text
            places = [i for i in range(min(n, 4096)) if 48 <= data[i] <= 57]
            if places:
                spot = draw.choice(places)
                data[spot : spot + 1] = draw.choice((b"9999999999", b"-1", b"0", b"1e9", b"", b"null", b"[]"))
    return bytes(data)


class Readers:
    """One damaged file: a value, or an InputError of one line; in bounded memory and time, and no dead process."""

    def __init__(self, folder: Path) -> None:
        self.seeds = seeds(folder)

    def attempt(self, draw: random.Random) -> tuple[str, str | None]:
        name = draw.choice(sorted(self.seeds))
        files, read = self.seeds[name]
        file = draw.choice(files)
        raw = file.read_bytes()
        file.write_bytes(mutated(raw, draw))
        try:
            end = forked(lambda: str(read())[:0] + "read", memory=MEMORY)
        finally:
            file.write_bytes(raw)
        wrong = None if end in ("read", "InputError") else f"{name}, {file.name}: {end}"
        return end if wrong is None else "finding", wrong


# kills, full disks and two writers: every verb that writes, over an output that is there


def quicken() -> None:
    """Everything is kept as often as it can be, and what costs time and writes nothing is left out."""
    ulfast.data.writers.resumable.COMMIT_SECONDS = ulfast.projection.fit_state.SAVE_SECONDS = 0.0
    ulfast.poisons.run.CHUNK_BYTES = ulfast.data.writers.resumable.CHUNK_BYTES = 10 * 3072
    picture = {"comparison_figure", "basis_figure", "attack_figure"}
    for name in picture:
        setattr(pictures, name, lambda *_, **__: None)
    pictures.save = lambda _figure, path: Path(path).write_bytes(b"\x89PNG made with ulfast")  # type: ignore[assignment]


def old_and_new(folder: Path) -> tuple[Path, Path]:
    """Two data sets that differ in every pixel and in their manifest."""
    for name in ("old", "new"):
        data = images(method=name)
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

    def __init__(self, folder: Path) -> None:
        self.old, self.new = old_and_new(folder)
        self.out = folder / "out"
        self.verbs = outputs(self.out)
        self.calls: dict[str, int] = {}
        self.versions: dict[str, list[str]] = {}
        self.names: dict[str, list[str]] = {}
        for verb in self.verbs:
            told = []
            for data in (self.new, self.old):
                told.append(forked(lambda verb=verb, data=data: self._make(verb, data), seconds=120))
            self.versions[verb] = [json.loads(text)[0] for text in told][::-1]
            self.calls[verb] = json.loads(told[0])[1]
            self.names[verb] = self._listing(verb)
            assert self.versions[verb][0] != self.versions[verb][1], verb

    def _make(self, verb: str, data: Path) -> str:
        words, version = self.verbs[verb]
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        code, said = silent(words(str(data)))
        sys.setprofile(None)
        assert code == 0, said
        return json.dumps([version(), calls])

    def _listing(self, verb: str) -> list[str]:
        return sorted(f.name for f in (self.out / verb).iterdir())

    def after(self, verb: str) -> str | None:
        """What is wrong with an output after something happened to its writer, and after the next command."""
        end = forked(self.verbs[verb][1])
        if end not in self.versions[verb]:
            return f"{verb}: neither the old output nor the new one: {end}"
        end = forked(lambda: json.loads(self._make(verb, self.old))[0], seconds=60)
        if end != self.versions[verb][0]:
            return f"{verb}: the next command: {end}"
        if (left := self._listing(verb)) != self.names[verb]:
            return f"{verb}: left behind: {sorted(set(left) ^ set(self.names[verb]))}"
        return None


class Kills(Outputs):
    """A command killed at a random moment: the old output or the new one, and no leftovers after the next command."""

    def attempt(self, draw: random.Random) -> tuple[str, str | None]:
        verb = draw.choice(sorted(self.verbs))
        at = draw.randint(1, self.calls[verb])

        def work() -> str:
            left = at

            def count(*_: object) -> None:
                nonlocal left
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.setprofile(count)
            code, said = silent(self.verbs[verb][0](str(self.new)))
            return f"exit {code} {said}".strip()

        end = forked(work, seconds=60)
        if end not in ("killed by SIGKILL", "exit 0"):
            return "finding", f"{verb}, call {at}: {end}"
        wrong = self.after(verb)
        return (
            "killed" if "SIGKILL" in end else "done"
        ) if wrong is None else "finding", wrong and f"call {at}: {wrong}"


class Disks(Outputs):
    """A disk that takes files up to a size, chosen at random: done, or one line that says so; nothing lost."""

    def attempt(self, draw: random.Random) -> tuple[str, str | None]:
        verb = draw.choice(sorted(self.verbs))
        most = draw.choice((0, 1, 100, 1000, 10_000, 50_000, 100_000, draw.randrange(200_000)))

        def work() -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            code, said = silent(self.verbs[verb][0](str(self.new)))
            return "done" if code == 0 else "full" if code == 2 and "disk is full" in said else f"exit {code}: {said}"

        end = forked(work, seconds=60)
        if end not in ("done", "full"):
            return "finding", f"{verb}, {most} bytes: {end}"
        wrong = self.after(verb)
        return end if wrong is None else "finding", wrong and f"{most} bytes: {wrong}"


class Writers(Outputs):
    """Two commands write one output, a third reads: each is done or says that another one is writing."""

    def attempt(self, draw: random.Random) -> tuple[str, str | None]:
        verb = draw.choice(sorted(self.verbs))
        pause = draw.random() * 0.2

        def work(data: Path) -> str:
            code, said = silent(self.verbs[verb][0](str(data)))
            return (
                "done"
                if code == 0
                else "refused"
                if code == 2 and "another process" in said
                else f"exit {code}: {said}"
            )

        forks = [Fork(lambda: work(self.new), seconds=90)]
        time.sleep(pause)
        forks.append(Fork(lambda: work(self.old), seconds=90))
        seen = set()
        while any(fork.running() for fork in forks):
            seen.add(forked(self.verbs[verb][1]))
        ends = [fork.said for fork in forks]
        if not set(ends) <= {"done", "refused"} or ends == ["refused"] * 2:
            return "finding", f"{verb}: {ends}"
        if verb not in ("attack", "fit") and not seen <= set(self.versions[verb]):  # a run is written as it goes
            return "finding", f"{verb}: a reader saw {seen - set(self.versions[verb])}"
        wrong = self.after(verb)
        return " and ".join(sorted(ends)) if wrong is None else "finding", wrong


# downloads: a server that does everything wrong

CONTENT = bytes(range(256)) * 1200
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Faulty(http.server.BaseHTTPRequestHandler):
    """Answers as the server's `faults` say, one a request; well when none is left."""

    def log_message(self, *_: object) -> None:
        return None

    def do_GET(self) -> None:
        faults = self.server.faults  # type: ignore[attr-defined]
        if self.path.startswith("/faults/"):
            faults[:] = [word.replace("-", " ") for word in self.path.removeprefix("/faults/").split(",") if word]
            self.send_response(200)
            self.end_headers()
            return
        fault = faults.pop(0) if faults else "none"
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and fault != "no ranges" else 0
        body = CONTENT[start:]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fault in ("500", "404", "416"):
                self.send_error(int(fault))
                return
            if fault == "closed":
                self.connection.close()
                return
            self.send_response(206 if start else 200)
            length = len(body)
            if fault == "wrong length":
                length += 1000
            if fault == "too long":
                body += b"more"
                length += 4
            if fault == "garbage":
                body = bytes(255 - v for v in body)
            if fault == "wrong range" and start:
                body = CONTENT[: len(body)]
            if fault == "cut":
                body = body[: len(body) // 2]
            if fault != "no length":
                self.send_header("Content-Length", str(length))
            self.end_headers()
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                if fault == "slow":
                    time.sleep(0.02)


FAULTS = ["none", "no ranges", "500", "404", "416", "closed", "wrong length", "too long", "garbage", "wrong range"]
FAULTS += ["cut", "slow", "no length"]


class Downloads:
    """Two processes download from a bad server, and may be killed: what has the name is whole, and a good one heals."""

    def __init__(self, folder: Path) -> None:
        import requests

        os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
        server.faults = []  # type: ignore[attr-defined]
        self._server, parent = os.fork(), os.getppid()
        if not self._server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            while os.getppid() == parent:  # until the campaign is over
                time.sleep(0.2)
            os._exit(0)
        self._get, self.folder = requests.get, folder / "downloads"
        self.url = f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        os.kill(self._server, signal.SIGKILL)
        os.waitpid(self._server, 0)

    def attempt(self, draw: random.Random) -> tuple[str, str | None]:
        shutil.rmtree(self.folder, ignore_errors=True)
        faults = [draw.choice(FAULTS) for _ in range(draw.randrange(1, 5))]
        told = ", ".join(faults)
        self._get(f"{self.url}/faults/{','.join(fault.replace(' ', '-') for fault in faults)}", timeout=10)
        file = self.folder / "x.bin"
        kill = draw.random() * 0.2 if draw.random() < 0.3 else None

        def work() -> str:
            if kill is not None:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, 0.01 + kill)
            ulfast.data.download.download(f"{self.url}/x.bin", self.folder, SHA256)
            return "whole" if file.read_bytes() == CONTENT else "not whole under its name"

        forks = [Fork(work, seconds=60) for _ in range(2)]
        while any(fork.running() for fork in forks):
            if file.exists() and file.read_bytes() != CONTENT:
                return "finding", f"{told}: the file under its name is not whole"
            time.sleep(0.002)
        ends = [fork.said for fork in forks]
        if other := set(ends) - {"whole", "InputError", "killed by SIGALRM"}:
            return "finding", f"{told}: {other}"
        self._get(f"{self.url}/faults/", timeout=10)
        kill = None
        if "whole" not in (last := [forked(work, seconds=60) for _ in range(2)]):
            return "finding", f"{told}: then a good server: {last}"
        if (names := [f.name for f in self.folder.iterdir()]) != ["x.bin"]:
            return "finding", f"{told}: left behind {names}"
        return " and ".join(sorted(ends)), None


KINDS: dict[str, Callable[[Path], object]] = dict(zip(PARTS, (Readers, Kills, Disks, Writers, Downloads), strict=True))


@contextlib.contextmanager
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="ulfast-campaign-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_part(part: str, seed: int, seconds: float, only: int | None = None) -> Tally:
    """A part of the campaign for some seconds, at least one try."""
    tally, begun = Tally(), time.monotonic()
    with place() as folder:
        kind = KINDS[part](folder)
        gc.freeze()
        number = 0 if only is None else only
        while True:
            end, finding = kind.attempt(random.Random(f"{seed} {part} {number}"))  # type: ignore[attr-defined]
            tally.tries += 1
            tally.ends[end] += 1
            if finding is not None:
                tally.findings.append(f"--seed {seed} --part {part} --try {number}: {' '.join(finding.split())[:300]}")
                print(f"finding: {tally.findings[-1]}", flush=True)
            number += 1
            if only is not None or time.monotonic() - begun > seconds:
                break
        getattr(kind, "close", int)()
    tally.seconds = time.monotonic() - begun
    return tally


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="in all (default 5)")
    parser.add_argument("--hours", type=float, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--try", type=int, dest="only", help="one try of one part, by its number")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    parts = given.part or list(PARTS)
    seconds = 60 * (given.minutes if given.hours is None else 60 * given.hours) / len(parts)
    torch.set_num_threads(1)  # libgomp's threads do not survive a fork
    quicken()
    print(f"seed {seed}, {seconds:.0f} s for each part", flush=True)
    tallies = {part: run_part(part, seed, seconds, given.only) for part in parts}
    print(f"\n{'part':<10} {'tries':>7} {'seconds':>8} {'findings':>9}  how they ended")
    for part, tally in tallies.items():
        ends = ", ".join(f"{count:,} {end}" for end, count in tally.ends.most_common(6))
        print(f"{part:<10} {tally.tries:>7,} {tally.seconds:>8.0f} {len(tally.findings):>9}  {ends}")
    return 1 if any(tally.findings for tally in tallies.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
