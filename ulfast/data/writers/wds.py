"""Writing WebDataset shards: `train-000000.tar`, ..., and the `info.json` from which timm reads their sizes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...runtime.files import write_json
from ...runtime.progress import Progress
from ..dataset import Dataset
from .pieces import Piece, pieces_of, write_pieces

SHARD_IMAGES = 1000


def write_wds(
    path: Path,
    splits: dict[str, Dataset],
    *,
    size: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    manifest: Callable[[Sequence[Piece]], dict[str, Any]] | None = None,
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes shards of `size` images (default: 1,000), PNG and label, and `info.json` with the class names.

    The same data set gives the same bytes.

    Args:
        manifest: returns the manifest of the training images, written as these pieces, once they are there (default:
            that of the data set).
        settings: as for `write_pieces`.

    Raises:
        InputError: as for `write_pieces`; or the folder's name is that of a file.
    """
    if path.suffix == ".tar":
        raise InputError(f"--out {path} must be a folder for this layout: leave .tar out")
    pieces = pieces_of(splits, size or SHARD_IMAGES, lambda split, i, n: f"{split}-{i:06d}.tar")

    def finish(folder: Path) -> None:
        first = next(iter(splits.values()))
        about: dict[str, Any] = {}
        for split, dataset in splits.items():
            mine = [piece for piece in pieces if piece.split == split]
            about[split] = {
                "name": split,
                "num_samples": len(dataset),
                "filenames": [piece.name for piece in mine],
                "shard_lengths": [piece.stop - piece.begin for piece in mine],
                "manifest": manifest(mine) if manifest and split == "train" else dataset.manifest,
            }
        info = {"name": first.name, "classes": list(first.classes), "image_shape": list(first.image_shape)}
        write_json(folder / "info.json", {**info, "splits": about})

    write_pieces(
        path,
        pieces,
        _write,
        finish,
        layout="wds",
        resume=resume,
        settings=settings,
        overwrite=overwrite,
        progress=progress,
    )


def _write(file: Path, piece: Piece) -> None:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image, label in piece.encoded():
            for suffix, content in (("cls", str(label).encode()), ("png", image)):
                member = tarfile.TarInfo(f"{number:08d}.{suffix}")  # with no user, dated 1970
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
