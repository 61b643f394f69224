"""Parquet files with encoded images, as Hugging Face's `datasets` writes them. Needs pyarrow (`ulfast[parquet]`)."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ..arrow import HF, OURS, parquet
from ..dataset import Dataset
from .arrays import named_labels
from .encoded import Encoded, read_images
from .request import Request
from .splits import file_splits, files_of, kind_of
from .walk import Walk

CACHE_BYTES = 256 << 20  # of encoded images kept, in row groups; the group in use stays whatever its size
GROUP_BYTES = 4 << 30  # the largest row group that is read


def detect(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".parquet"
    return path.is_dir() and bool(file_splits(path, ".parquet")) and not any(Walk(path).entries(path)[1])


def read(request: Request) -> Dataset:
    """Reads the one column of images, a struct of `bytes` and `path`, and the one column of class labels. Class names
    come from the metadata of the schema. `input_key` and `target_key` choose other columns.

    Raises:
        InputError: pyarrow is missing, there is no such column or several, a file is damaged, or images are stored
            outside the files.
    """
    module = parquet(request.path)
    left: Counter[str] = Counter()
    files = _files(request, left)
    table = _Table(module, files)
    image = _image_column(table.schema, request)
    label, names = _label_column(table.schema, table.features, request)
    ours = table.about
    values = np.concatenate([_labels(table, label, files[i], i) for i in range(len(files))])
    labels, classes = named_labels(values, names, f"{files[0]}, {label}")
    shape = ours.get("image_shape")
    channels = 1 if isinstance(shape, list) and shape[2:] == [1] else 3
    encoded = Encoded(len(labels), lambda i: table.where(i), lambda i: table.image(i, image), channels)
    images, labels = read_images(encoded, labels, request, left)
    name = ours.get("name") if isinstance(ours.get("name"), str) else ""
    manifest = ours.get("manifest") if isinstance(ours.get("manifest"), dict) else {}
    return Dataset(images, labels, classes, name or request.path.stem, request.split, manifest or {}, dict(left))


def _files(request: Request, left: Counter[str]) -> list[Path]:
    path, split, sole = request.path, request.split, request.sole
    if path.is_file():
        if split == "test" and not sole and kind_of(Path(path.stem.split("-")[0])) in (None, "train"):
            raise MissingSplit(f"{path} holds the training images: give the test images with --test-data")
        return [path]
    splits = file_splits(path, ".parquet")
    configs = {_config(path, file) for files in splits.values() for file in files}
    if len(configs) > 1:
        raise InputError(f"{path} has {', '.join(sorted(configs))}: which is meant? Point --data at one of them")
    return files_of(path, splits, split, sole, left)


def _config(root: Path, file: Path) -> str:
    """The folder of a configuration (`plain_text/train-...`, `default/train/0000.parquet`); "" for none."""
    parts = [part for part in file.relative_to(root).parent.parts if part != "data" and kind_of(Path(part)) is None]
    return "/".join(parts)


class _Table:
    """The rows of several files as one table, read by row group; the most recent groups stay in memory."""

    def __init__(self, module: Any, files: list[Path]) -> None:
        self._paths = files
        self._files: list[Any] = []
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._held = 0
        starts, where = [0], []
        for number, path in enumerate(files):
            try:
                file = module.ParquetFile(path, memory_map=True)
            except Exception as error:  # pyarrow raises many types for a damaged file
                raise _unreadable(path, error) from None
            if file.metadata.num_rows > path.stat().st_size:  # a run of equal labels takes no room, but an image does
                raise InputError(
                    f"{path} declares {file.metadata.num_rows:,} rows, more than it has bytes: get it again"
                )
            if number and not file.schema_arrow.equals(self._files[0].schema_arrow):
                raise InputError(f"{files[0]} and {path} differ in their columns, so they are not one data set")
            self._files.append(file)
            for group in range(file.metadata.num_row_groups):
                where.append((number, group))
                starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
        self._starts, self._where = np.array(starts), where
        self.schema = self._files[0].schema_arrow
        metadata = self.schema.metadata or {}
        info = _json(metadata.get(HF)).get("info")
        features = info.get("features") if isinstance(info, dict) else None
        self.features: dict[str, Any] = features if isinstance(features, dict) else {}
        self.about = _json(metadata.get(OURS))

    def _find(self, row: int) -> tuple[int, int, int]:
        """File number, row group, and place in the group of a row."""
        at = int(np.searchsorted(self._starts, row, "right")) - 1
        return (*self._where[at], row - int(self._starts[at]))

    def where(self, row: int) -> str:
        number, group, place = self._find(row)
        return f"{self._paths[number]}, row {place} of group {group}"

    def column(self, number: int, name: str) -> Any:
        """A whole column of small values."""
        try:
            return self._files[number].read(columns=[name]).column(name)
        except Exception as error:
            raise _unreadable(self._paths[number], error) from None

    def image(self, row: int, name: str) -> bytes:
        """The encoded image of a row.

        Raises:
            InputError: the file has no image there, or a damaged one.
        """
        number, group, place = self._find(row)
        with self._lock:
            rows = self._groups.get((number, group))
            if rows is None:
                rows = self._read(number, group, name)
                self._groups[number, group] = rows
                self._held += rows.nbytes
                while self._held > CACHE_BYTES and len(self._groups) > 1:
                    self._held -= self._groups.popitem(last=False)[1].nbytes
            else:
                self._groups.move_to_end((number, group))
        value = rows[place]
        value = value["bytes"] if value.is_valid and "struct" in str(rows.type) else value
        if not value.is_valid:
            raise InputError(
                f"{self.where(row)} has no image, only the path of one: embed the images"
                " (`datasets.Dataset.to_parquet` does), or point at their folder"
            )
        return bytes(value.as_py())

    def _read(self, number: int, group: int, name: str) -> Any:
        size = self._files[number].metadata.row_group(group).total_byte_size
        if size > GROUP_BYTES:
            raise InputError(f"{self._paths[number]} has a row group of {size:,} bytes: write it in smaller ones")
        try:
            return self._files[number].read_row_group(group, columns=[name]).column(name).combine_chunks()
        except Exception as error:
            raise _unreadable(self._paths[number], error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:100]}): get it again")


def _json(text: bytes | None) -> dict[str, Any]:
    try:
        content = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _image_column(schema: Any, request: Request) -> str:
    import pyarrow as pa

    structs = [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
    binary = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)]
    if request.input_key:
        if request.input_key not in structs + binary:
            raise InputError(
                f"{request.path} has no column {request.input_key} of images: {_columns(schema)}: name another with"
                " --input-key"
            )
        return request.input_key
    found = structs or binary
    if len(found) != 1:
        what = f"several columns of images ({', '.join(found)})" if found else "no column of images"
        raise InputError(f"{request.path} has {what}: {_columns(schema)}: name it with --input-key")
    return found[0]


def _label_column(schema: Any, features: dict[str, Any], request: Request) -> tuple[str, tuple[str, ...]]:
    """The name of the label column, and the class names, () if the file does not give them."""
    import pyarrow as pa

    named = {
        key: tuple(map(str, feature["names"]))
        for key, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    named = {key: names for key, names in named.items() if schema.get_field_index(key) >= 0}
    plain = [field.name for field in schema if pa.types.is_integer(field.type)]
    words = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    key = request.target_key
    if key:
        if key not in plain + words:
            raise InputError(
                f"{request.path} has no column {key} of numbers or names: {_columns(schema)}: name another with"
                " --target-key"
            )
        return key, named.get(key, ())
    found = list(named) or plain
    if len(found) != 1:
        what = f"several columns of labels ({', '.join(found)})" if found else "no column of labels"
        raise InputError(f"{request.path} has {what}: {_columns(schema)}: name it with --target-key")
    return found[0], named.get(found[0], ())


def _columns(schema: Any) -> str:
    return "it has " + ", ".join(f"{field.name} ({str(field.type)[:40]})" for field in list(schema)[:8])


def _labels(table: _Table, name: str, path: Path, number: int) -> np.ndarray:
    values = table.column(number, name)
    if values.null_count:
        raise InputError(f"{path}, {name} has {values.null_count:,} rows without a label: leave them out")
    found: np.ndarray = values.to_numpy()
    if found.dtype.kind in "iu" and found.size and int(found.min()) < 0:
        raise InputError(f"{path}, {name} has negative labels, which mean unknown classes: give a labelled split")
    return found if found.dtype.kind in "iu" else np.array(found.tolist(), str)
