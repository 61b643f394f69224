"""`ulfast finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, verb
from .completion import Known


@verb("finetune")
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option(
    "--clean", type=Known("data"), metavar="PATH|NAME", help="Clean images (default: the sample in the package)."
)
@click.option(
    "--clean-images",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Class-balanced subset of the clean training images.",
)
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Epochs on the clean images.")
@click.option("--lr", type=float, default=0.01, show_default=True, help="Largest learning rate.")
@click.option("--last-layer", is_flag=True, help="Train only the last linear layer (linear probing).")
def command(
    output: Output,
    run: Path | None,
    clean: str | None,
    clean_images: int,
    epochs: int,
    lr: float,
    last_layer: bool,
    seed: int,
    device: str,
) -> None:
    """Train the network of a finished run on a few clean images.

    \b
    ulfast finetune runs/lsp --clean-images 500
    ulfast finetune runs/lsp --last-layer --lr 0.1 --epochs 20
    """
    from ..attacks.checkpoints import Run, finetune_run
    from ..data import load_dataset
    from ..data.load import load_named

    if run is None:
        raise InputError("which run? Give the --out folder of `ulfast attack`")
    test = load_dataset(clean, split="test", progress=output.bars) if clean else load_named("sample", split="test")
    opened = Run.open(run, test, device)
    if clean:
        train = load_dataset(clean, limit=clean_images, seed=seed, progress=output.bars)
    else:
        train = load_named("sample", limit=clean_images, seed=seed)
    got = finetune_run(opened, train, epochs=epochs, lr=lr, last_layer=last_layer, seed=seed, progress=output.bars)
    output.result({"run": str(run), "poison": opened.result.poison, **got})
    output.say(
        f"{'last layer' if last_layer else 'all layers'}, {len(train):,} clean images: test accuracy"
        f" {100 * got['test_accuracy_before']:.1f} % before, {100 * got['test_accuracy']:.1f} % after"
    )
