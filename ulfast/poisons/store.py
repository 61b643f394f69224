"""Perturbations on disk while they are being found: one an image or one a class, memory-mapped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..data.loader import as_tensor
from ..errors import InputError
from ..files import atomic_file, sync, writing
from ..ops.reference import whole_levels

KINDS = {"int8": np.int8, "float16": np.float16}


class PerturbationStore:
    """(rows, H, W, C) perturbations in a file, read and written a batch at a time, so that it may exceed the memory.

    int8 counts in steps of eps / 127: finer than any step size in use, at a quarter of float32's bytes.

    `commit` keeps a copy of the whole under a number; `restore` goes back to one. A run writes the number into its own
    state after the commit, so a killed run finds the two together.

    Args:
        folder: of the files `delta.npy` and `delta-NUMBER.npy`.
        shape: (H, W, C) of a perturbation.
        eps: L-infinity bound, pixels in [0, 1].
        kind: "int8" or "float16".

    Raises:
        InputError: an unknown kind, or the disk is full.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, int, int], eps: float, kind: str = "int8") -> None:
        if kind not in KINDS:
            raise InputError(f"a perturbation is stored as {' or '.join(KINDS)}, got {kind!r}")
        self.folder, self.rows, self.eps, self.kind = folder, rows, eps, kind
        self.unit = eps / 127 if kind == "int8" else 1.0
        self._shape, self._file = (rows, *shape), folder / "delta.npy"
        self._open("w+")

    def _open(self, mode: str) -> None:
        with writing(self._file):
            self._map: np.memmap = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
                self._file, mode=mode, dtype=KINDS[self.kind], shape=self._shape if mode == "w+" else None
            )
        self._values = as_tensor(self._map)

    def read(self, rows: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """(b, C, H, W) float32, channels_last, pixels in [0, 1], of the perturbations at `rows` (b,) int64."""
        return self._values[rows.cpu()].to(device).float().mul_(self.unit).permute(0, 3, 1, 2)

    def write(self, rows: Tensor, delta: Tensor) -> None:
        """Stores (b, C, H, W), which comes back within the bound."""
        values = delta.detach().permute(0, 2, 3, 1).clamp(-self.eps, self.eps)
        if self.kind == "int8":
            values = (values / max(self.unit, 1e-30)).round()
        self._values[rows.cpu()] = values.cpu().to(self._values.dtype)

    def apply(self, images: np.ndarray, rows: Tensor) -> np.ndarray:
        """Images (b, H, W, C) uint8 with the perturbations at `rows`, in whole levels, none of them beyond eps."""
        most = whole_levels(self.eps)
        levels = (self._values[rows].float() * (255 * self.unit)).round().clamp(-most, most)
        return ops.apply_perturbation(as_tensor(images), levels / 255).numpy()

    def commit(self, number: int) -> None:
        """Keeps what there is now as number `number`, safe on the disk."""
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
        """Back to copy `number`.

        Raises:
            InputError: it is missing, or of other data.
        """
        kept = self.folder / f"delta-{number}.npy"
        with writing(self._file):
            try:
                shutil.copyfile(kept, self._file)
                self._open("r+")
            except (FileNotFoundError, ValueError):
                raise InputError(f"{kept} is missing or damaged: start anew without --resume") from None
        if self._map.shape != self._shape or self._map.dtype != KINDS[self.kind]:
            raise InputError(f"{kept} holds {self._map.shape}, this data needs {self._shape}: start anew")
