"""A folder that ulfast wrote: memory-mapped, checked before use."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, MissingSplit
from ...runtime.made import read_json
from ...runtime.reading import reading, regular, steady
from ..dataset import CHUNK_BYTES, Dataset
from ..writers.folder import FORMAT
from .request import Request

SAMPLED = 4  # blocks that are checked whenever a set is opened


def detect(path: Path) -> bool:
    return any(_ours(path / part / "manifest.json") for part in ("train", "test", "."))


def _ours(manifest: Path) -> bool:
    """Whether a manifest is from ulfast or too damaged to tell; other programs also use that file name."""
    if not manifest.is_file():
        return False
    about = read_json(manifest)
    return not about or str(about.get("format", "")).startswith("ulfast") or manifest.with_name("images.npy").is_file()


def read(request: Request) -> Dataset:
    """Reads `path/SPLIT`, or `path` itself if it holds one split and `sole` allows any. Images, labels and manifest are
    of one version, even if another process replaces the folder meanwhile.
    """
    return steady(request.path, lambda: _read(request))


def _read(request: Request) -> Dataset:
    path, split, sole = request.path, request.split, request.sole
    folder = path / split
    if not (folder / "manifest.json").is_file():
        others = [path] + ([path / "train"] if sole else [])
        folder = next((other for other in others if _holds(other, split, sole)), folder)
    if not (folder / "manifest.json").is_file():
        raise MissingSplit(
            f"{path} has no {split} images: give them with --test-data, or point --data at another folder"
        )
    for name in ("images.npy", "labels.npy"):
        if not (folder / name).exists():
            raise InputError(f"{folder} is incomplete, {name} is missing: write it again")
    with reading(folder, "it is damaged: write it again"):
        about = json.loads(regular(folder / "manifest.json").read_text(encoding="utf-8"))
        if about.get("format") != FORMAT:
            raise InputError(f"{folder} is of the format {about.get('format')!r}, not {FORMAT!r}: write it again")
        images = np.load(regular(folder / "images.npy"), mmap_mode="r", allow_pickle=False)
        labels = _labels(folder)
        if list(images.shape) != [about["images"], *about["image_shape"]]:
            raise InputError(
                f"{folder}/images.npy has shape {images.shape}, which is not what its manifest says: write it again"
            )
        if about.get("labels_crc32") not in (None, zlib.crc32(labels.data)):
            raise InputError(f"{folder}/labels.npy does not match its checksum: write it again")
        _check_images(folder, images, about, request.verify)
        classes, manifest = about["classes"], about.get("manifest", {})
        if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
            raise InputError(f"{folder}/manifest.json has no list of class names: write it again")
        if not isinstance(manifest, dict):
            raise InputError(f"{folder}/manifest.json does not say how it was made: write it again")
        return Dataset(images, labels, tuple(classes), str(about.get("name") or path.name), split, manifest)


def _check_images(folder: Path, images: np.ndarray, about: dict[str, Any], whole: bool) -> None:
    """Checks images against the checksums in their manifest: all, or `SAMPLED` blocks including the first and last."""
    raw = images.reshape(-1).view(np.uint8)
    if whole:
        digest = hashlib.sha256()
        for begin in range(0, len(raw), CHUNK_BYTES):
            digest.update(np.ascontiguousarray(raw[begin : begin + CHUNK_BYTES]).data)
        if digest.hexdigest() != about.get("images_sha256"):
            raise InputError(f"{folder}/images.npy does not match its checksum: write it again")
    crcs, block = about.get("images_crc32"), about.get("block")
    if crcs is None or whole:  # ulfast 0.1.0 wrote no CRCs
        return
    if not isinstance(block, int) or block < 1 or len(crcs) != max(1, -(-len(raw) // block)):
        raise ValueError("the checksums are for another number of images")
    count = min(SAMPLED, len(crcs))
    drawn = np.random.default_rng().choice(len(crcs), count, replace=False).tolist()
    for i in {0, len(crcs) - 1, *drawn[: max(0, count - 2)]}:
        if zlib.crc32(np.ascontiguousarray(raw[i * block : (i + 1) * block]).data) != crcs[i]:
            raise InputError(f"{folder}/images.npy does not match its checksum: write it again")


def _labels(folder: Path) -> np.ndarray:
    """Maps the file first: a header may declare more than the file has, and its word must not allocate memory."""
    labels = np.load(regular(folder / "labels.npy"), mmap_mode="r", allow_pickle=False)
    if labels.dtype.kind not in "iu":
        raise InputError(f"{folder}/labels.npy holds {labels.dtype}, not whole numbers: write it again")
    return np.array(labels, np.int64)


def _holds(folder: Path, split: str, sole: bool) -> bool:
    try:
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return sole or about.get("split") == split
