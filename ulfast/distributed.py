"""Running one job in several processes, with torch's process groups and its elastic launcher.

Every process runs the same program on its own share of each batch or of the images; the first one writes and prints.
The helpers do nothing if there is only one process, and they act only inside `joined`: a program of yours that has its
own process group and calls ulfast in one of its processes is not drawn into collective calls.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError, WorkerError
from .runtime.files import drop, temporary_folder
from .runtime.machine import cores, launched_size
from .runtime.reading import said

T = TypeVar("T")

# Seconds that a process waits in a sum or a broadcast; ULFAST_RANK_WAIT sets another number. It must cover what one
# process does alone (a picture, a checksum of all images), so a process that is stuck in its own work ends the job only
# then. One that died is noticed at once; `_Watch` finds one that gives no sign of life.
PATIENCE = 1800.0
# Seconds without a sign of life after which a process counts as lost, and within which all must join;
# ULFAST_RANK_TIMEOUT sets another number.
SILENCE = 60.0
# Seconds that processes have to end after one of them failed; then they are killed.
SHUTDOWN = 5

_RANK, _SIZE = 0, 1


def rank() -> int:
    """Number of this process, counted from 0."""
    return _RANK


def size() -> int:
    """How many processes work together."""
    return _SIZE


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return _RANK == 0


def restarted() -> bool:
    """Whether the launcher restarted this process after one of the processes died."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return count.isdecimal() and int(count) > 0


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Joins the processes that torchrun started for the duration of the block; does nothing with one process.

    NCCL serves tensors on GPUs, with one GPU per process, and gloo those on CPUs. If the program has already joined the
    processes, its process group is used and left alone. The processes of a machine share its CPU threads.

    Raises:
        InputError: there are more processes than GPUs, or `device` names one GPU for all of them.
    """
    global _RANK, _SIZE
    ours = not dist.is_initialized()
    if ours and launched_size() < 2:
        yield
        return
    if ours:
        gpu = torch.cuda.is_available() and not device.startswith("cpu")
        if gpu:
            local, many = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
            if local >= many:
                raise InputError(f"{local + 1} processes on a machine with {many} GPU: give fewer, or --device cpu")
            if ":" in device:
                raise InputError(f"--device {device} names one GPU, each process takes its own: say --device cuda")
            torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
        silence, patience = _seconds("ULFAST_RANK_TIMEOUT", SILENCE), _seconds("ULFAST_RANK_WAIT", PATIENCE)
        store, number, count = _met(silence)
        watch = _Watch(number, count, silence)
        try:
            waits = timedelta(seconds=patience)
            dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=waits)
        except (RuntimeError, ValueError) as error:
            raise WorkerError(f"process {number} of {count} could not join the others ({said(error)})") from error
        if "ULFAST_LAUNCHED" not in os.environ:  # torchrun gives each process one thread
            torch.set_num_threads(cores())
    _RANK, _SIZE = dist.get_rank(), dist.get_world_size()
    try:
        yield
        # No process leaves before the last has arrived. After an error the others may wait for this process; it ends
        # without them, and the launcher ends them.
        wait()
        if ours:
            # A network in DistributedDataParallel refers to itself and holds the group, whose threads would outlive
            # the interpreter: "terminate called without an active exception".
            gc.collect()
            dist.destroy_process_group()
    except RuntimeError as error:
        if not ours or "timed out waiting" not in str(error).lower():  # gloo's words; NCCL ends the process itself
            raise
        raise WorkerError(
            f"process {_RANK} of {_SIZE} has waited {patience:g} s for another one, which lives: it is stuck in its own"
            " work, say on a disk that does not answer, or this takes longer; finished work is kept (ULFAST_RANK_WAIT"
            " sets another time)"
        ) from error
    finally:
        if ours:  # after an error too: the caller may continue alone
            watch.end()
        _RANK, _SIZE = 0, 1


def _seconds(variable: str, default: float) -> float:
    """What an environment variable sets.

    Raises:
        InputError: it is not a number of seconds.
    """
    text = os.environ.get(variable, str(default))
    with contextlib.suppress(ValueError):
        if 1 <= float(text) < float("inf"):
            return float(text)
    raise InputError(f"{variable} is {text!r}: give a number of seconds, 1 or more")


def _met(silence: float) -> tuple[dist.Store, int, int]:
    """The store through which all processes meet, the number of this one, and their count.

    Raises:
        InputError: the port is in use, or not all processes joined in time.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    count = launched_size()
    # Twice the time of a sign of life: processes import torch first, and not all from the same disk.
    patience = timedelta(seconds=2 * silence)
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=patience))
        # The launcher's store outlives a restart, and so do the addresses in it of processes that are gone.
        store = dist.PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        store.set(f"here/{number}", "1")
        store.wait([f"here/{other}" for other in range(count)], patience)
    except (RuntimeError, ValueError) as error:
        text = said(error)
        if "EADDRINUSE" in text or "address already in use" in text.lower():
            raise InputError(f"port {port} is in use on this machine: set another MASTER_PORT for all") from error
        raise InputError(
            f"not all of {count} processes joined at {address}:{port} within {patience.seconds} s: start them all,"
            " check MASTER_ADDR and MASTER_PORT, or set ULFAST_RANK_TIMEOUT"
        ) from error
    return store, number, count


