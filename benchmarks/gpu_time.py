"""Times on a GPU without the host's part: many calls captured in one CUDA graph, or queued behind a pause.

A call of a few microseconds is over before Python has issued the next, so two events around one call measure Python.
Here a contestant's calls over all input sets are captured once and replayed; where a capture fails, its calls are
queued behind a pause of the GPU. What the host needs to issue a call is measured apart.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Thunk = Callable[[int], Any]
SPAN = 1e-3  # seconds of work between two events, if a call takes less
CALLS = 200  # but not more calls than this, unless there are more sets
QUEUED = 20  # calls behind a pause: the queue of a GPU holds about a thousand launches
LONG = 0.03  # from this many seconds on, not every set is called
SLOW = 0.05  # from this many seconds on, a call is measured individually
HOST = 32  # calls for the latency of the host
FIELDS = (
    "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,power.limit,"
    "temperature.gpu"
)
SLOW_ANSWER: list[bool] = []  # not empty once nvidia-smi took long: it is then called only at the end


class Broken(Exception):
    """The GPU no longer answers in this process, because of a sticky kernel error."""


@dataclass
class Time:
    """Seconds of a call.

    Attributes:
        seconds: median on the device; `least` and `most` of the rounds.
        host: until the call returns, the device not waited for; None on the CPU.
        way: "graph", "queued" (behind a pause), "alone" or "clock" (on the CPU).
        calls: between two readings.
        fault: why there is no graph.
    """

    seconds: float
    least: float
    most: float
    host: float | None
    way: str
    calls: int
    fault: str = ""


def alive() -> bool:
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device="cuda").sum().item() == 2
    except RuntimeError:
        return False


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def pause(seconds: float) -> None:
    """Pauses the GPU while the following work is queued. Cycles are counted at the fastest clock or below."""
    torch.cuda._sleep(int(2e9 * min(seconds, 0.1)))


class Contestant:
    """A function of the number of the input set, prepared for measuring."""

    def __init__(self, run: Thunk, sets: int) -> None:
        self.run, self.sets, self.fault = run, sets, ""
        self.graph: torch.cuda.CUDAGraph | None = None
        self.kept: list[Any] = []
        run(0)
        torch.cuda.synchronize()
        start = time.perf_counter()
        run(1 % sets)
        torch.cuda.synchronize()
        self.alone = time.perf_counter() - start
        self.calls, self.way = 1, "alone"
        self.host = self.alone
        if self.alone > SLOW:
            return
        self.host = self._host()
        self.calls, self.way = min(4, QUEUED), "queued"
        begin, end = self._queued()
        torch.cuda.synchronize()
        one = begin.elapsed_time(end) / 1e3 / self.calls
        if one * sets > LONG:  # nothing of such long calls stays in a cache, so a few sets suffice
            self.calls = min(sets, max(2, int(LONG / one)))
        else:
            times = min(round(SPAN / max(one, 1e-7) / sets), CALLS // sets)
            self.calls = sets * max(1, times)
        try:
            self._capture()
            self.way = "graph"
        except RuntimeError as error:
            self.graph, self.kept, self.fault = None, [], first_line(error)
            if not alive():
                raise
            self.calls = min(self.calls, QUEUED)

    def _host(self) -> float:
        count = HOST if self.alone < 2e-3 else 4
        start = time.perf_counter()
        for i in range(count):
            self.run(i % self.sets)
        spent = time.perf_counter() - start
        torch.cuda.synchronize()
        return spent / count

    def _capture(self) -> None:
        """Each set keeps its result, so that no result is written into the cache's copy of the last one."""
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        graph, kept = torch.cuda.CUDAGraph(), [None] * self.sets
        with torch.cuda.stream(side):
            for i in range(min(2, self.sets)):
                self.run(i)
            side.synchronize()
            collecting = gc.isenabled()
            gc.disable()  # freeing memory during a capture invalidates it
            try:
                graph.capture_begin()
                try:
                    for i in range(self.calls):
                        kept[i % self.sets] = self.run(i % self.sets)
                finally:
                    graph.capture_end()
            finally:
                if collecting:
                    gc.enable()
        here.wait_stream(side)
        graph.replay()  # the first uploads it
        torch.cuda.synchronize()
        self.graph, self.kept = graph, kept

    def _queued(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = events()
        pause(1.5 * self.calls * self.host + 1e-4)
        begin.record()
        for i in range(self.calls):
            self.run(i % self.sets)
        end.record()
        return begin, end

    def issue(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Starts a reading without waiting for it."""
        if self.graph is None:
            return self._queued()
        begin, end = events()
        pause(5e-5)
        begin.record()
        self.graph.replay()
        end.record()
        return begin, end


def race(runs: dict[str, Thunk], sets: int, device: torch.device, rounds: int) -> dict[str, Time]:
    """Times of every contestant; they take turns, so that a slow moment affects all.

    Raises:
        Broken: the GPU does not answer any more.
    """
    if device.type == "cpu":
        return {name: on_the_cpu(run, sets, rounds) for name, run in runs.items()}
    try:
        ready = {name: Contestant(run, sets) for name, run in runs.items()}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for round_ in range(rounds + 1):
            turn = {
                name: one.issue()
                for name, one in ready.items()
                if one.way != "alone" or round_ < 3  # long calls have two rounds
            }
            torch.cuda.synchronize()
            if round_:  # the first warms up
                for name, (begin, end) in turn.items():
                    found[name].append(begin.elapsed_time(end) / 1e3 / ready[name].calls)
    except RuntimeError as error:
        if not alive():
            raise Broken(first_line(error)) from error
        raise
    return {
        name: Time(statistics.median(v), min(v), max(v), ready[name].host, one.way, one.calls, one.fault)
        for (name, one), v in zip(ready.items(), found.values(), strict=True)
    }


def on_the_cpu(run: Thunk, sets: int, rounds: int) -> Time:
    spent = []
    for i in range(rounds + 1):
        start = time.perf_counter()
        run(i % sets)
        spent.append(time.perf_counter() - start)
    spent = spent[1:]
    return Time(statistics.median(spent), min(spent), max(spent), None, "clock", 1)


def warm(device: torch.device, seconds: float = 0.2, always: bool = False) -> dict[str, str]:
    """Runs work until the clocks are up; returns the output of nvidia-smi meanwhile, unless it is slow to answer."""
    if device.type == "cpu":
        return {}
    begun = time.perf_counter()
    asked = ask() if always or not SLOW_ANSWER else None
    a = torch.ones(4096, 4096, device=device, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(20):
            a @ a
        torch.cuda.synchronize()
    said = answer(asked)
    if time.perf_counter() - begun > seconds + 0.3:
        SLOW_ANSWER.append(True)
    return said


def ask() -> subprocess.Popen[str] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={FIELDS}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None


def answer(asked: subprocess.Popen[str] | None) -> dict[str, str]:
    if asked is None:
        return {}
    try:
        line = asked.communicate(timeout=5)[0].strip()
    except subprocess.TimeoutExpired:
        asked.kill()
        return {}
    values = [value.strip() for value in line.split(",")]
    names = FIELDS.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def nvcc() -> str | None:
    """The compiler's version line."""
    program = shutil.which("nvcc")
    if program is None:
        return None
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    return next((line for line in done.stdout.splitlines() if "release" in line), None)
