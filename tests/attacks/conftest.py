"""Data on which a network learns something within seconds, for the tests of attacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ulfast
from ulfast.attacks import Context


def draw(rng: np.random.Generator, n: int, bar: int) -> ulfast.Dataset:
    """Noise with a bright bar: horizontal, vertical or none, anywhere."""
    labels = np.arange(n) % 3
    images = rng.integers(90, 166, (n, 12, 12, 3))
    for i, label in enumerate(labels):
        at = rng.integers(1, 10)
        if label == 0:
            images[i, at : at + 2] += bar
        elif label == 1:
            images[i, :, at : at + 2] += bar
    return ulfast.Dataset(images.clip(0, 255).astype(np.uint8), labels, ("bar-", "bar|", "none"), "bars")


@pytest.fixture(scope="session")
def bars():
    """`bars(train, test, bar)`: clean training images, the same with a strong linear poison, and clean test images;
    the brighter the bar, the easier to learn."""

    def make(train: int, test: int, bar: int) -> tuple[ulfast.Dataset, ulfast.Dataset, ulfast.Dataset]:
        rng = np.random.default_rng(0)
        clean, held_out = draw(rng, train, bar), draw(rng, test, bar)
        return clean, ulfast.poison(clean, "lsp", eps=3.0), held_out

    return make


class _Stopped(Exception):
    pass


@pytest.fixture
def interrupted(tmp_path):
    """`interrupted(run, stage, at)` calls `run(context)`, stops it in step `at` of a stage, and calls it again to
    resume; it returns what that gives, and the steps of the stage that the second call reported.
    """

    def resume(run, stage, at):
        context = Context(0, torch.device("cpu"), folder=tmp_path)

        def stop(name, done, total, **info):
            if (name, done) == (stage, at):
                raise _Stopped

        with pytest.raises(_Stopped):
            run(replace(context, progress=stop))
        steps = []
        told = replace(context, resume=True, progress=lambda name, done, total, **info: steps.append((name, done)))
        return run(told), [step for step in steps if step[0].startswith(stage.split()[0])]

    return resume
