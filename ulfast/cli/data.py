"""`ulfast data get|info|import|export|convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import Output, noted, reading_options, tell_notes, verb
from .completion import NAMES, Known


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
@click.option(
    "--base",
    type=Known("data"),
    metavar="PATH|NAME",
    help="The clean images, to count the distinct perturbations of each class.",
)
@click.option("--quick", is_flag=True, help="Skip the search for poison.")
def info(
    output: Output,
    data: str,
    format_: str | None,
    base: str | None,
    quick: bool,
    seed: int,
    reading: dict[str, Any],
) -> None:
    """Describe a data set: images, classes, checksum, origin, and whether it looks poisoned.

    \b
    ulfast data info poisoned/
    ulfast data info cifar10 --quick
    ulfast data info poisoned/ --base cifar10
    """
    from ..analysis.describe import describe
    from ..data import load_dataset

    clean = load_dataset(base, progress=output.bars, **reading) if base is not None else None
    first = None if output.json or output.quiet else output.remark
    options: dict[str, Any] = {"look_for_poison": not quick, "seed": seed, "first": first, "progress": output.bars}
    found = describe(data, format=format_, base=clean, **options, **reading)
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
    counts = found.get("distinct_perturbations")
    if counts:
        least, most = min(counts.values()), max(counts.values())
        output.say(f"perturbations: {least} to {most} different ones in each class, of up to 16 that are told apart")
    for warning in found["warnings"]:
        output.say(f"warning: {warning}")


@verb("import", seed=False, device=False)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=Known("data"),
    metavar="PATH|NAME",
    help="The clean images for which it was made; they give order and labels (not needed if the files have labels).",
)
@click.option(
    "--layout",
    type=Known("imports"),
    default="auto",
    show_default=True,
    metavar="KIND",
    help=f"{', '.join(NAMES['imports'])}.",
)
@click.option(
    "--rounding",
    type=click.Choice(["truncate", "nearest"]),
    default="truncate",
    show_default=True,
    help="How floats become pixels; the published loaders truncate.",
)
@click.option("--scale", metavar="S", help="Bound of perturbations that are stored in [-1, 1], such as 8/255.")
@click.option("--name", help="Name of the poison in tables (default: the file's).")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def import_(
    output: Output,
    source: Path,
    base: str | None,
    layout: str,
    rounding: str,
    scale: str | None,
    name: str | None,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Make a data set from a published poison, whose files follow a clean data set that supplies the labels.

    No code in the files is run. Count, order, range and size are checked against the base. The images of NTGA, ECLIPSE,
    COIN, DUNE and AVATAR come with labels and may have their own order: they need no base, and a base then supplies
    only the class names.

    \b
    ulfast data import TAP/ --base cifar10 --out tap/
    ulfast data import perturbation.pt --base cifar10 --name em --out em/
    ulfast data import cp.pth --base cifar10 --scale 8/255 --out cp/
    """
    from ..data import write_dataset
    from ..data.load import load_splits
    from ..parameters import fraction
    from ..poisons.imported import import_published
    from ..runtime.files import check_free
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out FOLDER")
    try:
        factor = None if scale is None else fraction(scale)
    except ValueError:
        raise InputError(f"--scale {scale} is not a number: write it as 0.03 or 8/255") from None
    check_apart(out, (source, base))
    check_free(out, overwrite)
    output.claim(out)
    clean, test = load_splits(base, progress=output.bars) if base is not None else (None, None)
    poisoned = import_published(
        source,
        clean,
        layout=layout,
        rounding=rounding,
        scale=factor,
        name=name,
        progress=output.bars,
    )
    write_dataset(out, poisoned, test, overwrite=overwrite)
    made = poisoned.manifest
    output.result({"out": str(out), **made})
    size = made["statistics"]
    what = "{layout}, {kind} per {per}".format(**made["parameters"])
    output.say(f"{len(poisoned):,} images of {made['method']} ({what}): {out}")
    if not size["images"]:
        output.say("in their own order, so the perturbation is unknown")
        return
    psnr = f", PSNR {size['psnr_db']:.1f} dB" if size["psnr_db"] else ""
    output.say(f"L2 {size['l2_mean']:.3f}, L-infinity {255 * size['linf_max']:.0f}/255{psnr}")


