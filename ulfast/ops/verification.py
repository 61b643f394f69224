"""Which CUDA kernels are on: those that have agreed with their twins on this very GPU.

At the first use on a GPU a child process runs every kernel against its twin (`trials`). The result is kept in the
cache folder, by GPU, driver, torch and build. A kernel that disagrees, crashes or hangs stays off alone: its operator
computes with the twin in PyTorch, and a warning says so. A child does it because a faulty kernel can end its process,
or leave it without a usable GPU.

ULFAST_CUDA_KERNELS: auto (as unset), 0 (all off), 1 (all on, unverified), verify (verified anew, then as auto).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..cache import cache_folder
from ..errors import InputError
from ..version import __version__
from . import _extension, trials

KIND = "cuda"  # of device
VARIABLE = "ULFAST_CUDA_KERNELS"
SETTINGS = ("auto", "0", "1", "verify")
OPERATORS = tuple(trials.TRIALS)  # `project` answers for `project_` and `project_out` too
# Seconds: for torch to start from a slow disk, for one operator, for everything; and for another process's result.
START, STEP, TOTAL, WAIT = 90.0, 30.0, 120.0, 150.0
_BEGUN = time.time()


@dataclass(frozen=True)
class Verdict:
    """What holds for one GPU.

    Attributes:
        on: operators that run their kernels.
        off: operators whose kernels failed, and how.
        verified: when; None where nothing was.
        why: one line where all are off, or unverified.
        kept: whether the next process need not do it again.
    """

    on: frozenset[str] = frozenset()
    off: Mapping[str, str] = field(default_factory=dict)
    verified: str | None = None
    why: str = ""
    kept: bool = True


class Unproven(Exception):
    """Nothing was learned of any kernel. The message says why."""


_verdicts: dict[torch.device, Verdict] = {}
_deciding = threading.RLock()


def enabled(operator: str, device: torch.device) -> bool:
    """Whether an operator runs its CUDA kernel on this GPU. The first question may take seconds, the others nothing.

    Raises:
        InputError: ULFAST_CUDA_KERNELS has none of its values.
    """
    known = _verdicts.get(device)
    return operator in (verdict(device) if known is None else known).on


def forget() -> None:
    """After a change of the environment: the next question is decided anew."""
    _verdicts.clear()


def verdict(device: torch.device) -> Verdict:
    """As `enabled`, of all operators."""
    if device.type != KIND:
        return Verdict(why="not a GPU")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    known = _verdicts.get(device)
    if known is not None:
        return known
    if torch.compiler.is_compiling() or torch._guards.detect_fake_mode() is not None:
        return Verdict(why="asked in a trace")  # not remembered
    with _deciding:
        if device not in _verdicts:
            _verdicts[device] = _decide(device)
        return _verdicts[device]


def built() -> bool:
    """Whether this build has CUDA kernels."""
    return hasattr(_extension.load(), "cuda")


def _decide(device: torch.device) -> Verdict:
    setting = os.environ.get(VARIABLE) or "auto"
    if setting not in SETTINGS:
        raise InputError(f"{VARIABLE} must be one of {', '.join(SETTINGS)}, got {setting!r}")
    if setting == "0":
        return Verdict(why=f"{VARIABLE}=0")
    if not built():
        return Verdict(why="not built")
    problem = _extension.cuda_problem() if device.type == "cuda" else None
    if problem:
        _say(f"the CUDA kernels of ulfast are off: {problem}")
        return Verdict(why=problem, kept=False)
    if setting == "1":
        return Verdict(frozenset(OPERATORS), why=f"{VARIABLE}=1")
    try:
        return _proven(device, setting == "verify")
    except Exception as error:  # whatever it is, the operators work without the kernels
        why = str(error) if isinstance(error, Unproven) else f"{type(error).__name__}: {error}"
        _say(
            f"ulfast could not verify its CUDA kernels on this GPU ({why}), so PyTorch computes in their place;"
            f" `ulfast doctor` tries again, {VARIABLE}=0 does without them"
        )
        return Verdict(why=why, kept=False)


def _say(text: str) -> None:
    """One line, without the line of code that `warnings.warn` prints below it."""
    with contextlib.suppress(Warning):  # where the user makes errors of warnings: no operator fails for this
        warnings.warn_explicit(text, RuntimeWarning, "ulfast", 1, module=__name__)


# --- the cached result ------------------------------------------------------------------------------------------------


def key(device: torch.device) -> dict[str, Any]:
    """What a result holds for."""
    about: dict[str, Any] = {"torch": f"{torch.__version__}, CUDA {torch.version.cuda}", "build": build()}
    if device.type != "cuda":
        return {"gpu": device.type, **about}
    has = torch.cuda.get_device_properties(device)
    return {
        "gpu": has.name,
        "capability": f"{has.major}.{has.minor}",
        "multiprocessors": has.multi_processor_count,  # how the kernels share out their work depends on it
        "driver": driver(),
        **about,
    }


@lru_cache(maxsize=1)
def driver() -> str:
    """The NVIDIA driver's version, as its management library says, and the CUDA version that it speaks."""
    text, number = ctypes.create_string_buffer(96), ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() == 0:
            library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
            library.nvmlShutdown()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    return f"{text.value.decode(errors='replace')}, CUDA {number.value}"


