"""`Dataset`: images, labels and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from ..errors import InputError
from .lazy import LazyImages

# Bytes hashed or scanned at a time, so that a memory-mapped set is never in memory as a whole.
CHUNK_BYTES = 64 << 20
ITERATED_BYTES = 4 << 20  # of images decoded at a time in an iteration over a set
HASHED_BYTES = 4 << 30  # of images up to which a fingerprint covers all
PROBES = 64  # images that the fingerprint of a set not yet decoded looks at


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in memory, memory-mapped, or decoded on demand (`ulfast.data.lazy.LazyImages`).

    It is a map-style dataset, as `torch.utils.data.DataLoader` expects: ``dataset[i]`` is an image, (H, W, C) uint8,
    and its label, an int. Slices, index arrays and masks give a `Dataset`. Two sets are equal if their images, labels
    and classes are, whatever their names.

    Attributes:
        images: (n, H, W, C) uint8, C-contiguous.
        labels: (n,) int64 in [0, number of classes).
        classes: a name for each class.
        name: what it is called in reports ("cifar10", a folder's name).
        split: "train" or "test".
        manifest: for a poisoned set, the method, its parameters, the seed and the source; {} for raw data.
        notes: what the reader left out or changed, counted by kind.

    Raises:
        InputError: the arrays do not fit together, labels are out of range, or two classes have the same name.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str = ""
    split: str = "train"
    manifest: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"data set {self.name!r}" if self.name else "the data set"
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise InputError(f"{where}: images must be (n, H, W, C) uint8, got {self.images.shape} {self.images.dtype}")
        if self.images.shape[3] not in (1, 3):
            raise InputError(f"{where}: images must have 1 or 3 channels, got {self.images.shape[3]}")
        if self.labels.shape != (len(self.images),):
            raise InputError(f"{where}: {len(self.images)} images but labels of shape {self.labels.shape}")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise InputError(f"{where} has two classes called {twice!r}: rename one")
        if self.labels.dtype != np.int64:
            object.__setattr__(self, "labels", self.labels.astype(np.int64))
        if len(self.labels):
            low, high = int(self.labels.min()), int(self.labels.max())
            if low < 0 or high >= len(self.classes):
                bad = int(np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))[0])
                raise InputError(
                    f"{where}: label {int(self.labels[bad])} of image {bad} is out of range:"
                    f" {len(self.classes)} classes, so labels go from 0 to {len(self.classes) - 1}"
                )
        if not self.images.flags.c_contiguous:
            object.__setattr__(self, "images", np.ascontiguousarray(self.images))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, key: int | np.integer[Any]) -> tuple[np.ndarray, int]: ...

    @overload
    def __getitem__(self, key: slice | Sequence[int] | np.ndarray) -> Dataset: ...

    def __getitem__(self, key: Any) -> tuple[np.ndarray, int] | Dataset:
        """Image i, (H, W, C) uint8, and its label; a `Dataset` for a slice, indices or an (n,) bool mask.

        Raises:
            IndexError: there is no such image.
        """
        if isinstance(key, (int, np.integer)) or (getattr(key, "ndim", None) == 0 and hasattr(key, "__index__")):
            i = int(key)
            if not -len(self) <= i < len(self):
                raise IndexError(f"image {i} of {len(self)}")
            i %= len(self)
            return self.images[i], int(self.labels[i])
        if isinstance(key, slice):
            return self.subset(np.arange(len(self))[key])
        index = np.asarray(key)
        if index.dtype != bool and index.size == 0:
            index = index.astype(np.int64)
        if index.ndim != 1 or index.dtype.kind not in "iub":
            raise TypeError(f"a data set is indexed by a number, a slice, an array or a mask, not by {key!r}")
        return self.subset(np.arange(len(self))[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Several images with their labels, decoded together, as a DataLoader fetches them."""
        rows = np.asarray(indices, np.int64)
        return list(zip(self.images[rows], self.labels[rows].tolist(), strict=True))

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        """Each image with its label, decoded piece by piece."""
        for begin, stop in chunks(self.images, ITERATED_BYTES):
            yield from zip(self.images[begin:stop], self.labels[begin:stop].tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Dataset):
            return NotImplemented
        if self is other:
            return True
        if self.classes != other.classes or self.images.shape != other.images.shape:
            return False
        return np.array_equal(self.labels, other.labels) and all(
            np.array_equal(self.images[begin:stop], other.images[begin:stop]) for begin, stop in chunks(self.images)
        )

    def __hash__(self) -> int:
        return hash((self.images.shape, self.classes, np.ascontiguousarray(self.labels).tobytes()))

    def __repr__(self) -> str:
        height, width, channels = self.image_shape
        poison = f", poisoned by {self.manifest['method']}" if self.manifest.get("method") else ""
        return (
            f"Dataset({self.name or 'unnamed'} {self.split}: {len(self):,} images of"
            f" {height} x {width} x {channels}, {self.num_classes} classes{poison})"
        )

    def subset(self, indices: np.ndarray) -> Dataset:
        """The images at `indices`, in that order: a copy, or still undecoded if this set is."""
        images = self.images.take(indices) if isinstance(self.images, LazyImages) else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices])

    def balanced(self, limit: int, seed: int = 0) -> Dataset:
        """A class-balanced subset of `limit` images drawn by `seed`, in the original order.

        Classes with too few images give all of them; the others share the rest.

        Raises:
            InputError: the limit is below the number of classes.
        """
        if limit >= len(self):
            return self
        return self.subset(balanced_indices(self.labels, self.num_classes, limit, seed))

    def to_hf(self) -> Any:
        """A Hugging Face `datasets.Dataset` with the columns `image` (PNG files) and `label` (which names the classes).

        Raises:
            InputError: `datasets` is not installed.
        """
        try:
            import datasets
        except ImportError:
            raise InputError("to_hf makes a Hugging Face dataset: pip install datasets") from None
        from .png import pngs

        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(self.classes)))
        blocks = (self.images[begin:stop] for begin, stop in chunks(self.images, ITERATED_BYTES))
        images = [{"bytes": one, "path": None} for one in pngs(blocks)]
        return datasets.Dataset.from_dict({"image": images, "label": self.labels.tolist()}, features=features)

    def fingerprint(self) -> str:
        """A short hash of shape, classes, labels and images; only a sample if images are undecoded or very many."""
        digest = hashlib.blake2b(repr((self.images.shape, self.classes)).encode("utf-8", "backslashreplace"))
        digest.update(np.ascontiguousarray(self.labels).data)
        lazy = isinstance(self.images, LazyImages)
        if lazy or self.images.size > HASHED_BYTES:
            count = min(len(self), PROBES if lazy else 64 * PROBES)
            for row in np.unique(np.linspace(0, len(self) - 1, count).astype(int)):
                digest.update(np.ascontiguousarray(self.images[int(row)]).data)
        else:
            for begin, stop in chunks(self.images):
                digest.update(np.ascontiguousarray(self.images[begin:stop]).data)
        return digest.hexdigest()[:16]

    def checksum(self, also: Callable[[np.ndarray], None] | None = None) -> str:
        """SHA-256 over shape, images and labels. `also` is called with each piece of the images, (m, H, W, C), on the
        way, since reading images that are decoded on demand takes most of the time.
        """
        digest = hashlib.sha256(str(self.images.shape).encode())
        for begin, stop in chunks(self.images):
            piece = np.ascontiguousarray(self.images[begin:stop])
            digest.update(piece.data)
            if also is not None:
                also(piece)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


