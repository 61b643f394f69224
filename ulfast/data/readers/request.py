"""What a reader is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.progress import Progress


@dataclass(frozen=True)
class Request:
    """A split of a data set on disk. A reader uses what concerns its layout.

    Attributes:
        path: file or folder.
        split: "train" or "test".
        sole: whether any split will do: the path was given for this split alone (--test-data).
        resize: side in pixels to which images of several sizes are brought, or None.
        stream: whether images are decoded on demand; None: by their size.
        skip_damaged: leave out images that cannot be read, instead of an error.
        label_field: of a .beton file with several integer fields, or of a shard's .json, which is the label.
        input_key, target_key: what holds the images and the labels, where a file has several things that might: a
            column of a table, an array of an archive, the suffix of a member of a shard.
        verify: compare everything with its checksums, where the layout has some, not a sample.
        progress: told how far it is.
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
