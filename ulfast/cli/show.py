"""`ulfast show`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, Picture, verb
from .completion import Known


@verb("show", device=False)
@click.argument("data", required=False, metavar="PATH")
@click.option(
    "--clean",
    type=Known("data"),
    metavar="PATH|NAME",
    help="The same images, clean (default: those that the manifest names).",
)
@click.option("--per-class", type=click.IntRange(1, 20), default=1, show_default=True, help="Images per class.")
@click.option("--out", "-o", type=Picture(), default="show.png", show_default=True, help="PNG, SVG or PDF to write.")
def command(output: Output, data: str | None, clean: str | None, per_class: int, out: Path, seed: int) -> None:
    """Draw clean images, perturbations (rescaled) and poisoned images of each class, and print how large the
    perturbations of each class are.

    \b
    ulfast show poisoned/ --out pictures.png
    ulfast show mine/ --clean cifar10 --per-class 3
    """
    from rich import box
    from rich.table import Table

    from ..data import load_dataset
    from ..data.catalog import NAMES
    from ..data.classes import aligned
    from ..data.load import load_named
    from ..poisons.statistics import class_statistics
    from ..registry import resolve
    from ..report import pictures

    if data is None:
        raise InputError("which data set? Give a folder that `ulfast poison` made, or any two with --clean")
    poisoned = load_dataset(data, progress=output.bars)
    name = clean or (poisoned.manifest.get("source") or {}).get("name")
    if name is None or (clean is None and resolve(name, NAMES) is None):
        raise InputError(f"{data} does not say what it was made of: give the clean images with --clean")
    before = load_dataset(name, progress=output.bars) if clean else load_named(name)
    if len(before) > len(poisoned):  # made with --limit, of which only the images themselves tell
        before = before.balanced(len(poisoned), poisoned.manifest.get("seed") or 0)
    sha256 = (poisoned.manifest.get("source") or {}).get("sha256")
    before = aligned(poisoned, before, names=(f"the images of {data}", f"those of {name}"))
    if sha256 is not None and sha256 != before.checksum():
        raise InputError(f"the pixels of {name} are not what {data} was made of: give the clean images with --clean")
    method = poisoned.manifest.get("method") or Path(data).name
    rows = class_statistics(before, poisoned)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure = pictures.comparison_figure(
        before, poisoned, seed=seed, title=f"{method} on {before.name}", per_class=per_class
    )
    pictures.save(figure, out)
    output.result({"figure": str(out), "method": method, "statistics": rows})
    table = Table(title=f"{method} on {before.name}", box=box.SIMPLE_HEAD)
    table.add_column("class", no_wrap=True)
    for column in ("images", "L0, px", "L2", "L-inf, /255", "PSNR, dB", "SSIM", "clipped"):
        table.add_column(column, justify="right")
    for label, row in rows.items():
        if not row["images"]:
            continue
        psnr, ssim = row["psnr_db"], row["ssim"]
        table.add_row(
            label,
            f"{row['images']:,}",
            f"{row['l0_mean']:.0f}",
            f"{row['l2_mean']:.3f}",
            f"{255 * row['linf_max']:.0f}",
            "" if psnr is None else f"{psnr:.1f}",
            "" if ssim is None else f"{ssim:.3f}",
            f"{100 * row['clipped_share']:.1f} %",
        )
    output.show(table)
    output.say(f"picture: {out}")
