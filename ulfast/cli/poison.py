"""`ulfast poison`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import InputError
from .common import Output, Share, data_options, existing, settings, tell_notes, verb
from .completion import Known


@verb(
    "poison",
    processes=True,
    where="Where to compute. With auto, networks are trained on a GPU, and methods without a network run on the CPU.",
)
@click.option(
    "--method", "-m", type=Known("poisons"), default="lsp", show_default=True, help="A poison (see `ulfast ls`)."
)
@data_options
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
@click.option("--rate", type=float, default=1.0, show_default=True, help="Share of each class that is poisoned.")
@click.option("--classes", metavar="3,5|NAME,...", help="Poison only these classes.")
@click.option(
    "--labels",
    metavar="kmeans:K|FILE",
    help="What drives the perturbation instead of the labels: clusters, or a number for each image from a file.",
)
@click.option(
    "--assign",
    type=click.Choice(["class", "random"]),
    default="class",
    show_default=True,
    help="random is a control: each image gets the noise of a class drawn at random.",
)
@click.option(
    "--surrogate-data",
    type=Known("data"),
    metavar="PATH|NAME",
    help="Clean images to train the surrogate on, instead of --data.",
)
@click.option(
    "--poison-test",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Also make this folder of poisoned test images, for `ulfast attack --poison-test`.",
)
@click.option(
    "--generator", type=click.Path(path_type=Path), metavar="FILE", help="Poison with this generator (of gue or dc)."
)
@click.option(
    "--generator-out",
    type=click.Path(path_type=Path),
    metavar="FILE.safetensors",
    help="Save the generator that gue or dc trains, for future images.",
)
@click.option(
    "--eps", type=Share(), help="Size of the perturbation, pixels in [0, 1], or 8/255 (default: as published)."
)
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a parameter of the method.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where methods that train a network keep their state (default: OUT.work).",
)
@click.option("--resume", is_flag=True, help="Resume the interrupted run of --out.")
@click.option(
    "--to",
    type=click.Choice(["ulfast", "wds"]),
    default="ulfast",
    show_default=True,
    help="Write ulfast's folder of memory-mapped arrays, or WebDataset shards of PNG images.",
)
@click.option("--shard-size", type=click.IntRange(1), metavar="N", help="Images per shard (default: 1,000).")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
def command(
    output: Output,
    method: str,
    data: str | None,
    test_data: str | None,
    format_: str | None,
    limit: int | None,
    out: Path | None,
    overwrite: bool,
    rate: float,
    classes: str | None,
    labels: str | None,
    assign: str,
    surrogate_data: str | None,
    poison_test: Path | None,
    generator: Path | None,
    generator_out: Path | None,
    eps: float | None,
    pairs: tuple[str, ...],
    work: Path | None,
    resume: bool,
    to: str,
    shard_size: int | None,
    dry_run: bool,
    seed: int,
    device: str,
    reading: dict[str, Any],
) -> None:
    """Make a data set unlearnable: poisoned training images, clean test images, and a picture of both.

    \b
    ulfast poison --method lsp --data cifar10 --out poisoned/
    ulfast poison --method regions-16 --data my_photos/ --resize 224 --rate 0.5 --out half/
    ulfast poison --method em --data cifar10 --set surrogate=resnet18-16 --out em/
    """
    from .. import distributed
    from ..data import DatasetWriter, load_dataset
    from ..data.classes import same_everywhere
    from ..data.load import load_splits
    from ..data.writers.resumable import RowWriter
    from ..poisons import Poisoning, Workplace, get_poison, write_rows, write_shards
    from ..poisons.generator import FILE as GENERATOR_FILE, GeneratorPoison, method_of
    from ..report import pictures
    from ..runtime.files import SETTINGS, atomic_file, check_free, part_folder
    from ..runtime.made import check_apart, check_replace, expand

    name, plain = get_poison(method)
    given = settings(pairs)
    if generator is not None:
        if click.get_current_context().get_parameter_source("method") == ParameterSource.DEFAULT:
            name, plain = get_poison(method_of(expand(generator)))
        given["generator"] = str(generator)
    if generator_out is not None:
        if not isinstance(plain, GeneratorPoison) or generator is not None:
            raise InputError("--generator-out keeps what --method gue or dc trains: leave it out, or --generator")
        if generator_out.suffix != ".safetensors":
            raise InputError(f"--generator-out {generator_out} must end in .safetensors")
        check_replace(generator_out)
    if shard_size is not None and to != "wds":
        raise InputError("--shard-size belongs to --to wds: leave it out, or add that")
    if to == "wds" and (poison_test is not None or distributed.size() > 1):
        raise InputError("--to wds is written by one process: leave --poison-test and --nproc out")
    if data is None:
        raise InputError("which images? Give --data PATH or a name (sample, cifar10, cifar100, svhn)")
    if out is None and not dry_run:
        raise InputError("where to? Give --out FOLDER")
    if out is not None:
        check_apart(out, (data, test_data, surrogate_data, labels if labels and ":" not in labels else None))
    part = part_folder(out) if out is not None else None
    interrupted = part is not None and part.is_dir()  # possibly before its first image
    if out is not None and not dry_run:
        output.claim(out)
        left = [part_folder(out) / SETTINGS, work or out.with_name(f"{out.name}.work")]
        output.resumes(lambda: any(one.exists() for one in left))
    if distributed.restarted():
        resume = distributed.agreed(interrupted)
    if out is not None and not resume and distributed.is_main():
        check_free(out, overwrite)
    place = None
    if plain.trains and out is not None and not dry_run:
        place = work or out.with_name(f"{out.name}.work")
        if distributed.is_main() and not (distributed.restarted() and not existing(place)):
            _clear(place, resume and not existing(out), overwrite)
    elif work is not None and not plain.trains:
        raise InputError(f"--work belongs to methods that train a network, {name} does not: leave it out")
    elif resume and out is not None and not (interrupted or existing(out)):
        raise InputError(f"there is no interrupted run in {part}: leave --resume out")
    with distributed.main_first():  # it downloads the data
        train, test = load_splits(
            data, test_data=test_data, limit=limit, seed=seed, format=format_, progress=output.bars, **reading
        )
        others = None
        if surrogate_data is not None:
            others = load_dataset(surrogate_data, limit=None, progress=output.bars, **reading)
    same_everywhere(train, test, others)
    tell_notes(output, train, test, others)
    poisoning = Poisoning(
        train,
        name,
        seed=seed,
        rate=rate,
        classes=classes,
        labels=labels,
        assign=assign,
        eps=eps,
        work=Workplace(place, resume, device, output.bars, others),
        **given,
    )
    if poison_test is not None:
        if test is None:
            raise InputError("--poison-test needs test images: give --test-data")
        poisoning.check_unseen()
        if out is not None:
            check_apart(poison_test, (data, test_data, out, surrogate_data))
            if distributed.is_main() and not resume:
                check_free(poison_test, overwrite)
    if eps is not None and _of_whole_images(poisoning.poison):
        size = train.images[:1].size
        output.remark(
            f"eps {eps:g} is the L2 norm of an image's noise: {255 * eps / size**0.5:.1f} levels of 255 per value"
        )
    summary: dict[str, Any] = {
        "method": name,
        "parameters": poisoning.poison.resolved(poisoning.driver),
        "seed": seed,
        "rate": rate,
        **poisoning.about(),
        "data": str(data),
        "images": len(train),
        "test_images": len(test) if test is not None else 0,
    }
    if dry_run or out is None:
        output.result({**summary, "dry_run": True})
        output.say(f"would poison {len(train):,} images of {train.name} with {name}: {summary['parameters']}")
        return
    if resume and existing(out) and not overwrite:
        if not _is(out, summary):
            check_free(out, overwrite)
        output.result({**summary, "out": str(out)})
        output.say(f"{out} is complete already")
        return
    if to == "wds":
        options: dict[str, Any] = {"size": shard_size, "resume": resume, "overwrite": overwrite}
        write_shards(poisoning, test, out, settings=summary, progress=output.bars, **options)
        statistics = poisoning.statistics.summary()
        if place is not None and work is None and place.is_dir():
            shutil.rmtree(place)
        output.result({**summary, "out": str(out), "statistics": statistics})
        output.say(f"{len(train):,} training images poisoned with {name}, in shards: {out}")
        return
    identity = {**summary, "pixels": train.fingerprint(), "image_shape": list(train.image_shape)}
    with RowWriter(out, train, identity, resume=resume, overwrite=overwrite) as writer:
        if write_rows(poisoning, writer, output.bars):
            if test is not None:
                writer.append_test(replace(test, manifest={}))
            poisoned = load_dataset(writer.folder / "train")
            figure = pictures.comparison_figure(train, poisoned, seed=seed, title=f"{name} on {train.name}")
            pictures.save(figure, writer.folder / "poison.png")
            if poison_test is not None and test is not None:
                unseen = poisoning.unseen(test)
                with DatasetWriter(poison_test, overwrite=overwrite or resume) as folder:
                    split = folder.split(
                        "test", unseen.image_shape, unseen.classes, source=unseen.name, manifest=unseen.manifest
                    )
                    split.append_all(unseen)
    statistics = poisoning.statistics.summary()
    if not distributed.is_main():
        return
    if generator_out is not None and place is not None:
        generator_out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(generator_out) as part_file:
            shutil.copyfile(place / GENERATOR_FILE, part_file)
        output.say(f"generator: {generator_out}")
    if place is not None and work is None and place.is_dir():
        shutil.rmtree(place)
    output.result(
        {
            **summary,
            "out": str(out),
            "figure": str(out / "poison.png"),
            "statistics": statistics,
            **({"poison_test": str(poison_test)} if poison_test else {}),
        }
    )
    output.say(
        f"{len(train):,} training images poisoned with {name}"
        + (f" (rate {rate:g})" if rate < 1 else "")
        + (f" (only {', '.join(summary['classes'])}: {statistics['images']:,} images)" if classes else "")
        + (f", {len(test):,} clean test images" if test is not None else "")
        + f": {out}"
    )
    if statistics["images"]:
        output.say(
            f"L2 {statistics['l2_mean']:.3f} (largest {statistics['l2_max']:.3f}), L-infinity"
            f" {255 * statistics['linf_max']:.0f}/255, L0 {statistics['l0_mean']:.0f} px,"
            f" PSNR {statistics['psnr_db']:.1f} dB"
            if statistics["psnr_db"]
            else "nothing changed"
        )
    output.say(f"picture: {out / 'poison.png'}")
    if poison_test is not None:
        output.say(f"poisoned test images: {poison_test}")
    if test is None:
        output.remark("no test images were found: give `ulfast attack` some with --test-data")


def _clear(place: Path, resume: bool, overwrite: bool) -> None:
    """Ensures that the work folder is empty or holds a run that may be resumed.

    Raises:
        InputError: it holds an unfinished run but neither --resume nor --overwrite is given, or none and --resume is.
    """
    if resume:
        if not existing(place):
            raise InputError(f"there is no interrupted run in {place}: leave --resume out")
    elif existing(place):
        if not overwrite:
            raise InputError(
                f"{place} holds an unfinished run: give --resume to continue it, or --overwrite to start again"
            )
        if not any((place / name).exists() for name in ("delta.npy", "surrogate", "state.pt")):
            raise InputError(f"{place} holds something other than a run of this program: choose another --work")
        shutil.rmtree(place)


def _is(out: Path, summary: dict[str, Any]) -> bool:
    """Whether a folder already is the command's output: the command was killed after the last image."""
    from ..data import load_dataset

    made = load_dataset(out)
    keys = ("method", "parameters", "seed", "rate", "classes", "labels", "assign", "surrogate_data")
    wanted = json.loads(json.dumps({key: summary.get(key) for key in keys}))
    same = all(made.manifest.get(key) == value for key, value in wanted.items())
    return same and len(made) == summary["images"]


def _of_whole_images(poison: Any) -> bool:
    """Whether eps is the norm of an image's noise rather than a bound on its values."""
    help = next((f.metadata.get("help", "") for f in dataclasses.fields(poison) if f.name == "eps"), "")
    return "L2" in help and getattr(poison, "norm", "l2") == "l2"
