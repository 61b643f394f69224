"""A projected training set on disk, for other training code and for `attack --materialize`.

Projected pixels leave [0, 1] on both sides, so they are stored as float16 (spacing 0.0005 near 1, an eighth of a uint8
level), in shards of equally many images, the last one shorter: `images-00000.npy` (m, H, W, C) float16 in units of [0,
1], not clipped, and so on; `labels.npy` (n,) int64; `manifest.json`.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import distributed
from ...ops.state import ordinary
from ...runtime.files import atomic_file, part_folder, publish, write_json, writing
from ...runtime.progress import Progress
from ...runtime.reading import reading, regular
from ...version import __version__
from ..dataset import Dataset, chunks
from ..tensors import as_tensor
from ..writers.folder import array_header
from .memory import MemoryLoader
from .removal import Removal

FORMAT = "ulfast-projected-2"

# Largest shard: 43,000 images of CIFAR-10 or 890 of 224 px, a second or two of work that a kill may lose.
SHARD_BYTES, CHUNK_BYTES = 256 << 20, 16 << 20
PROBES = 16  # images that show whether a folder was made from the same data with the same projection

Work = Callable[[int, int], Tensor]


@ordinary
def write_projected(
    path: Path,
    dataset: Dataset,
    removal: Removal,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes every image after the removal, shard by shard, with all processes; replaces `path`.

    Output made earlier from the same images in the same way is kept: a whole folder, or the shards that a killed run
    had finished.

    Args:
        removal: applied to every image. Its noise, which is redrawn every epoch, is left to the loader.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    removal = removal.to(torch.device("cpu"))
    labels = as_tensor(dataset.labels)

    def work(begin: int, stop: int) -> Tensor:
        images = as_tensor(np.ascontiguousarray(dataset.images[begin:stop]))
        return removal.lasting(images, labels[begin:stop]).to(torch.float16)

    rows = max(1, SHARD_BYTES // (2 * int(np.prod(dataset.image_shape))))
    about = {
        "format": FORMAT,
        "ulfast": __version__,
        "name": dataset.name,
        "classes": list(dataset.classes),
        "images": len(dataset),
        "image_shape": list(dataset.image_shape),
        "shard_images": rows,
        "rank": 0 if removal.rows is None else removal.rows.shape[-2],
        "fingerprint": _fingerprint(dataset, work),
        "manifest": dataset.manifest,
    }
    part = part_folder(path)
    if distributed.agreed(_made_by(path, about)):
        return
    if distributed.is_main():
        with writing(path):
            if not _made_by(part, about):
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                write_json(part / "manifest.json", about)
    distributed.wait()
    todo = [begin for begin in range(0, len(dataset), rows) if not _shard(part, begin // rows).is_file()]
    distributed.wait()  # until all processes have looked
    mine = {begin: min(rows, len(dataset) - begin) for begin in todo[slice(*distributed.share(len(todo)))]}
    done, total = 0, sum(mine.values())
    for begin, size in mine.items():
        with atomic_file(_shard(part, begin // rows)) as name, name.open("wb") as file:
            file.write(array_header((size, *dataset.image_shape), "<f2"))
            for first, last in chunks(dataset.images[begin : begin + size], CHUNK_BYTES):
                file.write(work(begin + first, begin + last).numpy().data)
                done += last - first
                if progress:
                    progress("project", done, total)
    distributed.wait()
    if distributed.is_main():
        with writing(path):
            np.save(part / "labels.npy", dataset.labels)
            publish(part, path)
    distributed.wait()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"images-{number:05d}.npy"


def _made_by(folder: Path, about: dict[str, Any]) -> bool:
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == json.loads(json.dumps(about)))


def _fingerprint(dataset: Dataset, work: Work) -> str:
    """A hash of the labels and of some images before and after."""
    check = zlib.crc32(np.ascontiguousarray(dataset.labels).data)
    for i in np.unique(np.linspace(0, len(dataset) - 1, PROBES).round().astype(int)).tolist():
        check = zlib.crc32(np.ascontiguousarray(dataset.images[i : i + 1]).data, check)
        check = zlib.crc32(work(i, i + 1).numpy().data, check)
    return f"{check:08x}"


class Shards:
    """The images of a folder that `write_projected` made, memory-mapped; indexed like one tensor of all images."""

    def __init__(self, path: Path) -> None:
        with reading(path, "make it again", "as a projected set"):
            about = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            count, shape = about["images"], tuple(about["image_shape"])
            self._rows = min(about["shard_images"], count)
            starts = range(0, count, self._rows)
            if not starts:
                raise ValueError("it has no images")
            self._parts = []
            for i, begin in enumerate(starts):
                part = np.load(regular(_shard(path, i)), mmap_mode="r", allow_pickle=False)
                if part.shape != (min(self._rows, count - begin), *shape) or part.dtype != np.float16:
                    raise ValueError(f"{part.shape} {part.dtype} in {_shard(path, i).name}")
                self._parts.append(as_tensor(part))

    def __getitem__(self, index: Tensor) -> Tensor:
        """The images at `index` (b,) int64: (b, H, W, C) float16."""
        which = index // self._rows
        out = torch.empty(len(index), *self._parts[0].shape[1:], dtype=torch.float16, device="cpu")
        for number in which.unique().tolist():
            here = which == number
            out[here] = self._parts[number][index[here] - number * self._rows]
        return out


class ProjectedLoader(MemoryLoader):
    """`MemoryLoader` over a folder that `write_projected` made. `dataset` supplies labels and shape. A `removal` among
    the options supplies only what is redrawn in every pass; the rest is done already.
    """

    def __init__(
        self, path: Path, dataset: Dataset, batch_size: int, *, removal: Removal | None = None, **options: Any
    ) -> None:
        drawn = Removal(drawn=removal.drawn, noise=removal.noise) if removal else None
        super().__init__(dataset, batch_size, removal=drawn, **options)
        self._kept = Shards(path)
