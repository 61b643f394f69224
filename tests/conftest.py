"""Data that all tests share: small, made here, no network."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; before torch reads it, and for what they start
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import numpy as np
import pytest

from ulfast.data.dataset import Dataset


def tiny(
    n: int = 60, size: int = 12, channels: int = 3, classes: int = 3, seed: int = 0, split: str = "train"
) -> Dataset:
    """Smooth random images with a weak class signal."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    coarse = rng.integers(40, 216, (n, 4, 4, channels))
    images = coarse.repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    images = (images + rng.integers(-10, 11, images.shape) + 10 * labels[:, None, None, None]).clip(0, 255)
    return Dataset(images.astype(np.uint8), labels, tuple(f"class{c}" for c in range(classes)), "tiny", split)


@pytest.fixture(scope="session")
def make_dataset():
    return tiny


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("ULFAST_CACHE", str(tmp_path_factory.mktemp("cache")))
