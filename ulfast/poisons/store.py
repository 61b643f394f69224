"""Perturbations on disk during a search: one per image or one per class, memory-mapped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import distributed, ops
from ..data.tensors import as_tensor
from ..errors import InputError
from ..ops.reference import whole_levels
from ..runtime.files import atomic_file, sync, writing

KINDS = {"int8": np.int8, "float16": np.float16}


class PerturbationStore:
    """(rows, H, W, C) perturbations in a file that is read and written batch by batch and may exceed the memory.

    int8 counts in steps of eps / 127, which is finer than any step size in use and takes a quarter of float32's bytes.

    `commit` keeps a copy of the whole store under a number; `restore` returns to one. A run writes the number into its
    own state after the commit, so after a kill the two are consistent.

    The processes of `distributed.joined` create the store and write to it together. The first process on each machine
    owns the machine's file, which the others there map. What a process writes is sent to all, so that no process relies
    on a network file system to show what another machine has mapped. The first process commits.

    Args:
        folder: holds the files `delta.npy` (on other machines `delta.RANK.npy`) and `delta-NUMBER.npy`.
        shape: (H, W, C) of a perturbation.
        eps: L-infinity bound, pixels in [0, 1].
        kind: "int8" or "float16".

    Raises:
        InputError: the kind is unknown, or the disk is full.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, int, int], eps: float, kind: str = "int8") -> None:
        if kind not in KINDS:
            raise InputError(f"a perturbation is stored as {' or '.join(KINDS)}, got {kind!r}")
        self.folder, self.rows, self.eps, self.kind = folder, rows, eps, kind
        self.unit = eps / 127 if kind == "int8" else 1.0
        keeper = distributed.first_here()
        self._keeps = keeper == distributed.rank()
        self._shape, self._file = (rows, *shape), folder / (f"delta.{keeper}.npy" if keeper else "delta.npy")
        self._open("w+")

    def _open(self, mode: str) -> None:
        """Maps the file: with a mode in the process that owns it, then for reading in the others on the machine."""
        if not self._keeps:
            distributed.wait()
            mode = "r"
        with writing(self._file):
            self._map: np.memmap = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                self._file, mode=mode, dtype=KINDS[self.kind], shape=self._shape if mode == "w+" else None
            )
        self._values = as_tensor(self._map)
        if self._keeps:
            distributed.wait()

    def read(self, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The perturbations at `rows` (b,) int64, as (b, C, H, W) float32, channels_last, pixels in [0, 1]."""
        return self._values[rows.cpu()].to(device).float().mul_(self.unit).permute(0, 3, 1, 2)

    def write(self, rows: Tensor, delta: Tensor, at: int = 0) -> None:
        """Stores perturbations at `rows` (b,) int64; every process then reads them within the bound.

        Args:
            rows: the rows that all processes together write in this call, the same in each.
            delta: (p, C, H, W), this process's part of them; all of them for a single process.
            at: where its part begins; every row belongs to one process's part.
        """
        values = delta.detach().permute(0, 2, 3, 1).clamp(-self.eps, self.eps)
        if self.kind == "int8":
            values = (values / max(self.unit, 1e-30)).round()
        values = values.cpu().to(self._values.dtype)
        if distributed.size() > 1:
            whole = torch.zeros((len(rows), *self._shape[1:]), dtype=values.dtype)
            whole[at : at + len(values)] = values
            values = distributed.sum_(whole)
        if self._keeps:
            self._values[rows.cpu()] = values
        distributed.wait()  # until it is there to read

    def apply(self, images: np.ndarray, rows: Tensor) -> np.ndarray:
        """Images (b, H, W, C) uint8 with the perturbations at `rows`, in whole levels of at most eps."""
        most = whole_levels(self.eps)
        levels = (self._values[rows].float() * (255 * self.unit)).round().clamp(-most, most)
        return ops.apply_perturbation(as_tensor(images), levels / 255).numpy()

    def commit(self, number: int) -> None:
        """Flushes a copy of the current state to the disk as number `number`; in the first process."""
        self._map.flush()
        with atomic_file(self.folder / f"delta-{number}.npy") as part:
            shutil.copyfile(self._file, part)
        sync(self.folder)

    def forget(self, keep: int) -> None:
        """Removes every copy but one."""
        for file in self.folder.glob("delta-*.npy"):
            if re.fullmatch(r"delta-\d+", file.stem) and file.stem != f"delta-{keep}":
                file.unlink()

    def restore(self, number: int) -> None:
        """Returns to copy `number`, in all processes.

        Raises:
            InputError: the copy is missing, or belongs to other data.
        """
        kept = self.folder / f"delta-{number}.npy"
        with writing(self._file):
            try:
                if self._keeps:
                    shutil.copyfile(kept, self._file)
                self._open("r+")
            except (FileNotFoundError, ValueError):
                raise InputError(f"{kept} is missing or damaged: start again without --resume") from None
        if self._map.shape != self._shape or self._map.dtype != KINDS[self.kind]:
            raise InputError(
                f"{kept} holds {self._map.shape}, this data needs {self._shape}: start again without --resume"
            )
