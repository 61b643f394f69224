"""`poison`: a clean data set in, a poisoned one out, in memory or streamed to disk."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import ops
from ..data.classes import aligned, matched
from ..data.dataset import Dataset, chunks
from ..data.lazy import LazyImages
from ..data.writers.folder import SplitWriter
from ..data.writers.pieces import Piece
from ..data.writers.resumable import RowWriter
from ..data.writers.wds import write_wds
from ..errors import InputError
from ..ops.state import ordinary
from ..parameters import with_parameters
from ..runtime.devices import same_generators
from ..runtime.progress import Progress
from ..version import __version__
from .base import Perturb, Workplace
from .labels import ASSIGNMENTS, class_numbers, driving, shuffled_labels
from .registry import get_poison
from .statistics import PerturbationStatistics

# Bytes of clean images per call of a generator: fixed memory but few calls, since waking and joining two threads that
# sleep between parallel regions costs 0.4 ms each (lsp on CIFAR-10: 46 ms in chunks of 3 MB, 28 ms in chunks of 15 MB).
CHUNK_BYTES = 15 << 20


class Poisoning:
    """A poison bound to a data set; iterate over it once for (begin, stop, poisoned images).

    The arguments are those of `poison`, and `work`, where a poison that trains a network keeps its state (default: a
    temporary folder). `manifest()` is complete after the pass.
    """

    def __init__(
        self,
        dataset: Dataset,
        method: str,
        *,
        seed: int = 0,
        rate: float = 1.0,
        classes: Sequence[int | str] | str | None = None,
        labels: Any = None,
        assign: str = "class",
        work: Workplace | None = None,
        **parameters: Any,
    ) -> None:
        if not 0 <= rate <= 1:
            raise InputError(f"rate must be between 0 and 1, got {rate:g}")
        if dataset.num_classes < 2:
            raise InputError("a poison needs at least two classes")
        self.name, plain = get_poison(method)
        given = {key: value for key, value in parameters.items() if value is not None}
        self.poison = with_parameters(plain, self.name, given)
        self.dataset, self.seed, self.rate, self.work = dataset, seed, rate, work or Workplace()
        self._perturb: Perturb | None = None
        self._chosen = class_numbers(dataset, classes)
        self._about: dict[str, Any] | None = None
        self.driver = dataset
        if labels is not None:
            self.driver, self._about = driving(dataset, labels, seed)
        self._assign = assign
        if assign not in ASSIGNMENTS:
            raise InputError(f"assign must be one of {', '.join(ASSIGNMENTS)}, got {assign!r}")
        if assign == "random" and not self.poison.by_class:
            raise InputError(f"{self.name} finds noise for single images, not for classes: leave --assign random out")
        if self.work.surrogate_data is not None:
            if not self.poison.clean_surrogate:
                raise InputError(f"{self.name} trains no network on clean images: leave --surrogate-data out")
            names = ("the images to poison", "the surrogate's images")
            self.work.surrogate_data = matched(self.driver, self.work.surrogate_data, names=names)
        self._labels = self._assigned(self.driver.labels)
        self.statistics = PerturbationStatistics()

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        for begin, stop, out, _ in self.over(self.pieces()):
            yield begin, stop, out

    def pieces(self) -> list[tuple[int, int]]:
        """The images divided into ranges, which do not depend on the number of processes."""
        return chunks(self.dataset.images, CHUNK_BYTES)

    def over(self, pieces: list[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray, dict[str, Any]]]:
        """Yields (begin, stop, poisoned images, their `PerturbationStatistics.record`) for some ranges."""
        self._prepared()  # by all processes together, including those without a range
        chosen = self.mask
        for begin, stop in pieces:
            clean, out = self.block(begin, stop)
            one = PerturbationStatistics()
            one.add(clean, out, None if chosen is None else chosen[begin:stop])
            self.statistics.merge(one.record())
            yield begin, stop, out, one.record()

    def block(self, begin: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The images [begin, stop), (n, H, W, C) uint8, clean and poisoned."""
        chosen = self.mask
        clean = np.ascontiguousarray(self.dataset.images[begin:stop])
        out = self._prepared()(begin, clean, self._labels[begin:stop])
        return clean, out if chosen is None else np.where(chosen[begin:stop, None, None, None], out, clean)

    def _prepared(self) -> Perturb:
        if self._perturb is None:
            self._perturb = self.poison.prepare(self.driver, self.seed, self.work)
        return self._perturb

    def _assigned(self, labels: np.ndarray) -> np.ndarray:
        return labels if self._assign == "class" else shuffled_labels(labels, self.seed)

    @functools.cached_property
    def mask(self) -> np.ndarray | None:
        """Which images are poisoned, (n,) bool; None: all."""
        chosen = rate_mask(self.dataset, self.rate, self.seed)
        if self._chosen is None:
            return chosen
        of_classes = np.isin(self.dataset.labels, self._chosen)
        return of_classes if chosen is None else chosen & of_classes

    def check_unseen(self) -> None:
        """Checks that images outside the data set can be poisoned.

        Raises:
            InputError: the noise belongs to single images, or to labels that other images lack.
        """
        if not self.poison.for_others:
            raise InputError(f"{self.name} finds noise for single images, none for others: leave --poison-test out")
        if self._about is not None:
            raise InputError("test images have none of the labels that drive the poison: leave --poison-test out")

    def unseen(self, test: Dataset) -> Dataset:
        """Test images with the perturbation that a training image of their class would get; only poisoned classes
        change.

        Raises:
            InputError: as for `check_unseen`; or the images have another shape or other classes.
        """
        self.check_unseen()
        test = matched(self.dataset, test, names=("training images", "test images"), part=True)
        perturb, labels = self._prepared(), self._assigned(test.labels)
        images = np.empty_like(test.images, subok=False)
        for begin, stop in chunks(test.images, CHUNK_BYTES):
            clean = np.ascontiguousarray(test.images[begin:stop])
            out = perturb(len(self.dataset) + begin, clean, labels[begin:stop])
            if self._chosen is not None:
                of_classes = np.isin(test.labels[begin:stop], self._chosen)
                out = np.where(of_classes[:, None, None, None], out, clean)
            images[begin:stop] = out
        return replace(test, images=images, manifest={"method": self.name, "seed": self.seed, **self.about()})

    def about(self) -> dict[str, Any]:
        """Which images are poisoned by what, unless it is all of them by their own labels; for the manifest."""
        other = self.work.surrogate_data
        return {
            **({"classes": [self.dataset.classes[c] for c in self._chosen]} if self._chosen is not None else {}),
            **({"labels": self._about} if self._about is not None else {}),
            **({"assign": self._assign} if self._assign != "class" else {}),
            **({"surrogate_data": {"name": other.name, "sha256": other.checksum()}} if other is not None else {}),
        }

    def manifest(self) -> dict[str, Any]:
        """What was done to which data: enough to reproduce the same bytes."""
        source = self.dataset
        return {
            "method": self.name,
            "parameters": self.poison.resolved(self.driver),
            "seed": self.seed,
            "rate": self.rate,
            **self.about(),
            "source": {"name": source.name, "split": source.split, "images": len(source), "sha256": source.checksum()},
            "statistics": self.statistics.summary(),
            **({"making": self.work.facts} if self.work.facts else {}),
            "ulfast": __version__,
        }


