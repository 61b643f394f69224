"""Two commands that write one output at a time, and a reader."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from .forks import Fork, forked
from .outputs import Outputs, silent


class Writers(Outputs):
    """Two commands write one output, a third reads: each is done or says that another one is writing."""

    part = "writers"

    def attempt(self, verb: str, draw: random.Random) -> Iterator[tuple[str, str | None]]:
        pause = draw.random() * 0.2

        def work(data: Path) -> str:
            code, said = silent(self.verbs[verb][0](str(data)))
            refused = code == 2 and "another process" in said
            return "done" if code == 0 else "refused" if refused else f"exit {code}: {said}"

        forks = [Fork(lambda: work(self.new), seconds=90)]
        time.sleep(pause)
        forks.append(Fork(lambda: work(self.old), seconds=90))
        seen = set()
        while sum(fork.running() for fork in forks):  # each is asked, so that none stays a zombie
            seen.add(forked(self.verbs[verb][1]))
        ends = [fork.said for fork in forks]
        other = seen - set(self.versions[verb])
        if not set(ends) <= {"done", "refused"} or ends == ["refused"] * 2:
            wrong: str | None = str(ends)
        elif verb not in ("attack", "fit") and other:  # a run is written as it goes
            wrong = f"a reader saw {other}"
        else:
            wrong = self.after(verb)
        yield " and ".join(sorted(ends)), wrong
