"""Recognises what ulfast made: only that is ever replaced, and never a source of the command."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from .reading import said, shown

MARKER, EXPORT = "ulfast.json", "ulfast-export-1"  # in a folder made for other programs; beside a file FILE.ulfast.json
DATASET = {"train", "test", "poison.png", "manifest.json", "images.npy", "labels.npy", MARKER}
SPLIT = {"images.npy", "labels.npy", "manifest.json"}
RUN = {"method", "model", "recipe", "data"}  # keys of a run's config.json
SIGNATURE = "made with ulfast"  # in pictures and pages


def expand(path: str | os.PathLike[str]) -> Path:
    """A path with `~` and variables expanded as in a shell; a path that exists as written is kept.

    Raises:
        InputError: a variable is not set, a name is longer than the file system takes, or it has a null character.
    """
    text = found = os.fspath(path)
    if (text.startswith("~") or "$" in text) and not os.path.lexists(text):
        found = os.path.expandvars(os.path.expanduser(text))
        if found == text and "$" in text:
            raise InputError(f"{text}: a variable in it is not set, or it is not a path: check it")
    try:
        os.lstat(found)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return Path(found)  # it may be missing
        raise InputError(f"{shown(text)} cannot be a path ({said(error)}): check it") from None
    return Path(found)


def marker_of(path: Path) -> Path:
    """The file that marks a file or folder as made by ulfast."""
    return path / MARKER if path.is_dir() else path.with_name(path.name + "." + MARKER)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is none."""
    if not path.is_file():  # a pipe might never end
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def beside_new(beside: Path) -> Path:
    """The name of a new JSON `beside` a file: it is written before the file, so that a kill leaves both together."""
    return beside.with_name(beside.name + ".new")


def read_marker(path: Path) -> dict[str, Any]:
    """What ulfast wrote about an exported file or folder; {} if nothing, or if it describes another file."""
    marker = marker_of(path)
    about = read_json(marker)
    if about.get("format") != EXPORT or path.is_dir():
        return about if about.get("format") == EXPORT else {}
    own = digest(path)
    for one in (about, read_json(beside_new(marker))):
        if one.get("sha256") == own:
            return one
    return {}


def digest(path: Path, kind: str = "sha256") -> str:
    """SHA-256 of a file, or another checksum that hashlib has."""
    found = hashlib.new(kind)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def stranger(path: Path) -> str:
    """Why `path` must not be replaced: the part that ulfast did not make; "" if ulfast made all of it, or it is empty.

    A folder qualifies by its manifest and by holding nothing but what ulfast writes there.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return "it is not a file"
    if not path.stat().st_size:
        return ""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if suffix == ".safetensors":
        mine = b"ulfast-basis-1" in head or b"ulfast-generator-1" in head
        return "" if mine else "it is not a basis or generator of ulfast"
    if suffix in (".png", ".svg", ".pdf", ".html", ".htm"):
        return "" if _signed(path, head) else "it is not a picture or page of ulfast"
    if suffix == ".beton":
        mine = read_json(path.with_name(path.name + ".json")).get("format") == "ulfast-beton-1"
        return "" if mine else "it is not a file of ulfast"
    if suffix == ".json" and b"ulfast" in head:
        return ""
    return "" if read_marker(path) else "it is not a file of ulfast, or was changed"


def _signed(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:  # a PDF has it at the end
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        return SIGNATURE.encode() in (head + file.read()).lower()


def _folder(path: Path) -> str:
    entries = {entry.name for entry in path.iterdir()}
    if not entries:
        return ""
    if any(
        str(read_json(path / part / "manifest.json").get("format", "")).startswith("ulfast-")
        for part in ("train", "test", ".")
    ):
        known = DATASET
    elif read_json(path / MARKER).get("format") == EXPORT:
        known = {*read_json(path / MARKER).get("entries", ()), MARKER}
    elif set(read_json(path / "config.json")) >= RUN:
        return ""
    else:
        return "it has no manifest of ulfast"
    other = sorted(entries - known)
    if known is DATASET:
        for part in ("train", "test"):
            if (path / part).is_dir():
                other += sorted(f"{part}/{one.name}" for one in (path / part).iterdir() if one.name not in SPLIT)
    if other:
        return f"it holds {other[0]}, which ulfast did not write"
    count = read_json(path / MARKER).get("files")
    if isinstance(count, int) and count != count_files(path) - 1:
        return f"it holds {count_files(path) - 1:,} files and ulfast wrote {count:,}"
    return ""


def count_files(path: Path) -> int:
    """Number of files in a folder, at any depth."""
    return sum(len(files) for _, _, files in os.walk(path))


def check_replace(path: Path) -> None:
    """Raises InputError if `path` exists and was not made by ulfast."""
    if os.path.lexists(path) and (why := stranger(path)):
        raise InputError(f"{path}: {why}; --overwrite replaces only what ulfast made: choose another --out")


def check_apart(path: Path, sources: Iterable[str | os.PathLike[str] | None]) -> None:
    """Raises InputError if the output is a source of the command, lies in one, or contains one."""
    out = Path(os.path.realpath(expand(path)))
    here = Path.cwd().resolve()
    if out == here or out in here.parents:
        raise InputError(f"--out {path} is the current folder or above it: give a folder of its own")
    for source in sources:
        if source is None or not os.path.exists(given := expand(source)):
            continue
        what = Path(os.path.realpath(given))
        if out == what or out in what.parents or (what in out.parents and what.is_dir() and _reads(what, out)):
            raise InputError(f"--out {path} is what the command reads ({source}): choose another --out")


def _reads(source: Path, out: Path) -> bool:
    """Whether a new file or folder inside a source would be read as part of it."""
    return source not in Path.cwd().resolve().parents and source != Path.cwd().resolve() and out.parent != source
