"""Checks each image of a .beton file against its checksum on first access."""

from __future__ import annotations

import numpy as np

from .format import Beton


class Checked:
    """Tracks which images of a file have been checked. Racing threads may check an image twice; none is skipped."""

    def __init__(self, beton: Beton) -> None:
        self.beton = beton
        self._seen, self._left = np.zeros(len(beton), bool), True

    def need(self, rows: np.ndarray) -> None:
        """Checks those of the images that have not been checked yet.

        Raises:
            InputError: the file is damaged there, or the rows are out of range.
        """
        if not self._left:
            return
        rows = np.asarray(rows, np.int64)
        for i in rows[~self._seen[rows]]:
            self.beton.check(int(i))
            self._seen[i] = True

    def pass_ended(self) -> None:
        """Skips the work once every image has been checked."""
        self._left = not self._seen.all()
