"""Every image of a .beton file is compared with its checksum when it is first touched."""

from __future__ import annotations

import numpy as np

from .format import Beton


class Checked:
    """Remembers which images of a file have been checked. One may be checked twice by racing threads; none is
    skipped.
    """

    def __init__(self, beton: Beton) -> None:
        self.beton = beton
        self._seen, self._left = np.zeros(len(beton), bool), True

    def need(self, rows: np.ndarray) -> None:
        """Looks at those of the images that nobody has looked at.

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
        """Saves the looking where nothing is left to look at."""
        self._left = not self._seen.all()
