"""The layout of a .beton file, checked as a whole before any image is read.

    header                  24 bytes: version 2, number of fields, page size, number of samples, where the table begins
    fields                  1041 bytes each: kind, name, arguments
    samples                 one row each: mode, width, height and position of the image; the label
    (ours) checksums        CRC-32 of each sample's bytes, uint32; FFCV skips them, as the pages begin after them
    pages                   images, none of which crosses a page border; a page begins at a multiple of the page size
    allocation table        24 bytes per sample: number, position, size in bytes

FFCV trusts all of it: a truncated table, a wrong position or a zeroed page yields wrong images or kills the process.
ulfast writes a `FILE.json` beside the file with classes, origin and the SHA-256 of everything but the pages, so any
damage is found, that of an image when it is first read. Files from other programs have no checksums: their images are
checked by decoding them once.

Source: the format as FFCV 1.0.2 reads it (Leclerc et al., FFCV, CVPR 2023).
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runtime.made import beside_new, read_json
from ...runtime.reading import reading, regular, steady
from ..resize import check_size

FORMAT = "ulfast-beton-1"
VERSION = 2
INT, RGB = 1, 2
JPEG, RAW = 0, 1
MAX_CLASSES = 1 << 20  # a larger label is not a class number
LABEL_NAMES = {"label", "labels", "target", "targets", "class", "y"}
MIN_PAGE, MAX_PAGE = 1 << 21, 1 << 31

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("kind", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
# What a field adds to a sample's row; no other kinds are read.
ROWS = {0: np.dtype("<f8"), INT: np.dtype("<i8"), RGB: IMAGE}


def row_type(kinds: list[int]) -> np.dtype:
    """The row of a sample: its fields in sequence, aligned as in C."""
    return np.dtype([("", ROWS[kind]) for kind in kinds], align=True)


def manifest_path(path: Path) -> Path:
    """`FILE.beton.json`."""
    return path.with_name(path.name + ".json")


@dataclass(frozen=True)
class Beton:
    """A checked .beton file, memory-mapped.

    Attributes:
        path: of the file.
        mode, width, height: (n,) for the images; mode is JPEG or RAW.
        labels: (n,) int64.
        ptr, size: (n,) position and length of each image's bytes in the file.
        crc: (n,) CRC-32 of these bytes, or None in a file from another program.
        image_field, label_field: names of the two fields.
        about: the manifest beside it, {} without one.
        data: (bytes of the file,) uint8.
    """

    path: Path
    mode: np.ndarray
    width: np.ndarray
    height: np.ndarray
    labels: np.ndarray
    ptr: np.ndarray
    size: np.ndarray
    crc: np.ndarray | None
    image_field: str
    label_field: str
    about: dict[str, Any]
    data: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, 3), or None where images differ in size."""
        if (self.width != self.width[0]).any() or (self.height != self.height[0]).any():
            return None
        return int(self.height[0]), int(self.width[0]), 3

    def bytes_of(self, i: int) -> np.ndarray:
        """A view of the stored bytes of image i."""
        return self.data[int(self.ptr[i]) : int(self.ptr[i]) + int(self.size[i])]

    def check(self, i: int) -> None:
        """Checks image i against its checksum, or decodes it where there is none.

        Raises:
            InputError: the file is damaged there.
        """
        data = self.bytes_of(i)
        if self.crc is not None:
            if zlib.crc32(data.data) != self.crc[i]:
                raise self._damaged(i, "its bytes do not match their checksum")
        elif self.mode[i] == JPEG:
            self._decode_jpeg(i)

    def decode(self, i: int) -> np.ndarray:
        """Image i as (H, W, 3) uint8; a view for a raw one.

        Raises:
            InputError: a JPEG that is damaged.
        """
        if self.mode[i] == RAW:
            return self.bytes_of(i).reshape(int(self.height[i]), int(self.width[i]), 3)
        return self._decode_jpeg(i)

    def _decode_jpeg(self, i: int) -> np.ndarray:
        import simplejpeg

        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(self.bytes_of(i))
            if (height, width) != (self.height[i], self.width[i]):
                raise self._damaged(i, f"a JPEG of {width} x {height}, not {self.width[i]} x {self.height[i]}")
            image: np.ndarray = simplejpeg.decode_jpeg(self.bytes_of(i), "RGB")
        except InputError:
            raise
        except ValueError as error:
            raise self._damaged(i, f"no JPEG ({error})") from None
        return image

    def _damaged(self, i: int, what: str) -> InputError:
        return InputError(f"{self.path}: image {i} is damaged, {what}: write the file again")


def open_beton(path: str | os.PathLike[str], *, label_field: str | None = None) -> Beton:
    """Open a .beton file and check everything in it but the images' bytes.

    Args:
        label_field: the field that holds the label, where there are several integer fields (default: the one named
            label, labels, target, class or y).

    Raises:
        InputError: the file is not a .beton file, is truncated, damaged or half written, or lacks an RGB image field or
            an integer field.
    """
    with reading(path, "write it again"):
        return steady(Path(path), lambda: _open(Path(path), label_field))


