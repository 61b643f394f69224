"""Label tables beside a flat folder of images: Tiny ImageNet's annotations, Kaggle's `.csv`, `FILE CLASS` lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection
from pathlib import Path

from ...errors import InputError

LARGEST = 64 << 20  # bytes of a label file
# A competition's sample submission names every test image, with made-up labels.
NO_LABELS = re.compile(r"submission|readme|license", re.IGNORECASE)


def label_files(folders: list[Path]) -> list[Path]:
    """The candidates for label files in some folders."""
    found = [file for folder in folders for file in sorted(folder.iterdir())]
    return [
        file
        for file in found
        if file.suffix.lower() in (".txt", ".csv", ".tsv")
        and file.name[0] != "."
        and not NO_LABELS.search(file.name)
        and file.is_file()
        and file.stat().st_size <= LARGEST
    ]


def labels_of(images: list[Path], files: list[Path], known: Collection[str]) -> tuple[list[str], Path] | None:
    """The class name of each image and the file that gives it; None if no file names every image.

    Args:
        images: the images of one folder.
        files: label files with one line per image: its name (with or without suffix) first, its class second.
        known: class names, if known; other words are then not labels.

    Raises:
        InputError: a file names all images but also unknown classes, or two files differ.
    """
    stems = {image.stem: image for image in images}
    if len(stems) < len(images):
        stems = {}
    names = {image.name: image for image in images}
    result: tuple[list[str], Path] | None = None
    for file in files:
        found: dict[Path, str] = {}
        for first, second in _pairs(file):
            base = re.split(r"[\\/]", first)[-1]
            image = names.get(base) or stems.get(base)
            if image is None:
                continue
            label = second if second in known else second.split()[0] if second.split() else ""
            if found.setdefault(image, label) != label:
                raise InputError(f"{file} gives {base} two classes, {found[image]} and {label}: repair it")
        if len(found) < len(images):
            continue
        if known and (other := sorted(set(found.values()) - set(known))):
            raise InputError(
                f"{file} names the class {other[0]!r}, which is not a class folder of the training images"
                f" ({', '.join(sorted(known)[:3])}, ...): give a file with their names"
            )
        labels = [found[image] for image in images]
        if result is not None and result[0] != labels:
            raise InputError(f"{result[1]} and {file} give the same images other classes: remove the wrong one")
        result = result or (labels, file)
    return result


def _pairs(file: Path) -> list[tuple[str, str]]:
    """The first two columns of a table separated by tabs, commas, semicolons or blanks."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    sample = next((line for line in lines if line.strip()), "")
    mark = next((mark for mark in "\t,;" if mark in sample), None)
    rows = csv.reader(lines, delimiter=mark) if mark else (line.split(None, 1) for line in lines)
    try:
        return [(row[0].strip(), row[1].strip()) for row in rows if len(row) > 1]
    except csv.Error:
        return []
