"""A data set of photographs with more classes: every class in two or four orientations, each a separate class.

    python experiments/orientations.py FOLDER [--turns 4] [--data cifar10] [--limit 10000]

The orientation of each image is drawn from the seed; test images are turned as well. With four, a mirrored image of one
class looks like one of another: train without flips.
"""

from __future__ import annotations

import argparse

import numpy as np

import ulfast
from ulfast.data import Dataset, write_dataset


def oriented(data: Dataset, turns: int, seed: int = 0) -> Dataset:
    """`turns`, 2 or 4, times as many classes; square images."""
    drawn = np.random.Generator(np.random.Philox(seed)).integers(0, turns, len(data))
    images = np.stack([np.rot90(image, turn * 4 // turns) for image, turn in zip(data.images, drawn, strict=True)])
    classes = tuple(f"{name}, {360 // turns * turn} degrees" for name in data.classes for turn in range(turns))
    return Dataset(images, data.labels * turns + drawn, classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--turns", type=int, choices=(2, 4), default=4)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--limit", type=int, default=10_000)
    options = parser.parse_args()
    train = ulfast.load_dataset(options.data, limit=options.limit)
    test = ulfast.load_dataset(options.data, split="test")
    write_dataset(options.folder, oriented(train, options.turns), oriented(test, options.turns, 1))


if __name__ == "__main__":
    main()