class _Watch:
    """Ends this process when another has given no sign of life for some seconds: it was stopped, or its machine is
    lost.

    A thread writes its own sign of life to the rendezvous store over a separate connection. The first process watches
    the others, and the others watch the first: when the first ends, all do.
    """

    def __init__(self, number: int, count: int, silence: float) -> None:
        self._number, self._count, self._silence, self._stop = number, count, silence, threading.Event()
        self._every = min(5.0, silence / 8)
        self._name = f"life/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._seen = {other: (b"", time.monotonic()) for other in (range(1, count) if number == 0 else range(1))}
        # Two threads, as a call to a store whose process is stopped does not return.
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._signs, self._judge)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Stops watching."""
        self._stop.set()
        for thread in self._threads:
            thread.join(1 + self._every)

    def _signs(self) -> None:
        store: dist.Store | None = None
        beat = 0
        while not self._stop.wait(self._every):
            beat += 1
            with contextlib.suppress(RuntimeError, ValueError, OSError):  # the store is gone
                store = store or self._connected()
                store.set(f"{self._name}/{self._number}", str(beat))
                for other, (before, _) in list(self._seen.items()):
                    key = f"{self._name}/{other}"
                    sign = store.get(key) if store.check([key]) else b""
                    if sign != before:
                        self._seen[other] = sign, time.monotonic()

    def _judge(self) -> None:
        while not self._stop.wait(self._every):
            for other, (_, last) in list(self._seen.items()):
                if time.monotonic() - last > self._silence and not self._stop.is_set():
                    self._lost(other)

    def _connected(self) -> dist.Store:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=max(1.0, self._every))
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)

    def _lost(self, other: int) -> None:
        line = (
            f"process {other} of {self._count} has not answered for {self._silence:g} s: look at its machine;"
            " finished work is kept (ULFAST_RANK_TIMEOUT sets another time)"
        )
        if not tell_launcher(line, WorkerError(line)):
            print(f"ulfast: {line}", file=sys.stderr, flush=True)
        os._exit(1)


def check_same(facts: dict[str, Any]) -> None:
    """Raises InputError if the processes differ in what they are about to do: in versions, settings or data.

    Args:
        facts: values that must be equal, keyed by their names for the error; compared by `repr`.
    """
    if _SIZE == 1:
        return
    every = gathered({key: repr(value) for key, value in facts.items()})
    for number, other in enumerate(every):
        for key in every[0] | other:
            theirs, first = other.get(key, "none"), every[0].get(key, "none")
            if theirs != first:
                raise InputError(
                    f"process {number} has other {key} than process 0 ({_short(theirs)}, not {_short(first)}):"
                    " give all the same"
                )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def share(n: int, rank: int | None = None, size: int | None = None) -> tuple[int, int]:
    """[begin, stop) of this process's share of n items: shares are consecutive and differ in size by one at most."""
    rank, size = _RANK if rank is None else rank, size or _SIZE
    return n * rank // size, n * (rank + 1) // size


