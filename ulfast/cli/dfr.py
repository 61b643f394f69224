"""`ulfast dfr`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, Picture, verb
from .completion import Known


@verb("dfr")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--clean",
    type=Known("data"),
    metavar="PATH|NAME",
    help="Clean images: the last layer is refitted to the training images, and the test images are classified.",
)
@click.option(
    "--clean-images",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="Class-balanced subset of the clean training images.",
)
@click.option(
    "--augment/--plain",
    default=True,
    show_default=True,
    help="Refit on crops and flips redrawn in each pass, from the trained layer, batch normalisation in training"
    " mode (published), or on the unchanged images, from zero.",
)
@click.option("--out", "-o", type=Picture(), help="Draw the curves into this PNG.")
def command(
    output: Output,
    run: Path | None,
    clean: str | None,
    clean_images: int,
    augment: bool,
    out: Path | None,
    seed: int,
    device: str,
) -> None:
    """Deep feature reweighting: test accuracy of every epoch of a run before and after its last layer is refitted to
    clean images, compared with the random network with which the run began.

    \b
    ulfast attack --method none --keep-checkpoints --out runs/lsp
    ulfast dfr runs/lsp --clean-images 500 --out dfr.png
    """
    from rich import box
    from rich.table import Table

    from ..attacks.checkpoints import Run, dfr
    from ..data import load_dataset
    from ..data.load import load_named
    from ..report import pictures

    if run is None:
        raise InputError("which run? Give the --out folder of `ulfast attack --keep-checkpoints`")
    test = load_dataset(clean, split="test", progress=output.bars) if clean else load_named("sample", split="test")
    opened = Run.open(run, test, device)
    opened.checkpoints()
    if clean:
        train = load_dataset(clean, limit=clean_images, seed=seed, progress=output.bars)
    else:
        train = load_named("sample", limit=clean_images, seed=seed)
    rows = dfr(opened, train, augment=augment, seed=seed, progress=output.bars)
    facts = {"run": str(run), "poison": opened.result.poison, "clean_images": len(train), "augment": augment}
    output.result({**facts, "rows": rows})
    what = f"{opened.result.model} on {opened.result.poison or 'the data'}"
    table = Table(title=f"{run}: {what}, last layer refitted to {len(train):,} clean images", box=box.SIMPLE_HEAD)
    for column in ("epoch", "test accuracy", "refitted"):
        table.add_column(column, justify="right")
    for row in rows:
        name = "random" if row["epoch"] == 0 else str(row["epoch"])
        table.add_row(name, f"{100 * row['before']:.1f} %", f"{100 * row['after']:.1f} %")
    output.show(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        random = 100 * rows[0]["after"]
        lines = {
            "as trained": [(row["epoch"], 100 * row["before"]) for row in rows],
            "last layer refitted": [(row["epoch"], 100 * row["after"]) for row in rows],
            "random network, refitted": [(row["epoch"], random) for row in rows],
        }
        pictures.save(pictures.lines_figure(lines, "epoch", "test accuracy, %", "features of a poisoned network"), out)
        output.say(f"picture: {out}")
