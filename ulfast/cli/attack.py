"""`ulfast attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import Output, data_options, free_folder, settings, tell_notes, verb
from .completion import Known


@verb("attack", processes=True)
@click.option(
    "--method",
    "-m",
    type=Known("attacks"),
    default="orthogonal",
    show_default=True,
    help="An attack, or several joined with + (see `ulfast ls`).",
)
@data_options
@click.option(
    "--model",
    type=Known("models"),
    help="cnn, resnet18, resnet18-WIDTH or timm:NAME (default: cnn; resnet18 with a recipe of the paper).",
)
@click.option(
    "--recipe",
    type=Known("recipes"),
    default="quick",
    show_default=True,
    help="quick, quick-noflip, fast (GPU), paper, paper-plain, paper-dfr, imagenet (see `ulfast ls recipes`).",
)
@click.option("--epochs", type=click.IntRange(1), help="Number of epochs (default: the recipe's).")
@click.option(
    "--start",
    metavar="PATH|timm:NAME",
    help="Weights to start from instead of random ones: a run, a checkpoint, a state_dict, or pretrained ones of timm.",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder of the run (default: a new one in runs/).")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
@click.option("--resume", is_flag=True, help="Resume the interrupted run in --out.")
@click.option("--compare", is_flag=True, help="Also train without an attack.")
@click.option(
    "--clean",
    type=Known("data"),
    metavar="PATH|NAME",
    help="Clean training images, for comparison or for methods that need them.",
)
@click.option(
    "--poison-test",
    type=Known("data"),
    metavar="PATH",
    help="Poisoned test images (from `ulfast poison --poison-test`) on which accuracy is measured too.",
)
@click.option("--init", type=click.Choice(["zero", "torch"]), help="Start of the linear fit (torch in the paper).")
@click.option("--fit-steps", type=click.IntRange(1), help="SGD steps of the fit (default 1,000; see --recipe).")
@click.option("--fit-epochs", type=click.IntRange(1), help="Epochs of the fit, instead of steps (20 in the paper).")
@click.option("--fit", help="How the directions are found: sgd, lbfgs, ridge, class-mean or leace.")
@click.option("--rank", type=click.IntRange(1), help="Directions to remove (default: what the weights span).")
@click.option("--basis", type=click.Path(path_type=Path), help="A basis made by `ulfast fit`, instead of fitting.")
@click.option("--project-test", is_flag=True, default=None, help="Project the test images too.")
@click.option("--materialize", is_flag=True, help="Write the projected set as shards and train from there.")
@click.option("--keep-checkpoints", is_flag=True, help="Keep every epoch's network, not only the last.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="Set a parameter of the method.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the result as a page, FILE.html.")
@click.option("--dry-run", is_flag=True, help="Check everything, train nothing.")
def command(
    output: Output,
    method: str,
    data: str | None,
    test_data: str | None,
    format_: str | None,
    limit: int | None,
    model: str | None,
    recipe: str,
    epochs: int | None,
    start: str | None,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    compare: bool,
    clean: str | None,
    poison_test: str | None,
    init: str | None,
    fit_steps: int | None,
    fit_epochs: int | None,
    fit: str | None,
    rank: int | None,
    basis: Path | None,
    project_test: bool | None,
    materialize: bool,
    keep_checkpoints: bool,
    pairs: tuple[str, ...],
    report: Path | None,
    dry_run: bool,
    seed: int,
    device: str,
    reading: dict[str, Any],
) -> None:
    """Train a network on poisoned images by a method and measure it on clean test images.

    Without --data: the embedded sample of CIFAR-10, poisoned with lsp, and both baselines.

    \b
    ulfast attack --method orthogonal
    ulfast attack --method orthogonal --data poisoned/ --clean cifar10 --compare --report answer.html
    ulfast attack --method orthogonal --recipe paper --data poisoned/
    """
    from .. import distributed
    from ..attacks import AttackResult, attack, get_attack
    from ..data import load_dataset
    from ..data.load import load_named
    from ..projection.basis import Basis
    from ..report import page, pictures, tables
    from ..report.collect import collect
    from ..report.networks import Inspection
    from ..runtime.devices import resolve_device
    from ..runtime.files import check_free
    from ..runtime.made import check_apart, check_replace
    from ..training import build_model, default_model, get_recipe
    from ..training.start import Start

    name, steps = get_attack(method)
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--report {report} must end in .html")
    if report is not None:
        check_replace(report)
    where = resolve_device(device)
    if distributed.restarted() and out is not None and out.is_dir():
        resume, overwrite = True, False
    if resume and out is None:
        raise InputError("--resume needs the run: give its --out FOLDER")
    if resume and out is not None and not out.is_dir():
        raise InputError(f"there is no run {out} to resume: leave --resume out")
    folder = distributed.agreed(out or free_folder(f"runs/{_stem(data)}-{name}"))
    check_apart(folder, (data, test_data, clean, basis, poison_test, start))
    if not resume and distributed.is_main():
        check_free(folder, overwrite)
    given = settings(pairs)
    options: dict[str, Any] = {"format": format_, "progress": output.bars, **reading}
    train = test = clean_set = None
    if data is not None:
        with distributed.main_first():  # it downloads the data
            train = load_dataset(data, limit=limit, seed=seed, **options)
            test = load_dataset(data, split="test", test_data=test_data, **options)
    elif test_data or format_ or any(reading.values()):
        raise InputError("--test-data, --format and how to read images need --data")
    if clean is not None:
        if train is None:
            raise InputError("--clean needs --data: the embedded sample brings its own baselines")
        with distributed.main_first():
            clean_set = load_dataset(clean, limit=limit, seed=seed, progress=output.bars, **reading)
    poisoned_test = None
    if poison_test is not None:
        if train is None:
            raise InputError("--poison-test needs --data, the training images that were poisoned with it")
        poisoned_test = load_dataset(poison_test, split="test", progress=output.bars, **reading)
    tell_notes(output, train, test, clean_set)
    # Methods that need clean images use these; training on all of them must then be requested with --compare.
    baseline = clean_set if compare or not any(step.needs_clean for step in steps) else None
    model = model or default_model(recipe)
    chosen = get_recipe(recipe, model, len(train) if train is not None else limit or 5000, where)
    if dry_run:
        shape, count = (train.image_shape, train.num_classes) if train is not None else ((32, 32, 3), 10)
        network = build_model(model, num_classes=count, image_shape=shape)
        if start is not None:
            Start(start, shape).into(network)
        plan = {
            "method": name,
            "model": model,
            "recipe": recipe,
            "epochs": epochs or chosen.epochs,
            "seed": seed,
            "images": len(train) if train is not None else limit or 5000,
            "out": str(folder),
            "weights": sum(p.numel() for p in network.parameters()),
            "dry_run": True,
        }
        output.result(plan)
        output.say(", ".join(f"{key} {value}" for key, value in plan.items() if key != "dry_run"))
        return
    output.claim(folder)
    if out is not None:
        output.resumes((folder / "config.json").is_file)
    else:
        output.resumes((folder / "config.json").is_file, f"the same command with --resume --out {folder}")
    result: AttackResult = attack(
        train,
        test=test,
        poisoned_test=poisoned_test,
        method=name,
        model=model,
        recipe=recipe,
        seed=seed,
        device=device,
        out=folder,
        resume=resume,
        overwrite=overwrite,
        compare=baseline if baseline is not None else compare,
        clean=clean_set,
        basis=Basis.load(basis) if basis else None,
        materialize=materialize,
        epochs=epochs,
        limit=limit if train is None else None,
        keep_checkpoints=keep_checkpoints,
        start=start,
        progress=output.bars,
        init=init,
        fit_steps=fit_steps,
        fit_epochs=fit_epochs,
        fit=fit,
        rank=rank,
        project_test=project_test,
        **given,
    )
    if not distributed.is_main():
        return
    names = train.classes if train is not None else load_named("sample").classes
    figure = folder / "attack.png"
    pictures.save(pictures.attack_figure(result, names), figure)
    pages = {}
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        page.write(collect([folder]), report, networks=Inspection(test, device=device, progress=output.bars))
        pages = {"report": str(report)}
    output.result({**result.to_dict(), "out": str(folder), "figure": str(figure), **pages})
    output.show(tables.attack_table(result))
    output.say(f"figure:  {figure}")
    output.say(f"results: {folder / 'result.json'}")
    if report is not None:
        output.say(f"page:    {report}")


def _stem(data: str | None) -> str:
    return "sample-lsp" if data is None else Path(data).name or "data"
