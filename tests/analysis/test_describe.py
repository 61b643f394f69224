from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ulfast
from ulfast.analysis import describe as module
from ulfast.analysis.describe import describe
from ulfast.analysis.diagnosis import constant_pixel, diagnose
from ulfast.data import channel_statistics, load_dataset
from ulfast.data.lazy import LazyImages
from ulfast.projection.patches import _energy, _levels


@pytest.fixture(scope="module")
def sample():
    return load_dataset("sample", limit=600)


@pytest.fixture
def counted(sample, monkeypatch):
    """The sample as images decoded on demand, and how often each was decoded."""
    times = np.zeros(len(sample), int)

    def read(i, out):
        times[i] += 1
        out[:] = sample.images[i]

    def load(source, *, split, **options):
        if split == "test":
            raise ulfast.errors.MissingSplit("none")
        return replace(sample, images=LazyImages(sample.images.shape, read))

    monkeypatch.setattr(module, "load_dataset", load)
    return times


def test_images_decoded_on_demand_are_decoded_once_and_a_sample_of_them_twice(sample, counted, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 300)
    stages = []
    found = describe("somewhere", progress=lambda stage, done, total, **_: stages.append((stage, done, total)))
    assert counted.min() == 1
    assert counted.max() == 2
    assert counted.sum() == 900
    about = found["splits"]["train"]
    assert about["sha256"] == sample.checksum()
    assert (tuple(about["mean"]), tuple(about["std"])) == channel_statistics(sample)
    assert {("measure", 600, 600), ("sample", 300, 300)} <= set(stages)


@pytest.mark.parametrize(("method", "verdict"), [(None, "clean"), ("ops", "poisoned")])
def test_a_first_look_comes_before_all_images_are_read(sample, monkeypatch, method, verdict):
    data = sample if method is None else replace(ulfast.poison(sample, method), manifest={})
    monkeypatch.setattr(module, "load_dataset", lambda source, *, split, **options: data)
    monkeypatch.setattr(module, "FIRST", 300)
    events = []
    describe("x", first=events.append, progress=lambda stage, *_, **__: events.append(stage))
    assert events[0] == f"a first look at 300 of 600 training images: {verdict}"
    assert "measure" in events[1:]


def test_a_small_set_gets_no_first_look(sample, monkeypatch):
    monkeypatch.setattr(module, "load_dataset", lambda source, *, split, **options: sample)
    monkeypatch.setattr(module, "FIRST", 400)
    describe("x", first=pytest.fail)


def test_large_images_are_searched_within_a_bound_of_bytes(sample, counted, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_BYTES", 200 * 32 * 32 * 3)
    describe("somewhere")
    assert counted.sum() == 800


@pytest.mark.parametrize(
    ("method", "verdict"),
    [(None, "clean"), ("ops", "poisoned"), pytest.param("lsp", "poisoned", marks=pytest.mark.slow)],
)
def test_centres_of_large_images_suffice_to_find_poison(method, verdict):
    small = load_dataset("sample", limit=1000)
    large = replace(small, images=small.images.repeat(3, axis=1).repeat(3, axis=2))
    data = large if method is None else ulfast.poison(large, method)
    found = diagnose(data, centre=32)
    assert found.verdict == verdict, found.to_dict()
    assert found.linear.basis.image_shape == (32, 32, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colours", [2, 256])
def test_the_constant_pixel_is_that_of_the_definition(channels, colours):
    rng = np.random.default_rng(channels)
    images = rng.integers(0, colours, (101, 9, 10, channels)).astype(np.uint8)
    labels = np.sort(rng.integers(0, 3, 101))
    images[labels == 1, 4, 7] = np.where(rng.random((int((labels == 1).sum()), 1)) < 0.8, 255, 0)
    best = (-1.0, (0, 0), "")
    for c in range(3):
        own = labels == c
        median = np.sort(images[own], axis=0)[own.sum() // 2]
        same = (images == median).all(axis=3)
        mine = same[own].sum(0)
        share = (mine - 2 * np.sqrt(mine)) / own.sum() - same[~own].mean(0)
        if share.max() > best[0]:
            place = np.unravel_index(int(share.argmax()), share.shape)
            best = (share.max(), tuple(map(int, place)), str(c))
    found = constant_pixel(ulfast.Dataset(images, labels, ("0", "1", "2")))
    assert found[1:] == best[1:]
    assert found[0] == pytest.approx(best[0], abs=1e-12)


@pytest.mark.parametrize("patch", [2, 7, 12])
def test_the_energy_of_a_patch_is_that_of_pooling(sample, patch):
    x = _levels(sample, np.arange(20))
    wide = x.double()
    mean, square = F.avg_pool2d(wide, patch, 1), F.avg_pool2d(wide * wide, patch, 1)
    expected = (square - mean * mean).sum(1) * patch**2
    torch.testing.assert_close(_energy(x, patch).double(), expected, rtol=1e-5, atol=0.5)
