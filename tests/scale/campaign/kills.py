"""Commands that are killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator

from .forks import forked
from .outputs import Outputs, silent

MOST = 5  # kills one after the other before the command is let through


class Kills(Outputs):
    """A command killed at a random moment, and again: after each kill the old output or the new one is there, and no
    leftovers after the next command. Every kill counts as a try."""

    part = "kills"

    def attempt(self, verb: str, draw: random.Random) -> Iterator[tuple[str, str | None]]:
        kills, tell = draw.randint(1, MOST), self.verbs[verb][1]
        for kill in range(1, kills + 1):
            at = draw.randint(1, self.calls[verb])
            end = forked(lambda at=at: self._killed(verb, at), seconds=60)
            finding = None
            if end not in ("killed by SIGKILL", "exit 0"):
                finding = f"call {at}: {end}"
            elif kill == kills:
                finding = self.after(verb)
            elif (found := forked(tell)) not in self.versions[verb]:
                finding = f"neither the old output nor the new one: {found}"
            yield "killed" if "SIGKILL" in end else "done", finding and f"kill {kill}, call {at}: {finding}"
            if finding is not None:
                self.after(verb)
                return

    def _killed(self, verb: str, left: int) -> str:
        def count(*_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        code, said = silent(self.verbs[verb][0](str(self.new)))
        return f"exit {code} {said}".strip()
