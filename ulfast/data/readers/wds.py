"""WebDataset shards: tar archives in which files with one base name form a sample. `webdataset` is not needed."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.made import read_json
from ..dataset import Dataset
from .arrays import named_labels
from .encoded import Encoded, read_images
from .request import Request
from .splits import file_splits, files_of, kind_of
from .tar import SUFFIXES, Archives, members
from .walk import Walk, suffixes

INFO = ("info.json", "_info.json")  # timm reads both
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MAX_SHARDS = 1 << 20
PLAIN = ("data", "shards", "wds")  # folders of shards whose file names indicate the splits
LABEL, TABLE = "cls", "json"  # the usual keys of a label, and of a JSON object with one
LABEL_BYTES = 1 << 20  # largest file with a label


def is_braces(path: Path) -> bool:
    """Whether a path stands for several shards: `name-{000000..000012}.tar`."""
    return path.suffix == ".tar" and BRACES.search(path.name) is not None


def detect(path: Path) -> bool:
    if is_braces(path) or (path.is_file() and path.name.lower().endswith((".tar", *SUFFIXES))):
        return True
    if not path.is_dir():
        return False
    if any(_splits_of(read_json(path / name)) for name in INFO):
        return True
    if _archives(path):
        return not Walk(path).entries(path)[0]  # archives beside class folders are what these were unpacked from
    inside = [folder for folder in path.iterdir() if folder.is_dir()]
    named = [folder for folder in inside if kind_of(folder)] or [one for one in inside if one.name.lower() in PLAIN]
    return any(_archives(folder) for folder in named)


def _archives(folder: Path) -> bool:
    return any(file.name.lower().endswith((".tar", *SUFFIXES)) for file in folder.iterdir())


def read(request: Request) -> Dataset:
    """Reads images from files `NAME.jpg`, `NAME.png`, `NAME.webp`, ..., and labels from `NAME.cls`, a number in ASCII,
    or `NAME.json`, an object with the number or name in its field `label`.

    `input_key` and `target_key` name other suffixes, several joined by ";"; `target_key` or `label_field` may also be a
    field of the object. Class names come from `classes` in `info.json`; otherwise they are numbers, or the names in the
    objects.

    Raises:
        InputError: there are no shards, a shard is compressed or damaged, or a sample has no image or label, or
            several.
    """
    path, split = request.path, request.split
    left: Counter[str] = Counter()
    shards, info = _shards(request, left)
    about = info.get("classes")
    known = tuple(about) if isinstance(about, list) and all(isinstance(name, str) for name in about) else ()
    index = _index(shards, request, left)
    labels, classes = named_labels(index.labels, known, f"{path}, labels")
    shape = info.get("image_shape")
    channels = 1 if isinstance(shape, list) and shape[2:] == [1] else 3
    archives, at = Archives(shards), index.images
    encoded = Encoded(
        len(at),
        lambda i: f"{shards[at[i, 0]]}, {index.names[i]}",
        lambda i: archives.read(int(at[i, 0]), int(at[i, 1]), int(at[i, 2])),
        channels,
    )
    images, labels = read_images(encoded, labels, request, left)
    mine = _splits_of(info).get(split, {})
    manifest = mine.get("manifest") if isinstance(mine.get("manifest"), dict) else {}
    name = info.get("name") if isinstance(info.get("name"), str) else BRACES.sub("", path.stem).strip("-_.")
    return Dataset(images, labels, classes, name or path.name, split, manifest or {}, dict(left))


def _splits_of(info: dict[str, Any]) -> dict[str, Any]:
    splits = info.get("splits")
    if not isinstance(splits, dict):
        return {}
    return {
        name: one for name, one in splits.items() if isinstance(one, dict) and isinstance(one.get("filenames"), list)
    }


def _shards(request: Request, left: Counter[str]) -> tuple[list[Path], dict[str, Any]]:
    """The archives of a split, and the content of the `info.json` beside them."""
    path, split, sole = request.path, request.split, request.sole
    if not path.is_dir():
        if split == "test" and not sole:
            raise MissingSplit(f"{path} holds the training images: give the test images with --test-data")
        shards = _expanded(path)
        if path.name.lower().endswith(SUFFIXES):
            raise _compressed(path)
        return shards, next((info for name in INFO if (info := read_json(path.parent / name))), {})
    info = next((info for name in INFO if (info := read_json(path / name))), {})
    splits = _splits_of(info)
    if splits:
        found: dict[str, list[Path]] = {}
        for name, one in splits.items():
            kind = kind_of(Path(name)) or ""
            found[kind] = found.get(kind, []) + [_inside(path, file) for file in one["filenames"]]
    else:
        found = file_splits(path, ".tar")
    if not found:
        packed = [file for file in sorted(path.rglob("*")) if file.name.lower().endswith(SUFFIXES)]
        raise _compressed(packed[0]) if packed else InputError(f"{path} has no .tar in it: point at a folder of shards")
    shards = files_of(path, found, split, sole, left)
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"there is no {shard}, which {path} names as a shard: get it again")
    return shards, info


def _compressed(path: Path) -> InputError:
    return InputError(f"{path} is compressed, so its images cannot be located: unpack it to a .tar first")


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{folder} names the shard {name!r} in its info.json, which is outside: repair it")
    return folder / name


def _expanded(path: Path) -> list[Path]:
    if path.exists() or not is_braces(path):
        return [path]
    paths = [path.name]
    while match := BRACES.search(paths[0]):
        first, last = match.groups()
        count = (int(last) - int(first) + 1) * len(paths)
        if not 0 < count <= MAX_SHARDS:
            raise InputError(f"{path} stands for {count:,} shards: check the numbers in braces")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        paths = [BRACES.sub(number, name, count=1) for name in paths for number in numbers]
    shards = [path.with_name(name) for name in paths]
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"there is no {shard}, which {path.name} stands for: check the numbers in braces")
    return shards


@dataclass(frozen=True)
class _Index:
    """For each sample: its name, the (shard, offset, size) of its image, and its label."""

    names: list[str]
    images: np.ndarray
    labels: list[int | str]


def _index(shards: list[Path], request: Request, left: Counter[str]) -> _Index:
    pictures = {suffix[1:] for suffix in suffixes()}
    inputs = request.input_key.lower().split(";") if request.input_key else None
    target = request.target_key.lower() if request.target_key else None
    names: list[str] = []
    images: list[tuple[int, int, int]] = []
    labels: list[int | str] = []
    for number, shard in enumerate(shards):
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        for name, offset, size in members(shard):
            base, key = _split_name(name)
            if not base:
                left["members of archives without a suffix, or hidden"] += 1
                continue
            sample = samples.setdefault(base, {})
            if key in sample:
                raise InputError(f"{shard} has two members {name}: keep one")
            sample[key] = (offset, size)
        with shard.open("rb") as file:
            for base, sample in samples.items():
                own = [key for key in inputs if key in sample] if inputs else [key for key in sample if key in pictures]
                if not own:
                    left["samples without an image"] += 1
                    continue
                if len(own) > 1 and not inputs:
                    raise InputError(f"{shard} has {', '.join(own)} of {base}: say which is the image with --input-key")
                labels.append(_label(file, shard, base, sample, target, request))
                images.append((number, *sample[own[0]]))
                names.append(f"{base}.{own[0]}")
        if request.progress:
            request.progress("index", number + 1, len(shards))
    if not images:
        what = f"called {request.input_key}" if inputs else "of a known suffix"
        raise InputError(f"{request.path} has no image {what} in its shards: name the suffix with --input-key")
    return _Index(names, np.array(images, np.int64), labels)


def _split_name(name: str) -> tuple[str, str]:
    """Base and key: the parts before and after the first dot in the last part of a path; "" for hidden files."""
    name = name.removeprefix("./")
    folder, slash, last = name.rpartition("/")
    base, dot, key = last.partition(".")
    return (folder + slash + base, key.lower()) if base and dot else ("", "")


def _label(
    file: Any, shard: Path, base: str, sample: dict[str, tuple[int, int]], target: str | None, request: Request
) -> int | str:
    keys = target.split(";") if target else [LABEL]
    key = next((key for key in keys if key in sample), None)
    field = request.label_field or "label"
    if key is None and TABLE in sample:
        key, field = TABLE, request.target_key or field
    if key is None:
        have = ", ".join(sample)
        raise InputError(f"{shard} has no {target or LABEL} of {base}, but {have}: name the label with --target-key")
    offset, size = sample[key]
    where = f"{shard}, {base}.{key}"
    if size > LABEL_BYTES:
        raise InputError(f"{where} has {size:,} bytes, too many for a label: name another with --target-key")
    file.seek(offset)
    text = file.read(size)
    if key.rpartition(".")[2] == TABLE:
        return _field(text, field, where)
    text = text.decode("utf-8", "replace").strip()
    if re.fullmatch(r"\d{1,18}", text):
        return int(text)
    if key == LABEL or not text:
        raise InputError(f"{where} is {text[:40]!r}, not a class number: repair it")
    return str(text)


def _field(text: bytes, field: str, where: str) -> int | str:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON: repair it") from None
    value = content.get(field) if isinstance(content, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        fields = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else "no object"
        raise InputError(f"{where} has no field {field} that is a number or a name ({fields}): say --target-key FIELD")
    return value