class _Stream(LazyImages):
    """Poisoned images, computed on demand; `records` has the statistics of the ranges that were computed."""

    def __init__(self, work: Poisoning) -> None:
        super().__init__(work.dataset.images.shape, self._one)
        self._work = work
        self.records: dict[tuple[int, int], dict[str, Any]] = {}

    def _one(self, i: int, out: np.ndarray) -> None:
        out[...] = self._work.block(i, i + 1)[1][0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if not isinstance(key, slice):
            return super().__getitem__(key)
        begin, stop, _ = key.indices(len(self))
        ((_, _, out, self.records[begin, stop]),) = self._work.over([(begin, stop)])
        return out


@ordinary
@same_generators()
def write_shards(
    work: Poisoning,
    test: Dataset | None,
    path: Path,
    *,
    size: int | None = None,
    resume: bool = False,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Writes a poisoned set and clean test images as WebDataset shards in bounded memory: images that are decoded on
    demand are streamed from shard to shard. The bytes are the same, however often it is interrupted and resumed.

    Args:
        work: the poison and the images; its manifest goes into `info.json`.
        size: images per shard (default: 1,000).
        resume: begin after the whole shards that an interrupted run of the same `settings` (JSON-able) has left.

    Raises:
        InputError: as for `write_wds`.
    """
    images: Any = _Stream(work)
    splits = {"train": replace(work.dataset, images=images, manifest={})}
    if test is not None:
        splits["test"] = replace(test, manifest={})

    def manifest(pieces: Sequence[Piece]) -> dict[str, Any]:
        for piece in pieces:
            for begin, stop in piece.blocks():
                if (begin, stop) not in images.records:  # of a shard that was there
                    images[begin:stop]
        work.statistics = PerturbationStatistics()  # summed in order, to the same bytes
        for _, record in sorted(images.records.items()):
            work.statistics.merge(record)
        return work.manifest()

    write_wds(
        path,
        splits,
        size=size,
        resume=resume,
        settings=settings or {},
        overwrite=overwrite,
        progress=progress,
        manifest=manifest,
    )


def rate_mask(dataset: Dataset, rate: float, seed: int) -> np.ndarray | None:
    """Mask of the poisoned images: the same share of every class; a larger rate includes the images of a smaller
    one.
    """
    if rate >= 1:
        return None
    draw = ops.philox_uniform(seed, ops.philox.STREAM_RATE, 0, len(dataset), 1)[:, 0].numpy()
    chosen = np.zeros(len(dataset), dtype=bool)
    for c in range(dataset.num_classes):
        rows = np.flatnonzero(dataset.labels == c)
        chosen[rows[np.argsort(draw[rows], kind="stable")[: round(rate * len(rows))]]] = True
    return chosen


@ordinary
@same_generators()
def poison(
    dataset: Dataset,
    method: str = "lsp",
    *,
    seed: int = 0,
    rate: float = 1.0,
    classes: Sequence[int | str] | str | None = None,
    labels: Any = None,
    assign: str = "class",
    surrogate_data: Dataset | None = None,
    device: str | torch.device = "auto",
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **parameters: Any,
) -> Dataset:
    """Make a data set unlearnable.

    Args:
        dataset: clean images.
        method: name or alias of a poison (`ulfast ls` lists them).
        seed: image i's perturbation depends on (seed, method, i, its label) alone, or on the whole data set if the
            method trains a network or a linear model on it.
        rate: share of each class that is poisoned.
        classes: numbers or names of the classes to poison (default: all).
        labels: labels that drive the perturbation instead of the true labels, which the result keeps: "kmeans:K"
            (clusters of the images shrunk to 8 x 8 pixels), a file, or (n,) whole numbers.
        assign: "random" is a control: each image gets the noise of a class drawn at random.
        surrogate_data: clean images of the same classes on which the network is trained, instead of those to poison.
        device: "auto", "cpu" or "cuda". Methods that train a network do so there. With "auto" the others run on the
            CPU, since most take less time there than copying the images to a GPU and back; they use a GPU that is
            named.
        folder: where methods that train keep network and perturbations meanwhile; None: a temporary folder.
        resume: continue the interrupted run in `folder`.
        progress: called as ``progress("poison", done, total)``.
        parameters: parameters of the method, for example ``eps=0.5``.

    Returns:
        Dataset with the same labels; its manifest records what was done and the perturbation's statistics.

    Raises:
        InputError: the method or a parameter is unknown, or a value is out of bounds.

    Example:
        >>> poisoned = ulfast.poison(ulfast.load_dataset("sample"), "lsp", seed=0)
    """
    place = Workplace(Path(folder) if folder is not None else None, resume, device, progress, surrogate_data)
    chosen: dict[str, Any] = {"rate": rate, "classes": classes, "labels": labels, "assign": assign}
    work = Poisoning(dataset, method, seed=seed, work=place, **chosen, **parameters)
    images = np.empty_like(dataset.images, subok=False)
    for begin, stop, block in work:
        images[begin:stop] = block
        if progress:
            progress("poison", stop, len(dataset))
    return replace(dataset, images=images, manifest=work.manifest())


@ordinary
def perturbation(clean: Dataset, poisoned: Dataset) -> torch.Tensor:
    """The perturbation, (n, H, W, C) float32 in units of [0, 1], after rounding and clipping."""
    poisoned = aligned(clean, poisoned, names=("clean images", "poisoned images"))
    difference = poisoned.images.astype(np.int16) - clean.images
    return torch.from_numpy(difference).float() / 255


@ordinary
def write_poisoned(work: Poisoning, split: SplitWriter, progress: Progress | None = None) -> None:
    """Streams a poisoned set to disk in bounded memory."""
    for begin, stop, block in work:
        split.append(block, work.dataset.labels[begin:stop])
        if progress:
            progress("poison", stop, len(work.dataset))
    split.set_manifest(work.manifest())


@ordinary
def write_rows(work: Poisoning, writer: RowWriter, progress: Progress | None = None) -> bool:
    """Writes the part of the split `train` that a killed run left undone, with all processes; True in the first one.

    The manifest does not depend on the number of processes or kills.
    """
    left, total = writer.left(work.pieces()), len(work.dataset)
    mine = sum(stop - begin for begin, stop in left)
    done = 0
    for begin, stop, block, record in work.over(left):
        writer.put(begin, stop, block, record)
        done += stop - begin
        if progress:
            progress("poison", total - mine + done, total)
    records = writer.gather()
    if records is None:
        return False
    work.statistics = PerturbationStatistics()
    for record in records:
        work.statistics.merge(record)
    writer.finish(work.manifest())
    return True
