"""A projected training set on disk, for other people's training code and for `attack --materialize`.

Projection leaves [0, 1] on both sides, so the pixels are float16 (spacing 0.0005 near 1, an eighth of a uint8 level):
`images.npy` (n, H, W, C) float16 in units of [0, 1], not clipped; `labels.npy` (n,) int64; `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import atomic_folder, write_json
from ..ops import reference
from ..version import __version__
from .dataset import Dataset, chunks
from .loader import MemoryLoader, as_tensor, project_rows

FORMAT = "ulfast-projected-1"


def write_projected(
    path: Path,
    dataset: Dataset,
    basis: Tensor | None,
    *,
    transform: Callable[[Tensor], Tensor] | None = None,
    progress: Callable[..., None] | None = None,
) -> None:
    """Writes ``x - (x B^T) B`` of every image, streaming; replaces `path`.

    Args:
        basis: (k, H*W*C) orthonormal rows, (c, r, H*W*C) of each class, or None.
        transform: (b, C, H, W) float32 -> the same, after the projection.
    """
    basis = None if basis is None else basis.cpu()
    labels, rank = as_tensor(dataset.labels), 0 if basis is None else basis.shape[-2]
    with atomic_folder(path, overwrite=True) as folder:
        out = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float16, dataset.images.shape)
        for begin, stop in chunks(dataset.images, 16 << 20):
            x = project_rows(as_tensor(dataset.images[begin:stop]), basis, labels[begin:stop])
            if transform is not None:
                with torch.no_grad():
                    x = transform(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            out[begin:stop] = x.to(torch.float16).numpy()
            if progress:
                progress("project", stop, len(dataset))
        out.flush()
        del out
        np.save(folder / "labels.npy", dataset.labels)
        manifest = {"format": FORMAT, "ulfast": __version__, "classes": list(dataset.classes), "rank": rank,
                    "name": dataset.name, "manifest": dataset.manifest}  # fmt: skip
        write_json(folder / "manifest.json", manifest)


class ProjectedLoader(MemoryLoader):
    """`MemoryLoader` over a folder that `write_projected` made; `dataset` supplies labels and shape."""

    def __init__(self, path: Path, dataset: Dataset, batch_size: int, **options: Any) -> None:
        super().__init__(dataset, batch_size, **options)
        self._images = as_tensor(np.load(path / "images.npy", mmap_mode="r", allow_pickle=False))

    def _streams(self) -> bool:
        return False

    def _batch(self, index: Tensor, shift: Tensor | None, flip: Tensor | None, block: Tensor | None) -> Tensor:
        x = self._images[index].to(self.device).float()
        return reference.augment(x, self.mean, self.std, self.dtype, shift, flip)
