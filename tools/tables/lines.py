"""What the tables have in common: rows of Markdown, the machine, numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def rows(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *body)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def machine(about: dict[str, Any]) -> str:
    """The environment of a result, in a few words."""
    where = about.get("gpu") or f"{about['cpu']} ({about['cpu_level']}), {about['threads']} threads"
    commit = f", commit {about['commit']}" if about.get("commit") else ""
    return f"{where}, torch {about['torch']}, ulfast {about['ulfast']}{commit}"


def machines(environments: Iterable[dict[str, Any]]) -> str:
    """The environments of a result, those that differ only in the commit as one."""
    commits: dict[str, list[str]] = {}
    for about in environments:
        one = machine({**about, "commit": None})
        commits.setdefault(one, []).extend([about["commit"]] if about.get("commit") else [])
    return "; ".join(
        f"{one}, commit{'s' * (len(found) > 1)} {', '.join(found)}" if found else one for one, found in commits.items()
    )


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


def times(ratio: float) -> str:
    return f"{ratio:,.{0 if ratio >= 100 else 1}f}"
