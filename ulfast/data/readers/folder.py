"""A folder that ulfast wrote: memory-mapped, checked before use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.made import read_json
from ..dataset import Dataset
from ..writers.folder import FORMAT
from .request import Request


def detect(path: Path) -> bool:
    return any(_ours(path / part / "manifest.json") for part in ("train", "test", "."))


def _ours(manifest: Path) -> bool:
    """Whether a manifest is one of ulfast, or too damaged to tell; other programs have files of that name too."""
    if not manifest.is_file():
        return False
    about = read_json(manifest)
    return not about or str(about.get("format", "")).startswith("ulfast") or manifest.with_name("images.npy").is_file()


def read(request: Request) -> Dataset:
    """`path/SPLIT`, or `path` itself where it holds one split and `sole` allows any."""
    path, split, sole = request.path, request.split, request.sole
    folder = path / split
    if not (folder / "manifest.json").is_file():
        others = [path] + ([path / "train"] if sole else [])
        folder = next((other for other in others if _holds(other, split, sole)), folder)
    if not (folder / "manifest.json").is_file():
        raise MissingSplit(
            f"{path} has no {split} images: give them with --test-data, or point --data at another folder"
        )
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if about.get("format") != FORMAT:
            raise InputError(f"{folder} is of the format {about.get('format')!r}, not {FORMAT!r}: write it again")
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{folder} is incomplete, {Path(error.filename).name} is missing: write it again") from None
    except (ValueError, json.JSONDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is damaged ({error}): write it again") from None
    if list(images.shape) != [about["images"], *about["image_shape"]]:
        raise InputError(f"{folder}/images.npy has shape {images.shape}, not what its manifest says: write it again")
    name = about.get("name") or path.name
    return Dataset(images, labels, tuple(about["classes"]), name, split, about.get("manifest", {}))


def _holds(folder: Path, split: str, sole: bool) -> bool:
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return sole or about.get("split") == split
