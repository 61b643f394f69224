"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..attacks.result import AttackResult


def percent(share: float | None) -> str:
    """0.617 as "61.7 %"."""
    return "" if share is None else f"{100 * share:.1f} %"


def attack_table(result: AttackResult) -> Table:
    """Test accuracy of the same network trained on clean images, on poisoned ones, and by the attack."""
    from rich import box
    from rich.table import Table

    data = result.config["data"]
    table = Table(
        title=f"{result.model}, {data['images']:,} images of {data['name'] or 'the data set'}, recipe {result.recipe}",
        box=box.SIMPLE_HEAD, title_justify="left", title_style="bold",
    )  # fmt: skip
    table.add_column("trained on")
    table.add_column("test accuracy", justify="right")
    table.add_column("train accuracy", justify="right")
    names = {"clean": "clean images", "poisoned": f"poisoned images{f' ({result.poison})' if result.poison else ''}"}
    for key, name in names.items():
        if key in result.baselines:
            table.add_row(name, percent(result.baselines[key]), percent(_train_accuracy(result, key)))
    label = {"none": "the data as it is"}.get(result.method, f"poisoned images, {result.method}")
    table.add_row(label, percent(result.test_accuracy), percent(result.train_accuracy), style="bold")
    return table


def _train_accuracy(result: AttackResult, key: str) -> float | None:
    rows = result.baseline_history.get(key)
    return rows[-1]["train_accuracy"] if rows else None
