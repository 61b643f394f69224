"""`ulfast reproduce`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, verb
from .completion import Known


@verb("reproduce", seed=False)
@click.argument("grid", type=Known("grids"), required=False)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the grid (default: runs/NAME).")
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Trainings at a time, each in a process with its share of the threads.",
)
@click.option("--overwrite", is_flag=True, help="Repeat trainings that were made with other settings.")
@click.option("--list", "list_", is_flag=True, help="List the grids that come with the package.")
@click.option("--dry-run", is_flag=True, help="Check everything, list the trainings, train nothing.")
def command(
    output: Output,
    grid: str | None,
    out: Path | None,
    jobs: int,
    overwrite: bool,
    list_: bool,
    dry_run: bool,
    device: str,
) -> None:
    """Train poisons x attacks x models x seeds and print the table. Run again, it trains only what is missing.

    \b
    ulfast reproduce demo
    ulfast reproduce cifar10-10k --jobs 2 --out runs/mine
    ulfast reproduce my_grid.yaml --dry-run
    """
    from ..grids.grid import SHIPPED, Grid, shipped_grids
    from ..grids.run import reproduce
    from ..report import tables

    if list_:
        output.result({"grids": {name: str(SHIPPED / f"{name}.yaml") for name in shipped_grids()}})
        for name in shipped_grids():
            comment = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            output.say(f"{name:<12}  {comment}")
        return
    if grid is None:
        raise InputError("which grid? Give a YAML file or a name (see `ulfast reproduce --list`)")
    asked = Grid.load(grid)
    folder = out or Path("runs") / asked.name
    if dry_run:
        cells = [cell.path for cell in asked.cells()]
        output.result({"name": asked.name, "cells": cells, "out": str(folder), "dry_run": True})
        for cell in cells:
            done = (folder / cell / "result.json").is_file()
            output.say(f"{'done' if done else 'to do'}  {folder / cell}")
        return
    output.claim(folder)
    output.resumes((folder / "grid.json").is_file, "the same command")
    result = reproduce(asked, folder, jobs=jobs, device=device, overwrite=overwrite, progress=output.bars)
    output.result(result.to_dict())
    for model in asked.models:
        output.show(tables.grid_table(result, model))
    output.say(f"results: {folder / 'summary.json'}; as a page: ulfast report {folder}")
    if result.failed:
        where, problem = next(iter(result.failed.items()))
        raise InputError(f"{len(result.failed)} of {len(asked.cells())} cells could not be run; {where}: {problem}")
