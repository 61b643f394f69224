"""`ulfast data get|info|import|export|convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import Output, noted, reading_options, tell_notes, verb
from .completion import Known


@click.group("data")
def command() -> None:
    """Get, inspect, import, export and convert data sets."""


@verb("get", seed=False, device=False)
@click.argument("name", type=Known("data"))
@click.option("--cache", type=click.Path(path_type=Path), help="Folder (default: ULFAST_CACHE or ~/.cache/ulfast).")
def get(output: Output, name: str, cache: Path | None) -> None:
    """Download a data set ahead of time: cifar10, cifar100 or svhn.

    \b
    ulfast data get cifar10
    """
    from ..data import fetch, load_dataset

    folder = fetch(name, cache=cache, progress=output.bars)
    splits = {split: len(load_dataset(folder or name, split=split)) for split in ("train", "test")}
    output.result({"name": name, "folder": str(folder) if folder else None, "images": splits})
    where = folder or "in the package"
    output.say(f"{name}: {splits['train']:,} training and {splits['test']:,} test images, {where}")


@verb("info", device=False)
@click.argument("data", type=Known("data"), metavar="PATH|NAME")
@click.option(
    "--format", "format_", type=Known("formats"), metavar="KIND", help="Read the data as this kind (see `ulfast ls`)."
)
@reading_options
@click.option("--quick", is_flag=True, help="Do not look for poison.")
def info(output: Output, data: str, format_: str | None, quick: bool, seed: int, reading: dict[str, Any]) -> None:
    """Print what a data set is: images, classes, checksum, where it came from, and whether it looks poisoned.

    \b
    ulfast data info poisoned/
    ulfast data info cifar10 --quick
    """
    from ..analysis.describe import describe

    found = describe(data, format=format_, look_for_poison=not quick, seed=seed, progress=output.bars, **reading)
    output.result(found)
    for split, about in found["splits"].items():
        height, width, channels = about["image_shape"]
        output.say(
            f"{split}: {about['images']:,} images of {height} x {width} x {channels}, {about['dtype']},"
            f" {len(about['classes'])} classes"
        )
        counts = about["classes"]
        least, most = min(counts.values()), max(counts.values())
        if least == most:
            output.say(f"  {most:,} of each class: {', '.join(list(counts)[:10])}{' ...' if len(counts) > 10 else ''}")
        else:
            for name, count in list(counts.items())[:20]:
                output.say(f"  {count:>8,}  {name}")
            if len(counts) > 20:
                output.say(f"  ... {len(counts) - 20} more, from {least:,} to {most:,} images")
        mean, std = (", ".join(f"{v:.3f}" for v in about[key]) for key in ("mean", "std"))
        output.say(f"  mean {mean}; standard deviation {std}")
        output.say(f"  sha256 {about['sha256']}")
        if about["notes"]:
            output.say(f"  found on the way: {noted(about['notes'])}")
        if about["manifest"]:
            made = about["manifest"]
            parameters = ", ".join(f"{k} {v}" for k, v in (made.get("parameters") or {}).items() if v is not None)
            output.say(
                f"  made by {made.get('method')} ({parameters}), seed {made.get('seed')},"
                f" rate {made.get('rate', 1)}, from {(made.get('source') or {}).get('name')}"
            )
    for warning in found["warnings"]:
        output.say(f"warning: {warning}")


@verb("import", seed=False, device=False)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=Known("data"),
    required=True,
    metavar="PATH|NAME",
    help="The clean images it was made for: order and labels.",
)
@click.option(
    "--layout",
    default="auto",
    show_default=True,
    help="png-index, perturbation-pt, images-pt, int8-pickle, lsp-npy, ntga-npy or npy.",
)
@click.option(
    "--rounding",
    type=click.Choice(["truncate", "nearest"]),
    default="truncate",
    show_default=True,
    help="Of floats to pixels; the published loaders truncate.",
)
@click.option("--name", help="Of the poison, for tables (default: the file's).")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def import_(
    output: Output,
    source: Path,
    base: str,
    layout: str,
    rounding: str,
    name: str | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Make a data set of a published poison: its files follow a clean data set, which supplies the labels.

    Nothing in the files is run. Count, order, range and size are checked against the base. NTGA's images may have an
    order and labels of their own: then the base gives the names of the classes alone.

    \b
    ulfast data import TAP/ --base cifar10 --out tap/
    ulfast data import perturbation.pt --base cifar10 --name em --out em/
    """
    from ..data import write_dataset
    from ..data.load import load_splits
    from ..poisons.imported import import_published
    from ..runtime.files import check_free
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out FOLDER")
    check_apart(out, (source, base))
    check_free(out, overwrite)
    output.claim(out)
    clean, test = load_splits(base, progress=output.bars)
    poisoned = import_published(source, clean, layout=layout, rounding=rounding, name=name, progress=output.bars)
    write_dataset(out, poisoned, test, overwrite=overwrite)
    made = poisoned.manifest
    output.result({"out": str(out), **made})
    size = made["statistics"]
    what = "{layout}, {kind} per {per}".format(**made["parameters"])
    output.say(f"{len(poisoned):,} images of {made['method']} ({what}): {out}")
    if not size["images"]:
        output.say("in an order of their own: what was changed in them cannot be told")
        return
    psnr = f", PSNR {size['psnr_db']:.1f} dB" if size["psnr_db"] else ""
    output.say(f"L2 {size['l2_mean']:.3f}, L-infinity {255 * size['linf_max']:.0f}/255{psnr}")


