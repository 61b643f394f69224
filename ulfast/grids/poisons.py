"""The poisoned images of a grid's cells: made on the fly, or once for all cells if that takes a network."""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import Dataset, load_dataset, write_dataset
from ..poisons import get_poison, poison
from .grid import CLEAN, Cell


def kept(cell: Cell, folder: Path) -> Path | None:
    """The place of a cell's poisoned images in the grid's folder; None for those that are made again in seconds.

    The name has a checksum of everything on which the images depend, so existing images are those that the cell needs.
    """
    if cell.poison.method == CLEAN or not get_poison(cell.poison.method)[1].trains:
        return None
    settings = [cell.data, cell.limit, cell.resize, asdict(cell.poison), cell.poison_seed]
    check = zlib.crc32(json.dumps(settings, sort_keys=True).encode())
    return folder / "poisons" / f"{cell.poison.label}-seed{cell.poison_seed}-{check:08x}"


def poisoned(cell: Cell, clean: Dataset, folder: Path, device: str, progress: Any = None) -> Dataset:
    """The training images of a cell. An interrupted poison is resumed.

    Raises:
        InputError: the poison refuses its parameters or the images.
    """
    if cell.poison.method == CLEAN:
        return clean
    parameters = {key: value for key, value in cell.poison.parameters.items() if key != "seed"}
    options: dict[str, Any] = {"seed": cell.poison_seed, "device": device, "progress": progress, **parameters}
    where = kept(cell, folder)
    if where is None:  # on the CPU wherever the cell trains, so that the images are always the same
        return poison(clean, cell.poison.method, **options | {"device": "cpu"})
    if not where.is_dir():
        work = where.with_name(f"{where.name}.work")
        write_dataset(where, poison(clean, cell.poison.method, folder=work, resume=True, **options))
        shutil.rmtree(work, ignore_errors=True)
    return load_dataset(where)
