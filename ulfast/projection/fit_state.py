"""The state that a linear fit keeps on disk, so that a killed fit resumes to the same bytes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import distributed
from ..errors import InputError
from ..runtime.files import save_tensors, writing
from ..runtime.reading import load_tensors, reading
from .basis import Basis

# Seconds of a fit that a kill may lose.
SAVE_SECONDS = 5.0


class FitState:
    """The weights after a number of steps, in one file that is replaced as a whole; does nothing without a file.

    Args:
        path: the file, or None.
        resume: continue from its content.
        identity: settings that a resumed fit must match (JSON-serialisable).

    Attributes:
        bases: bases of the finished rounds.
        step, weight: for the unfinished round, the steps done and the weights (c, d) float32 after them, or None.

    Raises:
        InputError: the file is damaged or belongs to a fit with other settings.
    """

    def __init__(self, path: Path | None, resume: bool, identity: dict[str, Any]) -> None:
        self._path, self._identity, self._saved = path, identity, time.monotonic()
        self.bases: list[Basis] = []
        self.step = 0
        self.weight: Tensor | None = None
        if path is not None and distributed.agreed(resume and path.is_file()):
            self._read(path)

    def _read(self, path: Path) -> None:
        content = load_tensors(path, again := "leave --resume out", kind := "as an interrupted fit")
        with reading(path, again, kind):
            other = [key for key, value in self._identity.items() if content["identity"].get(key) != value]
            bases = [Basis(rows, tuple(shape), weights, facts) for rows, shape, weights, facts in content["bases"]]
            step, weight = content["step"], content["weight"]
        if other:
            raise InputError(
                f"{path} belongs to a fit with another {', '.join(other)}: give the same settings, or"
                " leave --resume out"
            )
        self.bases, self.step, self.weight = bases, step, weight

    def keep(self, step: int, weight: Tensor) -> None:
        """Saves the weights if the last save was long enough ago."""
        if self._path is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        if distributed.is_main():
            bases = [(b.rows, list(b.image_shape), b.weights, b.metadata) for b in self.bases]
            content = {"identity": self._identity, "bases": bases, "step": step, "weight": weight.cpu()}
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(self._path, content)
        self._saved = time.monotonic()

    def done(self, basis: Basis) -> None:
        """Records the end of a round."""
        self.bases.append(basis)
        self.step, self.weight = 0, None
