"""Counts the distinct perturbations of a class: one means class-wise noise, whatever its name says."""

from __future__ import annotations

import numpy as np

from ..data.dataset import Dataset

# Share of the values that may differ by a level within the same perturbation, because sums are rounded.
ROUNDED = 0.01
DISTINCT_IMAGES, DISTINCT_MOST = 200, 16  # per class: examined, and told apart


def distinct_perturbations(clean: Dataset, poisoned: Dataset) -> dict[str, int]:
    """The number of distinct perturbations in the changed images of each class, up to `DISTINCT_MOST`: 1 is class-wise.

    Examines up to `DISTINCT_IMAGES` images of a class. Two images share a perturbation if the differences agree
    wherever neither was clipped at 0 or 255. Classes without changed images are left out.
    """
    found = {}
    for c, name in enumerate(clean.classes):
        members = np.flatnonzero(clean.labels == c)[:DISTINCT_IMAGES]
        after = poisoned.images[members].astype(np.int16)
        noise = (after - clean.images[members]).reshape(len(members), -1)
        known = ((after > 0) & (after < 255)).reshape(len(members), -1)
        changed = noise.any(1)
        kinds: list[tuple[np.ndarray, np.ndarray]] = []  # the perturbation, and where it is known
        for one, sure in zip(noise[changed], known[changed], strict=True):
            for kind, there in kinds:
                apart = np.abs(kind - one) * (there & sure)
                if apart.max() <= 1 and np.count_nonzero(apart) <= ROUNDED * apart.size:
                    kind[sure & ~there] = one[sure & ~there]
                    there |= sure
                    break
            else:
                kinds.append((one.copy(), sure.copy()))
            if len(kinds) == DISTINCT_MOST:
                break
        if kinds:
            found[name] = len(kinds)
    return found
