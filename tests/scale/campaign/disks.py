"""Disks that become full."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Iterator

from .forks import forked
from .outputs import Outputs, silent


class Disks(Outputs):
    """A disk that takes files up to a size, chosen at random: done, or one line that says so; nothing lost."""

    part = "disks"

    def attempt(self, verb: str, draw: random.Random) -> Iterator[tuple[str, str | None]]:
        most = draw.choice((0, 1, 100, 1000, 10_000, 50_000, 100_000, draw.randrange(200_000)))

        def work() -> str:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            code, said = silent(self.verbs[verb][0](str(self.new)))
            return (
                "done" if code == 0 else "one line" if code == 2 and "disk is full" in said else f"exit {code}: {said}"
            )

        end = forked(work, seconds=60)
        wrong = end if end not in ("done", "one line") else self.after(verb)
        yield end, wrong and f"{most} bytes: {wrong}"
