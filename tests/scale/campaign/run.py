"""The command line of the campaign."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer would

from ulfast.runtime.environment import describe

from .disks import Disks
from .downloads import Downloads
from .kills import Kills
from .outputs import quicken
from .readers import Readers
from .tally import End, Part, Tally
from .writers import Writers

PARTS: dict[str, Callable[[Path, int], Part]] = {
    "readers": Readers,
    "kills": Kills,
    "disks": Disks,
    "writers": Writers,
    "downloads": Downloads,
}
MEMORY_DISK, ROOM = Path("/dev/shm"), 2 << 30  # bytes of it that must be free
TELL = 60.0  # seconds
SHOWN = 6  # ends of a part in the table


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder for the files, in memory where there is room."""
    roomy = MEMORY_DISK.is_dir() and os.access(MEMORY_DISK, os.W_OK) and shutil.disk_usage(MEMORY_DISK).free > ROOM
    folder = Path(tempfile.mkdtemp(prefix="ulfast-campaign-", dir=MEMORY_DISK if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tried(part: str, seed: int, numbers: Iterator[int]) -> Iterator[End]:
    """How the tries of some numbers ended."""
    with place() as folder:
        kind = PARTS[part](folder, seed)
        gc.freeze()
        try:
            yield from kind.ends(numbers)
        finally:
            kind.close()


def shared(part: str, seed: int, jobs: int) -> Iterator[End]:
    """The same of all numbers, by several processes, each with files of its own."""
    children, pipes = [], []
    for job in range(jobs):
        mine, theirs = Pipe(duplex=False)
        child = os.fork()
        if not child:
            _worker(theirs, part, seed, job, jobs)
        theirs.close()
        children.append(child)
        pipes.append(mine)
    try:
        while True:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                yield from pickle.loads(pipe.recv_bytes())
    finally:
        for child in children:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)


def _worker(pipe: Connection, part: str, seed: int, job: int, jobs: int) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    code = 1
    try:
        found = tried(part, seed, islice(count(), job, None, jobs))
        with contextlib.closing(found):
            while some := list(islice(found, 50)):
                pipe.send_bytes(pickle.dumps(some))
    except KeyboardInterrupt:
        code = 0
    finally:
        os._exit(code)


def run_part(
    part: str,
    seed: int,
    seconds: float,
    *,
    only: int | None = None,
    tries: int | None = None,
    jobs: int = 1,
    tell: Callable[[Tally], None] = lambda _: None,
) -> Tally:
    """A part of the campaign for some seconds, or as many tries; at least one. `tell` is called now and then."""
    tally, begun, told = Tally(), time.monotonic(), time.monotonic()
    if only is not None:
        found = tried(part, seed, iter([only]))
    else:
        found = shared(part, seed, jobs) if jobs > 1 else tried(part, seed, count())
    with contextlib.closing(found):
        for number, end, finding in found:
            tally.tries += 1
            tally.ends[end] += 1
            now = time.monotonic()
            if finding is not None:
                words = " ".join(finding.split())[:300]
                tally.findings.append(f"--seed {seed} --part {part} --try {number}: {words}")
                print(f"finding: {tally.findings[-1]}", flush=True)
            if now - told > TELL:
                told, tally.seconds = now, now - begun
                tell(tally)
            if tally.tries == tries if tries is not None else now - begun > seconds:
                break
    tally.seconds = time.monotonic() - begun
    tell(tally)
    return tally


def keep(file: Path, part: str, tally: Tally, seed: int, jobs: int, about: dict[str, Any]) -> None:
    """Writes what a part found, and with what, to a JSON file; the other parts that stand in it stay."""
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"parts": {}}
    kept["parts"][part] = {
        "seed": seed,
        "jobs": jobs,
        "tries": tally.tries,
        "seconds": round(tally.seconds, 1),
        "ends": dict(tally.ends.most_common()),
        "findings": tally.findings,
        "environment": about,
    }
    kept["parts"] = {part: kept["parts"][part] for part in PARTS if part in kept["parts"]}
    part_file = file.with_name(f".{file.name}.{part}")
    part_file.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part_file.replace(file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/campaign.sh", description=sys.modules[__package__].__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="in all (default 5)")
    parser.add_argument("--hours", type=float, help="instead of minutes")
    parser.add_argument("--tries", type=int, help="of each part, instead of a time")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="only this part; may be given again")
    parser.add_argument("--try", type=int, dest="only", help="one try of one part, by its number")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time (default 1)")
    parser.add_argument("--json", type=Path, help="also write what was found to this file, beside its other parts")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    parts = given.part or list(PARTS)
    seconds = 60 * (given.minutes if given.hours is None else 60 * given.hours) / len(parts)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaves no files behind
    torch.set_num_threads(1)  # libgomp's threads do not survive a fork
    about = describe()  # before the checkout may change
    del about["platform"]  # the name of a kernel
    quicken()
    print(f"seed {seed}, {f'{given.tries:,} tries' if given.tries else f'{seconds:.0f} s'} for each part", flush=True)
    tallies = {}
    for part in parts:

        def tell(tally: Tally, part: str = part) -> None:
            if tally.tries != given.tries:
                print(f"{part}: {tally.tries:,} tries, {len(tally.findings)} findings", flush=True)
            if given.json:
                keep(given.json, part, tally, seed, given.jobs, about)

        many = {"only": given.only, "tries": given.tries, "jobs": given.jobs}
        tallies[part] = run_part(part, seed, seconds, tell=tell, **many)
    print(f"\n{'part':<10} {'tries':>9} {'seconds':>8} {'findings':>9}  how they ended")
    for part, tally in tallies.items():
        ends = ", ".join(f"{times:,} {end}" for end, times in tally.ends.most_common(SHOWN))
        print(f"{part:<10} {tally.tries:>9,} {tally.seconds:>8.0f} {len(tally.findings):>9}  {ends}")
    return 1 if any(tally.findings for tally in tallies.values()) else 0