@lru_cache(maxsize=1)
def build() -> str:
    """A checksum of the kernels, and of what calls and tries them."""
    state = hashlib.sha256(__version__.encode())
    for file in (Path(str(_extension.load().__file__)), *sorted(Path(__file__).parent.glob("*.py"))):
        with contextlib.suppress(OSError):  # without sources the version answers for them
            state.update(file.read_bytes())
    return state.hexdigest()[:16]


def place(key: Mapping[str, Any]) -> Path:
    """The file of a key's result."""
    text = json.dumps(key, sort_keys=True)
    return cache_folder() / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read(file: Path, key: Mapping[str, Any], since: float = 0.0) -> Verdict | None:
    """What a file says of a key; None where it says nothing of use, or is from before `since`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["key"] != key or float(content["time"]) < since:
            return None
        results = {name: content["operators"][name] for name in OPERATORS}
        return _verdict(results, str(content["verified"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _verdict(results: Mapping[str, str | None], verified: str, kept: bool = True) -> Verdict:
    on = frozenset(name for name, wrong in results.items() if wrong is None)
    off = {name: str(wrong) for name, wrong in results.items() if wrong is not None}
    return Verdict(on, off, verified, kept=kept)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Atomically: a reader finds a whole result or none."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(file: Path, seconds: float) -> Iterator[bool]:
    """Whether this process now holds the lock, which it waits for as long as given. A file system that has no locks
    gives it to all."""
    import fcntl  # not everywhere

    with file.open("a") as lock:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(0.05)
            except OSError:
                break
            else:
                break
        yield True  # closing the file frees it


def _proven(device: torch.device, anew: bool) -> Verdict:
    """The cached result, or a new one. Processes that start together (torchrun) wait for the first one's; `anew` takes
    no result from before this process."""
    about = key(device)
    file, since = place(about), _BEGUN if anew else 0.0
    found = _read(file, about, since)
    if found is not None:
        return found
    reason = unfit()
    if reason:
        return _read(file, about) or Verdict(why=f"not verified yet, and not in {reason}", kept=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_suffix(".lock"), WAIT) as ours:
            found = _read(file, about, since)
            if found is not None:
                return found
            if not ours:
                raise Unproven("another process has been verifying them for too long")
            return _verify(device, about, file)
    except OSError as problem:  # a folder that cannot be written: verified for this process alone
        _say(f"ulfast cannot keep the result of verifying its CUDA kernels ({problem}): set ULFAST_CACHE to a folder")
        return _verify(device, about, None)


def _verify(device: torch.device, about: Mapping[str, Any], file: Path | None) -> Verdict:
    begun = time.monotonic()
    results, kept = examine(device, str(about["gpu"]))
    verified = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    found = _verdict(results, verified, kept and file is not None)
    if found.off:
        which = "; ".join(f"{name} ({wrong})" for name, wrong in found.off.items())
        _say(
            f"CUDA kernels of ulfast failed their trial on {about['gpu']} and stay off, PyTorch computes in their"
            f" place: {which}. Please report this with what `ulfast doctor --json` prints"
        )
    if kept and file is not None:
        seconds = round(time.monotonic() - begun, 1)
        content = {"key": about, "verified": verified, "time": time.time(), "seconds": seconds, "operators": results}
        try:
            _write(file, content)
        except OSError as problem:
            _say(f"ulfast cannot keep the result of verifying its CUDA kernels ({problem}): set ULFAST_CACHE")
    return found


# --- the child --------------------------------------------------------------------------------------------------------


def unfit() -> str:
    """Why this process should start no other: it is somebody's helper, or has no interpreter for it. Empty: it may."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None:
        return "a DataLoader's worker"
    if multiprocessing.current_process().daemon:
        return "a daemonic process"
    if torch.cuda._is_in_bad_fork():
        return "a fork of a process that used the GPU"
    if not sys.executable or getattr(sys, "frozen", False):
        return "a program without an interpreter"
    return ""


def command(device: torch.device, operators: Sequence[str]) -> list[str]:
    """What the child is."""
    program = "import sys; from ulfast.ops.trials import main; sys.exit(main())"
    return [sys.executable, "-c", program, "--device", str(device), *operators]


