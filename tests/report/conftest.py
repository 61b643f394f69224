"""Shared by the tests of `reproduce` and `report`: a small grid, trained."""

from __future__ import annotations

import pytest

from ulfast.grids.grid import Grid
from ulfast.grids.run import reproduce

GRID = {
    "name": "tiny",
    "data": "sample",
    "limit": 200,
    "epochs": 2,
    "seeds": [0, 1],
    "poisons": ["clean", {"name": "strong", "method": "lsp", "eps": 3.0}],
    "attacks": ["none", "orthogonal", {"name": "jpeg-50", "method": "iss-jpeg", "quality": 50}],
}


@pytest.fixture(scope="session")
def grid():
    """What the YAML file of a small grid holds."""
    return dict(GRID)


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    return reproduce(Grid.of(GRID), tmp_path_factory.mktemp("grid") / "tiny")
