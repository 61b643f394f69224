"""`ulfast report`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, verb
from .completion import Known


@verb("report", seed=False, where="Where to compute what the networks see.")
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="The page, FILE.html (default: report.html in the first folder).",
)
@click.option("--title", default="Learning from unlearnable images", show_default=True, help="Title of the page.")
@click.option(
    "--features",
    type=click.Choice(["pca", "tsne", "none"]),
    default="pca",
    show_default=True,
    help="Show the features of test images in each network's last layer, in two dimensions (tsne: needs scikit-learn).",
)
@click.option(
    "--saliency/--no-saliency", default=True, show_default=True, help="Show which pixels each network looks at."
)
@click.option(
    "--test",
    "test_name",
    type=Known("data"),
    metavar="PATH|NAME",
    help="Clean test images for --features (default: those of the sample, for runs that were tested on them).",
)
@click.option("--markdown", "kind", flag_value="markdown", help="Print the tables as Markdown instead.")
@click.option("--csv", "kind", flag_value="csv", help="Print CSV instead, one line per training.")
@click.option("--latex", "kind", flag_value="latex", help="Print LaTeX tables instead.")
def command(
    output: Output,
    runs: tuple[Path, ...],
    out: Path | None,
    title: str,
    features: str,
    saliency: bool,
    test_name: str | None,
    kind: str | None,
    device: str,
) -> None:
    """Show runs of `attack` and `reproduce` as one self-contained page.

    \b
    ulfast report runs/demo --out demo.html
    ulfast report runs/lsp-orthogonal runs/lsp-none --markdown
    ulfast report runs/cifar --test cifar10 --features tsne
    """
    from ..data import load_dataset
    from ..report import page, text
    from ..report.collect import collect
    from ..report.networks import Inspection
    from ..runtime.devices import resolve_device
    from ..runtime.made import check_replace

    tables = collect(runs)
    verdicts = [
        {
            "table": t.title,
            "poison": v.poison,
            "none": v.none,
            "clean": v.clean,
            "attacks": v.attacks,
            "verdict": v.sentence(),
        }
        for t in tables
        for v in t.verdicts()
    ]
    if kind is not None:
        if out is not None:
            raise InputError(f"--{kind} prints to the terminal, --out is for the page: give one of them")
        content = {"markdown": text.markdown, "csv": text.as_csv, "latex": text.latex}[kind](tables)
        output.result({"format": kind, "text": content, "verdicts": verdicts})
        output.say(content.rstrip("\n"))
        return
    target = out or runs[0] / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {target} must end in .html")
    check_replace(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    resolve_device(device)
    test = load_dataset(test_name, split="test", progress=output.bars) if test_name else None
    asked = Inspection(test, features, saliency, device, output.bars)
    page.write(tables, target, title, asked)
    for reason in dict.fromkeys(asked.left_out):
        output.say(f"left out: {reason}")
    output.result({"out": str(target), "verdicts": verdicts})
    for v in verdicts:
        output.say(f"{v['poison']}: {v['verdict']}")
    output.say(f"page: {target}")
