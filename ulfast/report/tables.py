"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..attacks.result import AttackResult
    from ..grids.run import Average, GridResult
    from ..profiling.measure import Timing


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
        box=box.SIMPLE_HEAD,
    )
    table.add_column("trained on")
    table.add_column("test accuracy", justify="right")
    table.add_column("train accuracy", justify="right")
    names = {"clean": "clean images", "poisoned": f"poisoned images{f' ({result.poison})' if result.poison else ''}"}
    for key, name in names.items():
        if key in result.baselines:
            table.add_row(name, percent(result.baselines[key]), percent(_train_accuracy(result, key)))
    label = {"none": "the data as it is"}.get(result.method, f"poisoned images, {result.method}")
    table.add_row(label, percent(result.test_accuracy), percent(result.train_accuracy), style="bold")
    if "poisoned_test_accuracy" in result.notes:
        table.add_row("  the same on poisoned test images", percent(result.notes["poisoned_test_accuracy"]), "")
    return table


def _train_accuracy(result: AttackResult, key: str) -> float | None:
    rows = result.baseline_history.get(key)
    return rows[-1]["train_accuracy"] if rows else None


def accuracy(row: Average | None) -> str:
    """A cell of a grid as "61.7" or "61.7 ± 0.4"."""
    if row is None:
        return "-"
    spread = f" ± {100 * row.std:.1f}" if row.std is not None else ""
    return f"{100 * row.mean:.1f}{spread}"


def grid_table(result: GridResult, model: str) -> Table:
    """Poisons x attacks, test accuracy in percent."""
    from rich import box
    from rich.table import Table

    grid = result.grid
    size = f", {grid.limit:,} images" if grid.limit else ""
    seeds = f", {len(grid.seeds)} seeds" if len(grid.seeds) > 1 else ""
    table = Table(
        title=f"{grid.name}: test accuracy in %, {model}{size}, recipe {grid.recipe}{seeds}",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("poison")
    for attack in grid.attacks:
        table.add_column(attack.label, justify="right")
    for poison in grid.poisons:
        cells = [accuracy(result.row(poison.label, attack.label, model)) for attack in grid.attacks]
        table.add_row(poison.label, *cells)
    return table


def profile_table(rows: list[Timing]) -> Table:
    """Kernels against their peers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("case", no_wrap=True)
    for column in ("ms", "±", "GB/s", "GFLOP/s", "of roof", "best peer, ms", "x best", "x plain", "error", "plain's"):
        table.add_column(column, justify="right")
    for row in rows:
        low, high = row.spread[row.ours]
        errors = ["", ""] if row.error is None else [f"{e:.0e}" if e == e else "" for e in row.error]
        share = "" if row.x_roof is None else f"{100 / row.x_roof:.0f} %"
        table.add_row(
            row.case,
            f"{1e3 * row.seconds[row.ours]:.2f}",
            f"{500 * (high - low):.2f}",
            f"{row.gb_per_s:.1f}",
            f"{row.gflop_per_s:.0f}",
            share,
            f"{1e3 * row.seconds[row.best_peer]:.2f} {row.best_peer}",
            f"{row.x_best:.1f}",
            f"{row.x_plain:.1f}",
            *errors,
        )
    return table
