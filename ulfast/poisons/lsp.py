"""`lsp`: linearly separable perturbations, one Gaussian cluster per class around a vertex of a hypercube."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .. import ops
from ..data.dataset import Dataset
from ..parameters import parameter
from .base import Perturb, Poison, Workplace

CLASS_SEPARATION = 10.0
# Item numbers of the class-wise draws, far apart: vertices (and their redraws), mixing matrices.
REDRAW, MIXING = 1 << 32, 1 << 48


@dataclass(frozen=True)
class LSP(Poison):
    """Sample-wise noise that a linear classifier separates perfectly.

    Latent points are drawn as scikit-learn's ``make_classification(class_sep=10, flip_y=0, n_clusters_per_class=1)``
    draws them with all features informative: a standard normal times the class's matrix of U(-1, 1) entries, plus a
    vertex of the hypercube of side 20. Each value fills a patch, and each image's noise is scaled to the L2 norm.
    """

    summary = "linearly separable patches, one cluster per class"
    source = "Yu et al., Availability Attacks Create Shortcuts, KDD 2022"
    aliases = ("linearly-separable", "synthetic")

    eps: float | None = parameter(
        None, "L2 norm of each image's noise, pixels in [0, 1] (default 6/255 * sqrt(d))", at_least=0
    )
    patch: int | None = parameter(None, "side of a patch in pixels (default 8 at 32 px, 32 at 224 px)", at_least=1)

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        eps = 6 / 255 * math.sqrt(math.prod(dataset.image_shape)) if self.eps is None else self.eps
        return {"eps": eps, "patch": self.patch or default_patch(dataset.image_shape)}

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        values = self.resolved(dataset)
        height, width, channels = dataset.image_shape
        patch = values["patch"]
        features = math.ceil(height / patch) * math.ceil(width / patch) * channels
        centroids = work.place(CLASS_SEPARATION * vertices(seed, dataset.num_classes, features))
        uniform = ops.philox_uniform(
            seed, ops.philox.STREAM_LSP_CLASS, MIXING, dataset.num_classes, features * features
        )
        mixing = work.place((uniform * 2 - 1).view(-1, features, features))

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            out = ops.perturb_lsp(
                work.place(labels),
                centroids,
                mixing,
                seed=seed,
                first=first,
                size=dataset.image_shape,
                patch=patch,
                norm=values["eps"],
                images=work.place(images),
                truncate=True,
            )
            return out.cpu().numpy()

        return perturb


def default_patch(image_shape: tuple[int, int, int]) -> int:
    """A quarter of the shorter side, down to a power of two: 8 at 32 px, 32 at 224 px."""
    return 1 << max(0, min(image_shape[:2]).bit_length() - 3)


def vertices(seed: int, classes: int, features: int) -> Tensor:
    """(classes, features) of -1 and +1; all rows differ if there are enough vertices."""
    stream = ops.philox.STREAM_LSP_CLASS
    signs = ops.philox_uniform(seed, stream, 0, classes, features) < 0.5
    if classes <= 2**features:
        seen: set[bytes] = set()
        for c in range(classes):
            attempt = 0
            while (key := signs[c].numpy().tobytes()) in seen:
                attempt += 1
                signs[c] = ops.philox_uniform(seed, stream, attempt * REDRAW + c, 1, features)[0] < 0.5
            seen.add(key)
    return signs.float() * 2 - 1