def chunks(images: np.ndarray, size: int = CHUNK_BYTES) -> list[tuple[int, int]]:
    """[begin, stop) ranges of images of about `size` bytes each."""
    rows = max(1, size // max(1, int(np.prod(images.shape[1:])) * images.itemsize))
    return [(begin, min(begin + rows, len(images))) for begin in range(0, len(images), rows)]


def balanced_indices(labels: np.ndarray, num_classes: int, limit: int, seed: int) -> np.ndarray:
    """Sorted indices of `limit` images, spread over the classes as evenly as their sizes allow."""
    if limit < num_classes:
        raise InputError(f"a limit of {limit} is less than one image for each of {num_classes} classes: give more")
    generator = np.random.Generator(np.random.Philox(seed))
    members = [generator.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)]
    sizes = np.array([len(rows) for rows in members])
    limit = min(limit, len(labels))
    # The highest level to which all classes can be filled; the rest goes, one each, to the first classes with more.
    level = max(k for k in range(int(sizes.max()) + 1) if np.minimum(sizes, k).sum() <= limit)
    take = np.minimum(sizes, level)
    take[np.flatnonzero(sizes > level)[: limit - int(take.sum())]] += 1
    return np.sort(np.concatenate([rows[:count] for rows, count in zip(members, take, strict=True)]))