@verb("export", seed=False, device=False)
@click.argument("data", type=Known("data"), metavar="PATH|NAME")
@click.option(
    "--layout",
    type=Known("layouts"),
    default="png-index",
    show_default=True,
    metavar="KIND",
    help=f"{', '.join(NAMES['layouts'])}.",
)
@click.option("--base", type=Known("data"), metavar="PATH|NAME", help="The clean images, which perturbation-pt needs.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder or file to write.")
@click.option(
    "--format", "format_", type=Known("formats"), metavar="KIND", help="Read the data as this kind (see `ulfast ls`)."
)
@reading_options
@click.option("--shard-size", type=click.IntRange(1), metavar="N", help="Images per file of wds and parquet.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def export(
    output: Output,
    data: str,
    layout: str,
    base: str | None,
    out: Path | None,
    format_: str | None,
    shard_size: int | None,
    overwrite: bool,
    reading: dict[str, Any],
) -> None:
    """Write a data set in a layout that other training code reads.

    \b
    ulfast data export poisoned/ --layout imagefolder --out folders/
    ulfast data export poisoned/ --layout perturbation-pt --base cifar10 --out perturbation.pt
    """
    from ..data import load_dataset
    from ..data.export import FOLDERS, WITH_TEST, export_dataset
    from ..data.load import load_splits
    from ..runtime.files import check_free
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out")
    check_apart(out, (data, base))
    if layout in FOLDERS:
        check_free(out, overwrite)  # before the work
    output.claim(out)
    options: dict[str, Any] = {"format": format_, "progress": output.bars, **reading}
    if layout in WITH_TEST:
        train, test = load_splits(data, **options)
    else:
        train, test = load_dataset(data, **options), None
    clean = load_dataset(base, progress=output.bars) if base is not None else None
    tell_notes(output, train, test)
    export_dataset(
        train,
        out,
        layout,
        test=test,
        base=clean,
        shard_size=shard_size,
        overwrite=overwrite,
        progress=output.bars,
    )
    output.result({"out": str(out), "layout": layout, "images": len(train), "test_images": len(test) if test else 0})
    output.say(f"{len(train):,} images as {layout}: {out}")


@verb("convert", device=False, processes=True)
@click.argument("data", type=Known("data"), metavar="PATH|NAME")
@click.option(
    "--to",
    type=click.Choice(["beton", "ulfast", "wds", "parquet"]),
    default="beton",
    show_default=True,
    help="FFCV's .beton, ulfast's folder of memory-mapped arrays, WebDataset shards or Parquet files of PNG images.",
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
    help="How the .beton file stores images.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the images that --mode mixed stores as JPEG.",
)
@click.option("--shard-size", type=click.IntRange(1), metavar="N", help="Images per file of wds and parquet.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="FILE.beton, or the folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
def convert(
    output: Output,
    data: str,
    to: str,
    format_: str | None,
    mode: str,
    quality: int,
    share: float,
    shard_size: int | None,
    out: Path | None,
    overwrite: bool,
    seed: int,
    reading: dict[str, Any],
) -> None:
    """Convert a data set of any size to a form that loads quickly; test images go to FILE.test.beton.

    Images of large folders are read as they are written. If interrupted, the same command resumes where it stopped.

    \b
    ulfast data convert imagenet/ --resize 224 --mode jpeg --quality 90 --out imagenet.beton
    ulfast data convert cifar10 --out cifar10.beton
    """
    from .. import distributed
    from ..data.beton import write_beton
    from ..data.export import SHARDED, splits_of
    from ..data.load import load_splits
    from ..data.readers.beton import test_file
    from ..data.writers.resumable import write_resumable
    from ..runtime.files import SETTINGS, part_folder
    from ..runtime.made import check_apart

    if out is None:
        raise InputError("where to? Give --out")
    if to != "ulfast" and distributed.size() > 1:
        raise InputError(f"--to {to} is written in order, by one process with a thread per core: leave --nproc out")
    check_apart(out, (data,))
    output.claim(out)
    left = [part_folder(out) / SETTINGS, out.with_name(f"{out.name}.part.journal"), out]
    output.resumes(lambda: any(one.exists() for one in left), "the same command")
    with distributed.main_first():  # it downloads the data
        train, test = load_splits(data, format=format_, progress=output.bars, **reading)
    tell_notes(output, train, test)
    if to == "ulfast":
        write_resumable(out, train, test, overwrite=overwrite, progress=output.bars)
    elif to in SHARDED:
        splits = splits_of(train, test)
        SHARDED[to](out, splits, size=shard_size, resume=True, overwrite=overwrite, progress=output.bars)
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
