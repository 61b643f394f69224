"""Decides which CUDA kernels are on: those that agreed with their twins on this very GPU.

On the first use of a GPU a child process runs every kernel against its twin (`trials`). The result is cached by GPU,
driver, torch and build. Only a kernel that disagrees, crashes or hangs stays off: its operator computes with the twin
in PyTorch, and a warning is printed. A child process is used because a faulty kernel can end its process or leave it
without a usable GPU.

ULFAST_CUDA_KERNELS: auto (the default), 0 (all off), 1 (all on, unverified), verify (verify again, then as auto).
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

KIND = "cuda"  # type of device
VARIABLE = "ULFAST_CUDA_KERNELS"
SETTINGS = ("auto", "0", "1", "verify")
OPERATORS = tuple(trials.TRIALS)  # `project` stands for `project_` and `project_out` too
# Seconds allowed: for torch to start from a slow disk, for one operator, for all, and for another process's result.
START, STEP, TOTAL, WAIT = 90.0, 30.0, 120.0, 150.0
_BEGUN = time.time()


@dataclass(frozen=True)
class Verdict:
    """The verdict for one GPU.

    Attributes:
        on: operators whose kernels are used.
        off: operators whose kernels failed, and how.
        verified: time of the verification; None if there was none.
        why: one line, if all are off or unverified.
        kept: whether the result is cached for the next process.
    """

    on: frozenset[str] = frozenset()
    off: Mapping[str, str] = field(default_factory=dict)
    verified: str | None = None
    why: str = ""
    kept: bool = True


class Unproven(Exception):
    """Nothing was learned about any kernel. The message says why."""


_verdicts: dict[torch.device, Verdict] = {}
_deciding = threading.RLock()


def enabled(operator: str, device: torch.device) -> bool:
    """Whether an operator uses its CUDA kernel on this GPU. The first call may take seconds, later calls no time.

    Raises:
        InputError: ULFAST_CUDA_KERNELS has an unknown value.
    """
    known = _verdicts.get(device)
    return operator in (verdict(device) if known is None else known).on


def forget() -> None:
    """Forgets all verdicts, after a change of the environment."""
    _verdicts.clear()


def verdict(device: torch.device) -> Verdict:
    """As `enabled`, for all operators."""
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
    except Exception as error:  # whatever the error, the operators work without the kernels
        why = str(error) if isinstance(error, Unproven) else f"{type(error).__name__}: {error}"
        _say(
            f"ulfast could not verify its CUDA kernels on this GPU ({why}), so PyTorch computes in their place;"
            f" `ulfast doctor` tries again, {VARIABLE}=0 does without them"
        )
        return Verdict(why=why, kept=False)


def _say(text: str) -> None:
    """Warns in one line, without the source line that `warnings.warn` prints below it."""
    with contextlib.suppress(Warning):  # if the user turns warnings into errors: no operator fails for this
        warnings.warn_explicit(text, RuntimeWarning, "ulfast", 1, module=__name__)


# --- the cached result ------------------------------------------------------------------------------------------------


def key(device: torch.device) -> dict[str, Any]:
    """The environment for which a result is valid."""
    about: dict[str, Any] = {"torch": f"{torch.__version__}, CUDA {torch.version.cuda}", "build": build()}
    if device.type != "cuda":
        return {"gpu": device.type, **about}
    has = torch.cuda.get_device_properties(device)
    return {
        "gpu": has.name,
        "capability": f"{has.major}.{has.minor}",
        "multiprocessors": has.multi_processor_count,  # the kernels' division of work depends on it
        "driver": driver(),
        **about,
    }


@lru_cache(maxsize=1)
def driver() -> str:
    """The NVIDIA driver's version, from its management library, and the CUDA version that it supports."""
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
    """A checksum of the kernels and of the code that calls and tries them."""
    state = hashlib.sha256(__version__.encode())
    for file in (Path(str(_extension.load().__file__)), *sorted(Path(__file__).parent.glob("*.py"))):
        with contextlib.suppress(OSError):  # without sources the version stands for them
            state.update(file.read_bytes())
    return state.hexdigest()[:16]


def place(key: Mapping[str, Any]) -> Path:
    """The file with the result for a key."""
    text = json.dumps(key, sort_keys=True)
    return cache_folder() / "kernels" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _read(file: Path, key: Mapping[str, Any], since: float = 0.0) -> Verdict | None:
    """The result for a key from a file; None if it has no valid result or is older than `since`."""
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
    """Writes atomically: a reader finds a complete result or none."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(file: Path, seconds: float) -> Iterator[bool]:
    """Yields whether this process now holds the lock, for which it waits as long as given. On a file system without
    locks every process gets it.
    """
    import fcntl  # not available everywhere

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
        yield True  # closing the file releases it


def _proven(device: torch.device, anew: bool) -> Verdict:
    """The cached result, or a new one. Processes that start together (torchrun) wait for the first one's result; `anew`
    rejects results older than this process.
    """
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
    except OSError as problem:  # the folder is not writable: verified for this process alone
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
    """Why this process should not start another: it is itself a helper, or has no interpreter for it. Empty: it may."""
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
    """The command line of the child."""
    program = "import sys; from ulfast.ops.trials import main; sys.exit(main())"
    return [sys.executable, "-c", program, "--device", str(device), *operators]


def examine(device: torch.device, gpu: str) -> tuple[dict[str, str | None], bool]:
    """{operator: None if it agrees with its twin, otherwise what is wrong}, and whether the result is worth keeping.

    Raises:
        Unproven: no child reached the first operator.
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
            # After a crash the GPU may be unusable. Trying the others in every process would crash it each time.
            results |= dict.fromkeys(left, f"not tried: {child.trouble}")
            break
        results[left.pop(0)] = child.trouble
    return {name: results[name] for name in OPERATORS}, kept


class _Child:
    """One process that tries operators one after another, and what it reported.

    Attributes:
        said: its results so far.
        passing: whether a failure may be temporary (no memory).
        ready: whether it reached the first operator.
        trouble: how it ended, if it did not finish.
    """

    def __init__(self, device: torch.device, operators: Sequence[str], gpu: str, end: float) -> None:
        self._device, self._operators, self._gpu, self._end = device, operators, gpu, end
        self.said: dict[str, str | None] = {}
        self.passing, self.ready, self.trouble = False, False, ""

    def run(self) -> None:
        if time.monotonic() >= self._end:
            self.trouble = f"{TOTAL:g} s had passed"
            return
        # A folder without modules, as a child searches its working directory first.
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
        """Reads its output until it is closed; returns 0, or the seconds for which it was silent."""
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
        """Whether a line is ours; libraries print there too."""
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
    """The child's environment: it finds the same modules as this process, and uses every kernel."""
    paths = [os.path.abspath(entry) for entry in sys.path]  # "" is the working directory
    paths.append(str(Path(__file__).resolve().parents[2]))
    return {**os.environ, VARIABLE: "1", "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends a child and what it started. A child stuck in the driver is left behind."""
    if child.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
    if child.stdout is not None:
        child.stdout.close()
