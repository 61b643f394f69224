"""`poison`: a clean data set in, a poisoned one out, in memory or streamed to disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import ops
from ..data.classes import aligned
from ..data.dataset import Dataset, chunks
from ..data.writers.folder import SplitWriter
from ..data.writers.resumable import RowWriter
from ..errors import InputError
from ..ops.state import ordinary
from ..parameters import with_parameters
from ..runtime.devices import same_generators
from ..runtime.progress import Progress
from ..version import __version__
from .base import Workplace
from .registry import get_poison
from .statistics import PerturbationStatistics

# Bytes of clean images per call of a generator: a fixed memory, and few calls, since waking and gathering two
# threads that sleep between parallel regions costs 0.4 ms each (lsp on CIFAR-10: 46 ms in chunks of 3 MB, 28 of 15 MB).
CHUNK_BYTES = 15 << 20


class Poisoning:
    """A poison bound to a data set: iterate over it once for (begin, stop, poisoned images).

    Args as for `poison`, and `work`, where a poison that trains a network keeps what it has (default: a temporary
    folder). `manifest()` is complete after the pass.
    """

    def __init__(
        self,
        dataset: Dataset,
        method: str,
        *,
        seed: int = 0,
        rate: float = 1.0,
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
        self.statistics = PerturbationStatistics()

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray]]:
        for begin, stop, out, _ in self.over(self.pieces()):
            yield begin, stop, out

    def pieces(self) -> list[tuple[int, int]]:
        """All images in ranges, which do not depend on who works on them."""
        return chunks(self.dataset.images, CHUNK_BYTES)

    def over(self, pieces: list[tuple[int, int]]) -> Iterator[tuple[int, int, np.ndarray, dict[str, Any]]]:
        """(begin, stop, poisoned images, their `PerturbationStatistics.record`) of some ranges."""
        perturb = self.poison.prepare(self.dataset, self.seed, self.work)
        chosen = rate_mask(self.dataset, self.rate, self.seed)
        for begin, stop in pieces:
            clean = np.ascontiguousarray(self.dataset.images[begin:stop])
            out = perturb(begin, clean, self.dataset.labels[begin:stop])
            if chosen is not None:
                out = np.where(chosen[begin:stop, None, None, None], out, clean)
            one = PerturbationStatistics()
            one.add(clean, out, None if chosen is None else chosen[begin:stop])
            self.statistics.merge(one.record())
            yield begin, stop, out, one.record()

    def manifest(self) -> dict[str, Any]:
        """What was done, to what: enough to make the same bytes again."""
        source = self.dataset
        return {
            "method": self.name,
            "parameters": self.poison.resolved(source),
            "seed": self.seed,
            "rate": self.rate,
            "source": {"name": source.name, "split": source.split, "images": len(source), "sha256": source.checksum()},
            "statistics": self.statistics.summary(),
            **({"making": self.work.facts} if self.work.facts else {}),
            "ulfast": __version__,
        }


def rate_mask(dataset: Dataset, rate: float, seed: int) -> np.ndarray | None:
    """Which images are poisoned: the same share of every class; a larger rate includes the images of a smaller one."""
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
        seed: image i's perturbation depends on (seed, method, i, its label) alone; on the whole data set where the
            method trains a network or a linear model on it.
        rate: share of each class that is poisoned.
        device: "auto", "cpu" or "cuda". Methods that train a network do so there; the others work on the CPU with
            "auto", as most take less time there than the images do to a GPU and back, and on a GPU that is named.
        folder: where those keep network and perturbations while they work; None: a temporary folder.
        resume: continue the run that was interrupted in `folder`.
        progress: called as ``progress("poison", done, total)``.
        parameters: parameters of the method, for example ``eps=0.5``.

    Returns:
        Dataset with the same labels; its manifest records what was done and the perturbation's statistics.

    Raises:
        InputError: unknown method or parameter, or a value out of bounds.

    Example:
        >>> poisoned = ulfast.poison(ulfast.load_dataset("sample"), "lsp", seed=0)
    """
    place = Workplace(Path(folder) if folder is not None else None, resume, device, progress)
    work = Poisoning(dataset, method, seed=seed, rate=rate, work=place, **parameters)
    images = np.empty_like(dataset.images, subok=False)
    for begin, stop, block in work:
        images[begin:stop] = block
        if progress:
            progress("poison", stop, len(dataset))
    return replace(dataset, images=images, manifest=work.manifest())


@ordinary
def perturbation(clean: Dataset, poisoned: Dataset) -> torch.Tensor:
    """What was added, (n, H, W, C) float32 in units of [0, 1], after rounding and clipping."""
    poisoned = aligned(clean, poisoned, names=("clean images", "poisoned images"))
    difference = poisoned.images.astype(np.int16) - clean.images
    return torch.from_numpy(difference).float() / 255


@ordinary
def write_poisoned(work: Poisoning, split: SplitWriter, progress: Progress | None = None) -> None:
    """Streams a poisoned set to disk in memory that does not grow with it."""
    for begin, stop, block in work:
        split.append(block, work.dataset.labels[begin:stop])
        if progress:
            progress("poison", stop, len(work.dataset))
    split.set_manifest(work.manifest())


@ordinary
def write_rows(work: Poisoning, writer: RowWriter, progress: Progress | None = None) -> bool:
    """Writes what a killed run has left undone of the split `train`, by all processes; True in the first of them.

    The manifest is the same for every number of processes and kills.
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
