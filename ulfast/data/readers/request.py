"""The request passed to a reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...runtime.progress import Progress
from ..dataset import balanced_indices


@dataclass(frozen=True)
class Request:
    """A request for a split of a data set on disk. A reader uses the attributes that concern its layout.

    Attributes:
        path: file or folder.
        split: "train" or "test".
        sole: whether any split will do, because the path was given for this split alone (--test-data).
        resize: side in pixels to which images are resized, or None.
        stream: whether images are decoded on demand; None: decided by their size.
        skip_damaged: leave out images that cannot be read, instead of an error.
        label_field: the field that holds the label, in a .beton file with several integer fields or in a shard's .json.
        input_key, target_key: what holds the images and the labels, where a file has several candidates: a column of a
            table, an array of an archive, the suffix of a member of a shard.
        limit, seed: the size of a class-balanced subset, and what draws it, where not all images are wanted.
        verify: check everything, not just a sample, against the checksums, if the layout has them.
        progress: called with the state of the work.
    """

    path: Path
    split: str
    sole: bool = False
    resize: int | None = None
    stream: bool | None = None
    skip_damaged: bool = False
    label_field: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    progress: Progress | None = None
    verify: bool = False
    limit: int | None = None
    seed: int = 0

    def chosen(self, labels: np.ndarray) -> np.ndarray | None:
        """Which images `limit` asks for, None for all: those of `Dataset.balanced`, so that a reader decodes no
        others.

        Args:
            labels: (n,) int, the classes of all images.

        Raises:
            InputError: the limit is below the number of classes.
        """
        if self.limit is None or self.split != "train" or self.limit >= len(labels):
            return None
        return balanced_indices(labels, int(labels.max()) + 1, self.limit, self.seed)
