"""`ulfast data get`."""

from __future__ import annotations

from pathlib import Path

import click

from .common import Output, verb


@click.group("data")
def command() -> None:
    """Get data sets by name."""


@verb("get", seed=False, device=False)
@click.argument("name")
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


command.add_command(get)