def _open(path: Path, label_field: str | None) -> Beton:
    def wrong(what: str) -> InputError:
        return InputError(f"{path} is damaged or not a .beton file ({what}): write it again")

    if not path.exists():
        raise InputError(f"there is no file {path}: write one with `ulfast data convert --to beton`")
    total = regular(path).stat().st_size
    if total < HEADER.itemsize:
        raise wrong(f"{total} bytes")
    data = np.memmap(path, np.uint8, "r")
    header = data[: HEADER.itemsize].view(HEADER)[0]
    page, n, table = int(header["page_size"]), int(header["samples"]), int(header["table"])
    if header["version"] != VERSION:
        raise wrong(f"version {header['version']} in the header, {VERSION} is known")
    if page < MIN_PAGE or page > MAX_PAGE or page & (page - 1):
        raise wrong(f"a page size of {page}")
    if not 1 <= int(header["fields"]) <= 64 or n < 1:
        raise wrong(f"{header['fields']} fields, {n} samples")
    at = HEADER.itemsize + int(header["fields"]) * FIELD.itemsize
    if at > total:
        raise wrong("cut in the field table")
    fields = data[HEADER.itemsize : at].view(FIELD)
    kinds, names = fields["kind"].tolist(), [bytes(name).split(b"\0")[0].decode("latin1") for name in fields["name"]]
    if sorted(set(kinds) & {INT, RGB}) != [INT, RGB] or not set(kinds) <= set(ROWS):
        raise InputError(
            f"{path} has fields {', '.join(names)} of the kinds {kinds}: one of RGB images ({RGB}) and one"
            f" of integers ({INT}) are needed, and no others but floats"
        )
    rows = row_type(kinds)
    end = at + n * rows.itemsize
    if end > total or table < end or table > total:
        raise wrong("cut in the sample table" if end > total else f"an allocation table at {table} of {total} bytes")
    if total - table != n * ALLOCATION.itemsize:
        raise wrong(f"an allocation table of {total - table} bytes for {n} images")
    samples, allocated = data[at:end].view(rows), data[table:].view(ALLOCATION)
    about = read_manifest(path)
    crc = None
    waiting = read_json(beside_new(manifest_path(path)))
    if about or waiting:
        stop = end + 4 * n
        own = (total, tables_checksum(data, stop, table)) if stop <= table else (total, "")
        both = [one for one in (about, waiting) if (one.get("bytes"), one.get("tables_sha256")) == own]
        if about and not both:
            raise wrong(f"{total} bytes or tables that {manifest_path(path).name} does not know")
        about = both[0] if both else {}
    if about:
        crc = data[end:stop].copy().view(np.uint32)  # not aligned in the file
    image, label = kinds.index(RGB), _label(path, kinds, names, label_field)
    pictures = samples[f"f{image}"]
    order = np.argsort(allocated["ptr"], kind="stable")
    ptrs, sizes = allocated["ptr"][order], allocated["size"][order]
    ptr = pictures["data_ptr"].copy()
    found = np.searchsorted(ptrs, ptr)
    if (found >= n).any() or (ptrs[np.minimum(found, n - 1)] != ptr).any():
        raise wrong("an image that is in no allocation")
    size = sizes[found]
    with np.errstate(over="ignore"):
        stops = ptrs + sizes
    if (stops < ptrs).any() or ptrs[0] < end or stops.max() > table or (stops[:-1] > ptrs[1:]).any() or not size.all():
        raise wrong("images outside of the pages or over each other")
    mode, width, height = (np.ascontiguousarray(pictures[name]) for name in ("mode", "width", "height"))
    if not np.isin(mode, (JPEG, RAW)).all() or not width.all() or not height.all():
        raise wrong("an image of no known mode or of no size")
    largest = int(np.argmax(width.astype(np.int64) * height))
    check_size(path, int(width[largest]), int(height[largest]))
    if (size[mode == RAW] != 3 * width[mode == RAW].astype(np.uint64) * height[mode == RAW]).any():
        raise wrong("a raw image of another length than its size says")
    labels = samples[f"f{label}"].astype(np.int64)
    if labels.min() < 0 or labels.max() >= (len(about.get("classes") or ()) or MAX_CLASSES):
        raise InputError(
            f"{path}: the field {names[label]} goes from {labels.min()} to {labels.max()}: these are not"
            " class numbers counted from 0; name another field with --label-field, or write the file again"
        )
    return Beton(path, mode, width, height, labels, ptr, size, crc, names[image], names[label], about, data)


def _whole(about: dict[str, Any]) -> bool:
    """Whether the entries of a manifest are of their types."""
    classes, shape, manifest = about.get("classes", []), about.get("image_shape", [1, 1, 3]), about.get("manifest", {})
    return (
        isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and isinstance(shape, list)
        and [type(side) for side in shape] == [int] * 3
        and shape[2] in (1, 3)
        and isinstance(manifest, dict)
        and isinstance(about.get("name", ""), str)
    )


def _label(path: Path, kinds: list[int], names: list[str], wanted: str | None) -> int:
    """The field that holds the label."""
    integers = [i for i, kind in enumerate(kinds) if kind == INT]
    fields = ", ".join(names[i] for i in integers)
    if wanted is not None:
        if found := [i for i in integers if names[i] == wanted]:
            return found[0]
        raise InputError(f"{path} has no integer field called {wanted!r}: it has {fields}")
    called = [i for i in integers if names[i].lower() in LABEL_NAMES]
    if len(integers) == 1:
        return integers[0]
    if len(called) == 1:
        return called[0]
    raise InputError(f"{path} has several integer fields ({fields}): say which is the label with --label-field")


def tables_checksum(data: np.ndarray, stop: int, table: int) -> str:
    """SHA-256 of everything before byte `stop` and everything from `table` on."""
    digest = hashlib.sha256(np.ascontiguousarray(data[:stop]).data)
    digest.update(np.ascontiguousarray(data[table:]).data)
    return digest.hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest beside a .beton file, {} where there is none.

    Raises:
        InputError: a damaged manifest.
    """
    file = manifest_path(path)
    if not file.is_file():
        return {}
    with reading(file, "remove it to read the file without its classes"):
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(about, dict) or about.get("format") != FORMAT or not _whole(about):
        raise InputError(f"{file} is not the manifest of a .beton file: remove it to read the file without its classes")
    return about
