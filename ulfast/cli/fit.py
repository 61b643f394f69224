"""`ulfast fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import Output, data_options, tell_notes, verb


@verb("fit", processes=True)
@data_options
@click.option("--out", "-o", type=click.Path(path_type=Path), help="File for the basis, FILE.safetensors.")
@click.option("--overwrite", is_flag=True, help="Replace --out, if ulfast made it.")
@click.option("--resume", is_flag=True, help="Resume the interrupted fit of --out.")
@click.option(
    "--init",
    type=click.Choice(["zero", "torch"]),
    default="zero",
    show_default=True,
    help="Initialisation of the weights; torch is the random default, as in the paper.",
)
@click.option("--steps", type=click.IntRange(1), help="SGD steps (default 1,000).")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of the fit, instead of steps (20 in the paper).")
@click.option("--lr", type=float, default=0.1, show_default=True, help="Initial learning rate.")
def command(
    output: Output,
    data: str | None,
    test_data: str | None,
    format_: str | None,
    limit: int | None,
    out: Path | None,
    overwrite: bool,
    resume: bool,
    init: str,
    steps: int | None,
    epochs: int | None,
    lr: float,
    seed: int,
    device: str,
    reading: dict[str, Any],
) -> None:
    """Fit the linear model whose weights the projection removes, and save their orthonormal basis and a picture.

    \b
    ulfast fit --data poisoned/ --out basis.safetensors
    ulfast fit --data poisoned/ --init torch --epochs 20 --out paper.safetensors
    """
    from .. import distributed
    from ..data import load_dataset
    from ..data.classes import same_everywhere
    from ..projection.fit import fit_basis
    from ..report import pictures
    from ..runtime.devices import resolve_device
    from ..runtime.files import check_free, writing
    from ..runtime.made import check_apart, check_replace

    if data is None:
        raise InputError("which images? Give --data PATH or a name")
    if out is None:
        raise InputError("where to? Give --out FILE.safetensors")
    if out.is_dir():
        raise InputError(f"{out} is a folder: give a file name, for example {out / 'basis.safetensors'}")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors; the picture is written beside it")
    check_apart(out, (data,))
    output.claim(out)
    picture = out.with_suffix(".png")
    if distributed.is_main() and not out.exists():
        check_free(picture, overwrite)
    check_replace(picture)
    kept = out.with_name(f"{out.name}.part.pt")
    if distributed.restarted():
        resume = kept.is_file()
    elif resume and not kept.is_file():
        raise InputError(f"there is no interrupted fit {kept}: leave --resume out")
    elif distributed.is_main():
        check_free(out, overwrite)
    output.resumes(kept.is_file)
    where = resolve_device(device)
    with distributed.main_first():  # it downloads the data
        train = load_dataset(data, format=format_, limit=limit, seed=seed, progress=output.bars, **reading)
    same_everywhere(train)
    tell_notes(output, train)
    basis = fit_basis(
        train,
        steps=steps,
        epochs=epochs,
        lr=lr,
        init=init,
        seed=seed,
        device=where,
        checkpoint=kept,
        resume=resume,
        progress=output.bars,
    )
    if not distributed.is_main():
        return
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        basis.save(out)
    pictures.save(pictures.basis_figure(basis, train.classes), picture)
    kept.unlink(missing_ok=True)
    output.result({**basis.metadata, "out": str(out), "figure": str(picture)})
    output.say(
        f"rank {basis.rank}, train accuracy {100 * basis.metadata['train_accuracy']:.1f} %,"
        f" {basis.metadata['seconds']:.1f} s: {out}"
    )
    if basis.rank < train.num_classes - 1:
        output.remark(f"the weights of {train.num_classes} classes span only {basis.rank} directions")
    output.say(f"picture: {picture}")
