"""Results from any number of runs and grids, as one table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..attacks import AttackResult
from ..data.catalog import NAMES
from ..errors import InputError
from ..grids.literature import PUBLISHED
from ..grids.run import GridResult

CLEAN, NONE = "clean", "none"
# A poison that takes less than this share of accuracy from a network does not poison it; above UNDONE of what it takes
# an attack has undone it, below SURVIVES it has not.
HARMLESS, UNDONE, SURVIVES = 0.05, 0.8, 0.4
NOT_PUBLISHED: tuple[dict[str, dict[str, float]], str] = ({}, "")


@dataclass(frozen=True)
class Entry:
    """One training. `result` is that of the run it belongs to; `stage` says which training of it."""

    poison: str
    attack: str
    model: str
    seed: int
    accuracy: float
    result: AttackResult
    folder: Path
    stage: str = "attack"

    @property
    def history(self) -> list[dict[str, float]]:
        """A row per epoch."""
        return self.result.history if self.stage == "attack" else self.result.baseline_history[self.stage]

    @property
    def key(self) -> str:
        """Of its place in a page."""
        text = f"{self.poison}-{self.attack}-{self.model}-{self.seed}-{self.stage}"
        return "cell-" + "".join(c if c.isalnum() else "-" for c in text.lower())


@dataclass(frozen=True)
class Value:
    """Mean and spread over seeds, from 0 to 1."""

    mean: float
    std: float | None
    entries: tuple[Entry, ...]


@dataclass
class Table:
    """Poisons x attacks for one model on one data set."""

    title: str
    model: str
    poisons: list[str]
    attacks: list[str]
    values: dict[tuple[str, str], Value]
    published: dict[str, dict[str, float]] = field(default_factory=dict)  # percent
    published_source: str = ""

    def clean(self) -> float | None:
        """Accuracy of the network trained on clean images without an attack."""
        value = self.values.get((CLEAN, NONE))
        return value.mean if value else None

    def verdicts(self) -> list[Verdict]:
        """One for each poison that was trained on without an attack."""
        return [
            Verdict(
                poison,
                self.values[poison, NONE].mean,
                self.clean(),
                {a: self.values[poison, a].mean for a in self.attacks if a != NONE and (poison, a) in self.values},
            )
            for poison in self.poisons
            if poison != CLEAN and (poison, NONE) in self.values
        ]


@dataclass(frozen=True)
class Verdict:
    """Whether a poison survives the attacks that were tried on it. Accuracies from 0 to 1."""

    poison: str
    none: float
    clean: float | None
    attacks: dict[str, float]

    def undone(self, attack: str) -> float | None:
        """Share of the lost accuracy that an attack brings back; None where nothing was lost, or it is not known."""
        if self.clean is None or self.clean - self.none < HARMLESS:
            return None
        return (self.attacks[attack] - self.none) / (self.clean - self.none)

    def sentence(self) -> str:
        """In words."""
        if self.clean is None:
            best = max(self.attacks, key=self.attacks.__getitem__, default=None)
            more = f"; {best} brings it to {_percent(self.attacks[best])}" if best else ""
            return (
                f"{_percent(self.none)} without an attack{more}. Without a training on clean images it"
                " is not known how much of the loss that is."
            )
        if self.clean - self.none < HARMLESS:
            return (
                f"{_percent(self.none)} without an attack, {_percent(self.clean)} on clean images: it does not"
                " poison this network."
            )
        start = f"{_percent(self.none)} instead of {_percent(self.clean)}."
        if not self.attacks:
            return f"{start} No attack was tried."
        shares = {attack: self.undone(attack) or 0.0 for attack in self.attacks}
        best = max(shares, key=shares.__getitem__)
        first = "orthogonal" if "orthogonal" in shares else best
        parts = [
            f"{first} undoes {_share(shares[first])} of the loss ({_percent(self.attacks[first])}):"
            f" {_outcome(shares[first], first)}."
        ]
        if best != first and shares[best] > shares[first] + 0.02:
            parts.append(f"The best of those tried is {best}: {_share(shares[best])} ({_percent(self.attacks[best])}).")
        return " ".join([start, *parts])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%"


def _share(share: float) -> str:
    return "nothing" if share < 0.005 else f"{100 * min(share, 1.0):.0f}\u00a0%"


def _outcome(share: float, attack: str) -> str:
    if share >= UNDONE:
        return f"it does not survive {attack}"
    return f"it survives {attack}" if share < SURVIVES else f"it partly survives {attack}"


def collect(paths: Sequence[str | os.PathLike[str]]) -> list[Table]:
    """Reads runs of `ulfast attack` and grids of `ulfast reproduce`; one table per model and data set.

    Raises:
        InputError: a path that is neither, or nothing finished in any of them.
    """
    if not paths:
        raise InputError("which runs? Give folders of `ulfast attack` or `ulfast reproduce`")
    tables: dict[tuple[str, str], Table] = {}
    entries: dict[tuple[str, str], list[Entry]] = {}
    for path in map(Path, paths):
        if (path / "grid.json").is_file():
            grid = GridResult.load(path)
            found = [
                Entry(row.poison, row.attack, row.model, seed, result.test_accuracy, result, path / folder)
                for row in grid.rows
                for seed, folder in zip(row.seeds, row.folders, strict=True)
                for result in [AttackResult.load(path / folder)]
            ]
            published = PUBLISHED.get(grid.grid.published or "", NOT_PUBLISHED)
            order = [v.label for v in grid.grid.poisons], [v.label for v in grid.grid.attacks]
        else:
            found, published, order = _of_run(path), NOT_PUBLISHED, ([], [])
        for entry in found:
            data = entry.result.config["data"]
            name = f"{data['name'] or path.name}, {data['images']:,} images"
            key = (entry.model, name)
            title = f"{name}, {entry.model}, recipe {entry.result.recipe}"
            table = tables.setdefault(
                key, Table(title, entry.model, list(order[0]), list(order[1]), {}, published[0], published[1])
            )
            entries.setdefault(key, []).append(entry)
            for labels, label in ((table.poisons, entry.poison), (table.attacks, entry.attack)):
                if label not in labels:
                    labels.append(label)
    if not tables:
        raise InputError(f"nothing is finished in {', '.join(map(str, paths))}: run the command again, it resumes")
    for key, table in tables.items():
        _fill(table, entries[key])
    return list(tables.values())


def _of_run(path: Path) -> list[Entry]:
    result = AttackResult.load(path)
    poison = result.poison or (CLEAN if result.config["data"]["name"] in NAMES else "as given")
    found = [Entry(poison, result.method, result.model, result.seed, result.test_accuracy, result, path)]
    for stage, accuracy in result.baselines.items():
        label = CLEAN if stage == "clean" else poison
        found.append(Entry(label, NONE, result.model, result.seed, accuracy, result, path, stage))
    return found


def _fill(table: Table, entries: list[Entry]) -> None:
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        group = groups.setdefault((entry.poison, entry.attack), [])
        # Every run brings the same baseline: keep it once.
        if not any((e.seed, e.accuracy) == (entry.seed, entry.accuracy) for e in group):
            group.append(entry)
    for key, group in groups.items():
        accuracies = [e.accuracy for e in group]
        spread = statistics.stdev(accuracies) if len(group) > 1 else None
        table.values[key] = Value(statistics.fmean(accuracies), spread, tuple(group))
    table.poisons.sort(key=lambda p: (p != CLEAN,))
    table.poisons = [p for p in table.poisons if any((p, a) in table.values for a in table.attacks)]
    table.attacks.sort(key=lambda a: (a != NONE,))
    table.attacks = [a for a in table.attacks if any((p, a) in table.values for p in table.poisons)]
