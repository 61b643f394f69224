"""`ulfast separability`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, Picture, verb
from .completion import Known


@verb("separability")
@click.option(
    "--data",
    type=Known("data"),
    metavar="PATH|NAME",
    help="Clean training images (default: the sample in the package).",
)
@click.option("--poisoned", metavar="PATH", help="The same images poisoned; the difference is classified.")
@click.option(
    "--method",
    "-m",
    "methods",
    type=Known("poisons"),
    multiple=True,
    help="A poison to test; may be given several times (default: all).",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Class-balanced subset of N images.")
@click.option(
    "--resize", type=click.IntRange(8), metavar="S", help="Resize the shorter side to S px and take the centre square."
)
@click.option(
    "--steps", type=click.IntRange(1), default=500, show_default=True, help="Steps of LBFGS, each of 20 evaluations."
)
@click.option("--hidden", type=click.IntRange(0), default=0, show_default=True, help="Hidden tanh layers of width 30.")
@click.option("--out", "-o", type=Picture(), help="Draw the curves into this PNG.")
def command(
    output: Output,
    data: str | None,
    poisoned: str | None,
    methods: tuple[str, ...],
    limit: int | None,
    resize: int | None,
    steps: int,
    hidden: int,
    out: Path | None,
    seed: int,
    device: str,
) -> None:
    """Measure the train accuracy of logistic regression on perturbations alone, and on the clean images for comparison.

    \b
    ulfast separability
    ulfast separability --data cifar10 --limit 10000 --method lsp --method ar --out curves.png
    ulfast separability --data cifar10 --poisoned poisoned/
    """
    from rich import box
    from rich.table import Table

    from ..analysis.separability import Separability, separability
    from ..data import load_dataset
    from ..data.classes import aligned
    from ..data.load import load_named
    from ..data.tensors import as_tensor
    from ..poisons import POISONS, get_poison, perturbation, poison
    from ..report import pictures
    from ..runtime.devices import resolve_device

    if poisoned is not None and methods:
        raise InputError("--poisoned and --method both choose the perturbations: give one of them")
    names = [get_poison(name)[0] for name in methods] or [
        name for name, plain in POISONS.items() if name != "file" and not plain.trains
    ]
    where = resolve_device(device)
    if data is not None:
        clean = load_dataset(data, limit=limit, seed=seed, resize=resize, progress=output.bars)
    elif resize is not None:
        raise InputError("--resize needs --data")
    else:
        clean = load_named("sample", limit=limit, seed=seed)
    labels, values = as_tensor(clean.labels), clean.images[0].size
    if len(clean) < 5 * values:
        output.remark(
            f"{len(clean):,} images of {values:,} values: a linear model separates any noise if there are few images;"
            f" use {5 * values:,} or more"
        )
    options = {"steps": steps, "hidden": hidden, "seed": seed, "device": where, "progress": output.bars}
    results: dict[str, Separability] = {
        "clean images": separability(as_tensor(clean.images), labels, **options),  # type: ignore[arg-type]
    }
    if poisoned is not None:
        given = load_dataset(poisoned, limit=limit, seed=seed, resize=resize, progress=output.bars)
        given = aligned(clean, given, names=(f"the images of {clean.name}", f"those of {poisoned}"))
        label = given.manifest.get("method") or Path(poisoned).name
        results[label] = separability(perturbation(clean, given), labels, **options)  # type: ignore[arg-type]
    else:
        for name in names:
            delta = perturbation(clean, poison(clean, name, seed=seed))
            results[name] = separability(delta, labels, **options)  # type: ignore[arg-type]
    output.result(
        {
            "data": clean.name,
            "images": len(clean),
            "steps": steps,
            "hidden": hidden,
            "seed": seed,
            "results": {name: r.to_dict() for name, r in results.items()},
        }
    )
    kind = f"{hidden} hidden layer{'s' * (hidden > 1)}" if hidden else "logistic regression"
    table = Table(title=f"{kind} on perturbations, {len(clean):,} images of {clean.name}", box=box.SIMPLE_HEAD)
    table.add_column("perturbations of")
    table.add_column("train accuracy", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("steps", justify="right")
    for name, r in results.items():
        ended = f"{r.steps}, converged" if r.converged else str(r.steps)
        table.add_row(name, f"{100 * r.accuracy:.1f} %", f"{r.loss:.3f}", ended)
    output.show(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(
            pictures.lines_figure(
                {name: [(row["evaluation"], 100 * row["accuracy"]) for row in r.curve] for name, r in results.items()},
                "evaluation",
                "train accuracy, %",
                f"{kind} on perturbations",
            ),
            out,
        )
        output.say(f"picture: {out}")
