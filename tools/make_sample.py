"""Rebuilds the embedded sample from the full CIFAR-10: the first 500 training and 100 test images of each class.

    python tools/make_sample.py [--data cifar10]

Writes one lossless WebP mosaic per split (50 or 20 images per row, so that no side exceeds the format's 16,383 px) and
one JSON file with the labels. Everything is bit-exact and in the official order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ulfast.data import load_dataset
from ulfast.data.dataset import Dataset

TARGET = Path(__file__).parent.parent / "ulfast" / "data" / "sample"
PER_CLASS = {"train": 500, "test": 100}
COLUMNS = {"train": 50, "test": 20}


def first_of_each_class(dataset: Dataset, count: int) -> np.ndarray:
    rows = [np.flatnonzero(dataset.labels == c)[:count] for c in range(dataset.num_classes)]
    return np.sort(np.concatenate(rows))


def mosaic(images: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (n, H, W, C) to one picture, in reading order."""
    n, height, width, channels = images.shape
    grid = images.reshape(n // columns, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(n // columns * height, columns * width, channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10", help="where the full CIFAR-10 is")
    source = parser.parse_args().data
    about: dict[str, object] = {}
    for split, count in PER_CLASS.items():
        full = load_dataset(source, split=split)
        part = full.subset(first_of_each_class(full, count))
        Image.fromarray(mosaic(part.images, COLUMNS[split])).save(
            TARGET / f"{split}.webp", lossless=True, quality=100, method=6, exact=True
        )
        about[split] = {"columns": COLUMNS[split], "sha256": part.checksum(), "labels": part.labels.tolist()}
        about["classes"] = list(full.classes)
        print(f"{split}: {len(part)} images, {(TARGET / f'{split}.webp').stat().st_size:,} bytes")
    (TARGET / "labels.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
