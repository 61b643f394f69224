"""Writing Parquet files that Hugging Face's `datasets` and its hub's viewer read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...runtime.progress import Progress
from ..arrow import HF, OURS, parquet
from ..dataset import Dataset
from .pieces import Piece, pieces_of, write_pieces

FILE_IMAGES = 10_000
GROUP_ROWS, GROUP_BYTES = 1000, 16 << 20  # size of a row group, the smallest unit of reading


def write_parquet(
    path: Path,
    splits: dict[str, Dataset],
    *,
    size: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes `data/SPLIT-00000-of-00003.parquet` files of `size` images (default: 10,000), with a column `image` of PNG
    files and a column `label` that has the class names.

    Raises:
        InputError: as for `write_pieces`; pyarrow is missing; or the folder's name is that of a file.
    """
    parquet(path)  # before the work
    if path.suffix == ".parquet":
        raise InputError(f"--out {path} must be a folder for this layout: leave .parquet out")
    pieces = pieces_of(splits, size or FILE_IMAGES, lambda split, i, n: f"data/{split}-{i:05d}-of-{n:05d}.parquet")
    write_pieces(
        path,
        pieces,
        _write,
        lambda folder: None,
        layout="parquet",
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )


def _schema(dataset: Dataset) -> Any:
    import pyarrow as pa

    features = {"image": {"_type": "Image"}, "label": {"names": list(dataset.classes), "_type": "ClassLabel"}}
    about = {
        "name": dataset.name,
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "manifest": dataset.manifest,
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={HF: json.dumps({"info": {"features": features}}), OURS: json.dumps(about)},
    )


def _write(file: Path, piece: Piece) -> None:
    import pyarrow as pa

    schema = _schema(piece.dataset)
    images: list[dict[str, Any]] = []
    labels: list[int] = []
    # PNG files do not compress further.
    with parquet(file).ParquetWriter(file, schema, compression="NONE", use_dictionary=False) as writer:

        def flush() -> None:
            columns = [pa.array(images, schema.field("image").type), pa.array(labels, pa.int64())]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            images.clear()
            labels.clear()

        held = 0
        for number, image, label in piece.encoded():
            images.append({"bytes": image, "path": f"{number:08d}.png"})
            labels.append(label)
            held += len(image)
            if len(images) == GROUP_ROWS or held >= GROUP_BYTES:
                flush()
                held = 0
        if images:
            flush()