@verb("export", seed=False, device=False)
@click.argument("data", type=Known("data"), metavar="PATH|NAME")
@click.option(
    "--layout", default="png-index", show_default=True, help="png-index, imagefolder, npz, beton, perturbation-pt."
)
@click.option("--base", type=Known("data"), metavar="PATH|NAME", help="The clean images, which perturbation-pt needs.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder or file to make.")
@click.option("--format", "format_", metavar="KIND", help="Read the data as this kind (see `ulfast ls`).")
@reading_options
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def export(
    output: Output,
    data: str,
    layout: str,
    base: str | None,
    out: Path | None,
    format_: str | None,
    overwrite: bool,
    reading: dict[str, Any],
) -> None:
    """Write a data set as other people's training code reads it.

    \b
    ulfast data export poisoned/ --layout imagefolder --out folders/
    ulfast data export poisoned/ --layout perturbation-pt --base cifar10 --out perturbation.pt
    """
    from ..data import load_dataset
    from ..data.export import export_dataset
    from ..data.load import load_splits
    from ..runtime.files import check_free
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out")
    check_apart(out, (data, base))
    if layout in ("imagefolder", "png-index"):
        check_free(out, overwrite)  # before the work
    output.claim(out)
    options: dict[str, Any] = {"format": format_, "progress": output.bars, **reading}
    if layout in ("imagefolder", "npz", "beton"):
        train, test = load_splits(data, **options)
    else:
        train, test = load_dataset(data, **options), None
    clean = load_dataset(base, progress=output.bars) if base is not None else None
    tell_notes(output, train, test)
    export_dataset(train, out, layout, test=test, base=clean, overwrite=overwrite, progress=output.bars)
    output.result({"out": str(out), "layout": layout, "images": len(train), "test_images": len(test) if test else 0})
    output.say(f"{len(train):,} images as {layout}: {out}")


@verb("convert", device=False, processes=True)
@click.argument("data", type=Known("data"), metavar="PATH|NAME")
@click.option(
    "--to",
    type=click.Choice(["beton", "ulfast"]),
    default="beton",
    show_default=True,
    help="FFCV's .beton, or ulfast's folder of memory-mapped arrays.",
)
@click.option(
    "--format", "format_", type=Known("formats"), metavar="KIND", help="Read the data as this kind (see `ulfast ls`)."
)
@reading_options
@click.option(
    "--mode",
    type=click.Choice(["raw", "jpeg", "mixed"]),
    default="raw",
    show_default=True,
    help="How .beton holds images.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="Of the JPEG.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Of the images that --mode mixed makes JPEG.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="FILE.beton, or the folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def convert(
    output: Output,
    data: str,
    to: str,
    format_: str | None,
    mode: str,
    quality: int,
    share: float,
    out: Path | None,
    overwrite: bool,
    seed: int,
    reading: dict[str, Any],
) -> None:
    """Bring a data set of any size into a form that loads quickly; test images go to FILE.test.beton.

    Images of large folders are read as they are written. Interrupted, the same command resumes where it was.

    \b
    ulfast data convert imagenet/ --resize 224 --mode jpeg --quality 90 --out imagenet.beton
    ulfast data convert cifar10 --out cifar10.beton
    """
    from .. import distributed
    from ..data.beton import write_beton
    from ..data.load import load_splits
    from ..data.readers.beton import test_file
    from ..data.writers.resumable import write_resumable
    from ..runtime.files import SETTINGS, part_folder
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out")
    if to == "beton" and distributed.size() > 1:
        raise InputError("a .beton file is written in order, by one process with a thread per core: leave --nproc out")
    check_apart(out, (data,))
    output.claim(out)
    left = [part_folder(out) / SETTINGS, out.with_name(f"{out.name}.part.journal"), out]
    output.resumes(lambda: any(one.exists() for one in left), "the same command")
    with distributed.main_first():  # which downloads it
        train, test = load_splits(data, format=format_, progress=output.bars, **reading)
    tell_notes(output, train, test)
    if to == "ulfast":
        write_resumable(out, train, test, overwrite=overwrite, progress=output.bars)
    else:
        for file, dataset in ((out, train), (test_file(out), test)):
            if dataset is not None:
                write_beton(
                    file,
                    dataset,
                    mode=mode,
                    quality=quality,
                    share=share,
                    seed=seed,
                    resume=True,
                    overwrite=overwrite,
                    progress=output.bars,
                )
    output.result({"out": str(out), "to": to, "images": len(train), "test_images": len(test) if test else 0})
    output.say(f"{len(train):,} training and {len(test) if test else 0:,} test images: {out}")


for _verb in (get, info, import_, export, convert):
    command.add_command(_verb)
