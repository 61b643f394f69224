"""What a part of the campaign has tried, how it ended, and what it found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class End(NamedTuple):
    """How a try ended.

    Attributes:
        number: of the try.
        end: in a word or two, to be counted.
        finding: what is wrong, None where nothing is.
    """

    number: int
    end: str
    finding: str | None = None


class Part(Protocol):
    """A part of the campaign."""

    def ends(self, numbers: Iterator[int]) -> Iterator[End]:
        """Tries these numbers, in any order. How each ended follows from the part's seed and the number."""

    def close(self) -> None:
        """Leaves nothing behind that runs."""


@dataclass
class Tally:
    """Of a part."""

    tries: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def draws(seed: int, part: str, number: int) -> random.Random:
    """What a try draws from."""
    return random.Random(f"{seed} {part} {number}")
