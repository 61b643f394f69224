"""Poisons of ulfast as an attack of the Adversarial Robustness Toolbox (ART).

    python examples/art_adapter.py [--method ops]

ART passes attacks numpy arrays, (n, H, W, C) or (n, C, H, W), floats in [0, 1], and labels that may be one-hot.
`UlfastPoison` has the interface of its `PoisoningAttackBlackBox`, and derives from it if ART is installed.
"""

from __future__ import annotations

import argparse

import numpy as np

import ulfast

try:
    from art.attacks.attack import PoisoningAttackBlackBox as Base
except ImportError:
    Base = object


class UlfastPoison(Base):
    """A poison by name.

    Args:
        method: of `ulfast ls poisons`, such as "ops", "lsp" or "ar".
        parameters: as for `ulfast.poison_arrays`: seed, rate, classes, layout, and the method's own.
    """

    attack_params = ("method", "parameters")
    _estimator_requirements = ()

    def __init__(self, method="ops", **parameters):
        super().__init__()
        self.method, self.parameters = method, parameters

    def poison(self, x, y=None, **kwargs):
        """The poisoned images, with x's shape and dtype, and the unchanged labels."""
        if y is None:
            raise ValueError("an availability attack needs the labels of the images")
        return ulfast.poison_arrays(x, y, self.method, **{**self.parameters, **kwargs}), y


def main(method="ops", limit=200):
    data = ulfast.load_dataset("sample", limit=limit)
    x = data.images.astype(np.float32) / 255
    y = np.eye(data.num_classes, dtype=np.float32)[data.labels]
    poisoned, labels = UlfastPoison(method, seed=0).poison(x, y)
    changed = float((poisoned != x).any(axis=(1, 2, 3)).mean())
    print(
        f"{method}: {len(poisoned)} images, {100 * changed:.0f} % of them changed, labels {labels.shape} as they were"
    )
    return changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", default="ops")
    main(parser.parse_args().method)
