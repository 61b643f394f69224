"""`ulfast report`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, verb


@verb("report", seed=False, device=False)
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    help="The page, FILE.html (default: report.html in the first folder).",
)
@click.option("--title", default="Learning from unlearnable images", show_default=True, help="Title of the page.")
@click.option("--markdown", "kind", flag_value="markdown", help="Print the tables as Markdown instead.")
@click.option("--csv", "kind", flag_value="csv", help="Print CSV instead, one line per training.")
@click.option("--latex", "kind", flag_value="latex", help="Print LaTeX tables instead.")
def command(output: Output, runs: tuple[Path, ...], out: Path | None, title: str, kind: str | None) -> None:
    """Show runs of `attack` and `reproduce` as one self-contained page.

    \b
    ulfast report runs/demo --out demo.html
    ulfast report runs/lsp-orthogonal runs/lsp-none --markdown
    """
    from ..report import page, text
    from ..report.collect import collect
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
    page.write(tables, target, title)
    output.result({"out": str(target), "verdicts": verdicts})
    for v in verdicts:
        output.say(f"{v['poison']}: {v['verdict']}")
    output.say(f"page: {target}")
