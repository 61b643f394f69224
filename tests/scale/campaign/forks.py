"""Work in forks of this process: one piece, or many one after the other, with limits of time and memory."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ulfast import InputError

MEMORY = 4 << 30  # beyond what the process has, that a try may ask for
SECONDS = 20.0  # of work for one try; of waiting ten times as many, as the machine may be busy
BUSY = 10
GROWN = 1 << 30  # beyond what a fork began with, after which another one continues


def used() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def hangs(child: int, began: float, worked: float, seconds: float) -> bool:
    """Whether a process that had worked for `worked` seconds at time `began` has not ended its try in due time."""
    waited = time.monotonic() - began
    return waited > BUSY * seconds or (waited > seconds and processor_time(child) - worked > seconds)


def processor_time(child: int) -> float:
    """Seconds of processor time that a process has taken, in all of its threads."""
    try:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory(more: int) -> int:
    """Allows this process some bytes beyond what it has, and returns what it has. A MemoryError follows."""
    have = used()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (have + more, hard))
    return have


def told(work: Callable[[], str]) -> str:
    """What some work returned, or how it failed: "InputError" for one of a line, else the error."""
    try:
        return work()
    except InputError as error:
        return "InputError" if "\n" not in str(error) else f"an InputError of several lines: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


class Fork:
    """A fork of this process that does some work; a process without other threads, which would not survive it."""

    def __init__(self, work: Callable[[], str], *, memory: int | None = None, seconds: float = SECONDS) -> None:
        self._read, write = os.pipe()
        self._began, self._seconds, self.said = time.monotonic(), seconds, ""
        self._child = os.fork()
        if not self._child:
            os.close(self._read)
            said = "no word"
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                if memory is not None:
                    limit_memory(memory)
                said = told(work)
            finally:
                with contextlib.suppress(BaseException):
                    os.write(write, said.encode("utf-8", "backslashreplace")[:4000])
                os._exit(0)
        os.close(write)

    def running(self) -> bool:
        """False once it has ended; `said` is then what it returned, "InputError", another error, a signal or "hang"."""
        if self.said:
            return False
        done, status = os.waitpid(self._child, os.WNOHANG)
        if not done and not hangs(self._child, self._began, 0.0, self._seconds):
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

    def ended(self, seconds: float) -> bool:
        """Waits for its end, some seconds at most."""
        if not self.said and seconds > 0:
            select.select([self._read], [], [], seconds)  # it writes once, or ends
        return not self.running()


def forked(work: Callable[[], str], *, memory: int | None = None, seconds: float = SECONDS) -> str:
    """How a fork that does some work ended."""
    fork = Fork(work, memory=memory, seconds=seconds)
    while fork.running():
        fork.ended(0.05)
        time.sleep(0.0005)  # between its word and its end
    return fork.said


def in_one_fork(
    work: Callable[[int], str], numbers: Sequence[int], *, memory: int = MEMORY, seconds: float = SECONDS
) -> Iterator[tuple[int, str]]:
    """What each number's work said, in order, by one fork for all of them. It stops early, without a word of the
    number that it was at, where the fork died, took too long for it or was left much larger by it.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            began = used()
            for number in numbers:
                if limit_memory(memory) > began + GROWN:
                    break
                said = told(lambda number=number: work(number)).encode("utf-8", "backslashreplace")[:4000]
                os.write(write, len(said).to_bytes(4, "little") + said)
        finally:
            os._exit(0)
    os.close(write)
    kept = b""
    try:
        for number in numbers:
            began, worked = time.monotonic(), None
            while len(kept) < 4 or len(kept) < 4 + int.from_bytes(kept[:4], "little"):
                if not select.select([read], [], [], min(1.0, seconds))[0]:
                    worked = processor_time(child) if worked is None else worked
                    if hangs(child, began, worked, seconds):
                        return
                elif more := os.read(read, 1 << 16):
                    kept += more
                else:
                    return
            size = 4 + int.from_bytes(kept[:4], "little")
            said, kept = kept[4:size].decode(), kept[size:]
            yield number, said
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
