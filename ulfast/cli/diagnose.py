"""`ulfast diagnose`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, Picture, verb
from .completion import Known


@verb("diagnose", device=False)
@click.argument("data", type=Known("data"), required=False, metavar="PATH|NAME")
@click.option(
    "--format", "format_", type=Known("formats"), metavar="KIND", help="Read the data as this kind (see `ulfast ls`)."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Class-balanced subset of N images.")
@click.option(
    "--resize", type=click.IntRange(8), metavar="S", help="Resize the shorter side to S px and take the centre square."
)
@click.option("--out", "-o", type=Picture(), help="Draw what looks suspicious into this PNG.")
def command(
    output: Output,
    data: str | None,
    format_: str | None,
    limit: int | None,
    resize: int | None,
    out: Path | None,
    seed: int,
) -> None:
    """Tell whether a data set is poisoned, how, and which attack to try. No clean image is needed.

    \b
    ulfast diagnose poisoned/
    ulfast diagnose my_photos/ --resize 64 --out suspicion.png
    """
    from ..analysis import diagnose
    from ..data import load_dataset
    from ..report import pictures

    if data is None:
        raise InputError("which images? Give a path or a name: ulfast diagnose PATH")
    train = load_dataset(data, format=format_, limit=limit, seed=seed, resize=resize, progress=output.bars)
    found = diagnose(train, seed=seed, progress=output.bars)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.diagnosis_figure(found, train, seed), out)
    output.result({**found.to_dict(), "data": str(data), "images": len(train), "figure": str(out) if out else None})
    verdicts = {"poisoned": "poisoned", "clean": "looks clean", "unknown": "unknown"}
    output.say(f"{train.name}, {len(train):,} images: {verdicts[found.verdict]}")
    for e in found.evidence:
        above = "no sign by itself" if e.poisoned_from is None else f"poisoned from {e.poisoned_from:.3g}"
        output.say(f"  {e.name:<15} {e.value:7.3f}   {e.finding:<9} clean below {e.clean_below:.3g}, {above}: {e.text}")
    if found.verdict == "clean":
        output.say("nothing to attack; a poison made with a network may leave none of these traces")
    elif found.doubt:
        output.say(f"{found.doubt}; a projection would remove that too")
    else:
        output.say(f"try: ulfast attack --data {data} --method {found.suggested_attack}")
    if out is not None:
        output.say(f"picture: {out}")