def sum_(tensor: Tensor) -> Tensor:
    """Sums a tensor over the processes, in place; every process gets the same bytes."""
    if _SIZE > 1:
        dist.all_reduce(tensor)
    return tensor


def same(tensor: Tensor) -> Tensor:
    """Overwrites each process's tensor with that of the first process, which has the same shape."""
    if _SIZE > 1:
        tensor = tensor.contiguous()
        dist.broadcast(tensor, 0)
    return tensor


def agreed(value: T) -> T:
    """Gives all processes the first one's value, such as what it found on the disk. It must be picklable."""
    if _SIZE == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if _SIZE == 1:
        return [value]
    box: list[Any] = [None] * _SIZE
    dist.all_gather_object(box, value)
    return box


def first_here() -> int:
    """The rank of the first process on this machine. Every process must call it."""
    names = gathered(_machine())
    return names.index(names[_RANK])


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")  # host names need not be unique
    return platform.node() + (boot.read_text() if boot.is_file() else "")


def wait() -> None:
    """Waits until every process has arrived."""
    sum_(torch.zeros(1))


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Runs the block in the first process, then in the others, which find what the first downloaded."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def launch(processes: int, arguments: Sequence[str], max_restarts: int = 0, hint: str = "") -> None:
    """Runs ``ulfast ARGUMENTS`` in several processes on this machine with torch's elastic launcher until all are done.

    If one of them fails or is killed, the others are ended. All are then restarted, up to `max_restarts` times, and
    resume from the last checkpoint.

    Args:
        hint: how the user resumes an interrupted run, "" if nothing of it is kept.

    Raises:
        InputError: a process reported wrong input.
        WorkerError: a process died or failed, and no restart was left. The one-line message names it.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # silences the launcher in favour of our one line
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    os.environ["ULFAST_LAUNCHED"] = "1"
    logs = temporary_folder()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        shutdown_timeout=SHUTDOWN,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),  # errors too; otherwise torch would leave a folder behind
    )
    try:
        elastic_launch(config, sys.executable)("-m", "ulfast", *arguments)
    except ChildFailedError as error:
        raise _reason(error.failures, processes, hint) from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise WorkerError(f"ended by {error.sigval.name}{hint and '; finished work is kept: '}{hint}") from None
    finally:
        drop(logs)
        logging.disable(logging.NOTSET)
        del os.environ["ULFAST_LAUNCHED"]


def _reason(failures: dict[int, Any], processes: int, hint: str) -> Exception:
    """The most telling failure: first a process that was killed, then one that gave a reason, then one that lost the
    others, then those that the launcher ended.
    """

    def weight(item: tuple[int, Any]) -> tuple[int, int]:
        failure = item[1]
        if failure.exitcode < 0:
            return 3 if failure.exitcode == -signal.SIGTERM else 0, failure.timestamp
        return 2 if failure.error_file_data.get("lost") else 1, failure.timestamp

    number, failure = min(failures.items(), key=weight)
    who = f"process {number} of {processes}"
    if failure.exitcode < 0:
        return WorkerError(
            f"{who} was killed by {failure.signal_name()} and the others were ended"
            + (f"; finished work is kept: {hint}, --max-restarts N does so by itself" if hint else "")
        )
    text = failure.error_file_data.get("line") or f"{who} ended with exit code {failure.exitcode}"
    return InputError(text) if failure.exitcode == 2 else WorkerError(f"{who}: {text}")


def tell_launcher(line: str, error: BaseException) -> bool:
    """Stores the line where the launcher looks for it; False if there is no launcher to print it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return False
    lost = isinstance(error, dist.DistError) or "gloo" in str(error)
    content = {"message": line, "line": line, "timestamp": int(time.time()), "lost": lost}
    with contextlib.suppress(OSError):
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    return "ULFAST_LAUNCHED" in os.environ