def examine(device: torch.device, gpu: str) -> tuple[dict[str, str | None], bool]:
    """{operator: None where it agrees with its twin, else what is wrong}, and whether that is worth keeping.

    Raises:
        Unproven: no child got as far as the first operator.
    """
    results: dict[str, str | None] = {}
    end, kept, left = time.monotonic() + TOTAL, True, list(OPERATORS)
    while left:
        child = _Child(device, left, gpu, end)
        child.run()
        results |= child.said
        kept = kept and not child.passing
        left = [name for name in left if name not in child.said]
        if not left:
            break
        if not child.ready:
            if not results:
                raise Unproven(child.trouble)
            # After a crash the GPU may be beyond use. To try the others in every process would crash it each time.
            results |= dict.fromkeys(left, f"not tried: {child.trouble}")
            break
        results[left.pop(0)] = child.trouble
    return {name: results[name] for name in OPERATORS}, kept


class _Child:
    """One process that tries operators one after another, and what it said.

    Attributes:
        said: its results.
        passing: a result may be another one tomorrow (no memory).
        ready: it got as far as the first operator.
        trouble: how it ended, where it did not finish.
    """

    def __init__(self, device: torch.device, operators: Sequence[str], gpu: str, end: float) -> None:
        self._device, self._operators, self._gpu, self._end = device, operators, gpu, end
        self.said: dict[str, str | None] = {}
        self.passing, self.ready, self.trouble = False, False, ""

    def run(self) -> None:
        if time.monotonic() >= self._end:
            self.trouble = f"{TOTAL:g} s were over"
            return
        # A folder without modules: the working directory comes first where a child looks for them.
        with tempfile.TemporaryDirectory(prefix="ulfast-") as folder, tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    command(self._device, self._operators),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    cwd=folder,
                    env=_environment(),
                    start_new_session=True,
                )
            except (OSError, ValueError) as problem:
                self.trouble = f"the trial did not start: {problem}"
                return
            try:
                hung = self._listen(child)
                if not hung and not self.trouble:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(5)
            finally:
                _end(child)
            code = child.returncode
            errors.seek(0)
            last = errors.read()[-2000:].decode(errors="replace").strip().rpartition("\n")[2][:300]
        if self.trouble:
            return
        if hung:
            self.trouble = f"hung for {hung:.0f} s"
        elif code is not None and code < 0:
            with contextlib.suppress(ValueError):
                self.trouble = f"ended its process by {signal.Signals(-code).name}"
            self.trouble = self.trouble or f"ended its process by signal {-code}"
        else:
            self.trouble = f"ended its process with exit code {code}{f': {last}' if last else ''}"
        if not self.ready:
            self.trouble = f"the trial did not begin: it {self.trouble}"

    def _listen(self, child: subprocess.Popen[bytes]) -> float:
        """Takes in what it says until it closes its output; 0, or the seconds for which it has said nothing."""
        assert child.stdout is not None
        buffer, begun = b"", time.monotonic()
        patience = START
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                wait = min(begun + patience, self._end) - time.monotonic()
                if wait <= 0:
                    return max(time.monotonic() - begun, 1.0)
                if not selector.select(wait):
                    continue
                piece = os.read(child.stdout.fileno(), 1 << 16)
                if not piece:
                    return 0.0
                *lines, buffer = (buffer[-(1 << 16) :] + piece).split(b"\n")
                for line in lines:
                    if self._take(line):
                        begun, patience = time.monotonic(), STEP
                if self.trouble:
                    return 0.0

    def _take(self, line: bytes) -> bool:
        """Whether a line is one of ours; libraries print there too."""
        try:
            words = json.loads(line)
        except ValueError:
            return False
        if not isinstance(words, dict):
            return False
        if "gpu" in words:
            if words["gpu"] == self._gpu:
                self.ready = True
            else:
                self.trouble = f"the trial saw {words['gpu']} in place of {self._gpu}"
            return True
        name, wrong = words.get("operator"), words.get("wrong", 0)
        if not isinstance(name, str) or not (wrong is None or isinstance(wrong, str)):
            return False
        if not self.ready or name not in self._operators:
            return False
        self.said[name] = wrong
        self.passing = self.passing or bool(words.get("passing"))
        return True


def _environment() -> dict[str, str]:
    """Of the child: it finds the modules that this process finds, and uses every kernel."""
    paths = [os.path.abspath(entry) for entry in sys.path]  # "" is the working directory
    paths.append(str(Path(__file__).resolve().parents[2]))
    return {**os.environ, VARIABLE: "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and what it started. One that the driver holds is left to it."""
    if child.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
    if child.stdout is not None:
        child.stdout.close()
