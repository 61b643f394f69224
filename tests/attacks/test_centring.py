"""`class-centring`: the part of a class's mean image that photographs do not account for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.fft import idctn

import ulfast
from ulfast.analysis.evidence import Evidence
from ulfast.attacks import Context, Plan, get_attack
from ulfast.attacks.full import DEAR, OrthogonalFull
from ulfast.data import Dataset, write_dataset
from ulfast.projection.centring import class_ratios, fit_class_patterns, natural_ratios
from ulfast.projection.mean_noise import SCALE
from ulfast.projection.other_fits import share_taken
from ulfast.training import Recipe

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", None)
POISONS = ["lsp", "ops", "regions-4", "regions-16", "cwrandom"]


@pytest.fixture(scope="module")
def clean():
    return ulfast.load_dataset("sample")


def centred(data):
    plan = Plan(data, data, RECIPE)
    for step in get_attack("class-centring")[1]:
        step.apply(plan, Context(0, torch.device("cpu")))
    return plan


def distance(data, clean):
    """Root mean square of the class means' deviation from the clean ones, in levels."""
    return np.sqrt(
        np.mean(
            [
                np.square(data.images[clean.labels == c].mean(0) - clean.images[clean.labels == c].mean(0)).mean()
                for c in range(clean.num_classes)
            ]
        )
    )


@pytest.mark.parametrize("method", POISONS)
def test_a_class_wise_pattern_is_taken_back(clean, method):
    poisoned = ulfast.poison(clean, method)
    plan = centred(poisoned)
    assert distance(plan.train, clean) < 0.8 * distance(poisoned, clean)
    # What remains is coarse, where it is small beside what photographs of one class differ by.
    before, after = (fit_class_patterns(data).metadata["norm"] for data in (poisoned, plan.train))
    assert after < 0.5 * before
    assert plan.notes["class_patterns"]["norm"] == pytest.approx(before)
    np.testing.assert_array_equal(plan.train.labels, clean.labels)


def test_photographs_hardly_change(clean):
    moved = np.abs(centred(clean).train.images.astype(int) - clean.images)
    assert moved.mean() < 1
    found = class_ratios(clean)
    law = natural_ratios(len(found.order)) + 1 / 500
    bins = np.array_split(np.arange(len(law)), 24)
    over = [found.ratios[rows].mean() / law[rows].mean() for rows in bins]
    assert min(over) > 0.1
    assert max(over) < 1.5


def test_noise_of_few_images_is_no_pattern():
    """Images that are only noise, in classes of 20: their means differ, and nearly nothing is subtracted."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.normal(128, 30, (400, 16, 16, 3)), 0, 255).astype(np.uint8)
    data = Dataset(images, np.arange(400) % 20, tuple(map(str, range(20))))
    assert fit_class_patterns(data).metadata["share"] < 0.05
    assert class_ratios(data).ratios.mean() == pytest.approx(1 / 20, rel=0.1)


def test_the_ratios_are_those_of_the_coefficients():
    """Images made of coefficients with chosen variances and class means."""
    rng = np.random.default_rng(1)
    n, classes, side = 4000, 8, 8
    spread = 20 / (1 + np.arange(side)[:, None] + np.arange(side))
    means = rng.normal(size=(classes, side, side)) * spread * 0.5
    labels = rng.integers(0, classes, n)
    coefficients = rng.normal(size=(n, side, side)) * spread + means[labels]
    images = 128 + idctn(coefficients, axes=(1, 2), norm="ortho")
    data = Dataset(images.round().clip(0, 255).astype(np.uint8)[..., None], labels, tuple("abcdefgh"))
    found = class_ratios(data)
    want = ((means - means.mean(0)) ** 2).mean(0) * classes / (classes - 1) / spread**2
    np.testing.assert_allclose(found.ratios.mean(), want.mean(), rtol=0.1)
    loud = found.order[:20]  # rounding to levels counts little there
    np.testing.assert_allclose(found.ratios[:20], want.ravel()[loud], rtol=0.35, atol=0.02)


def test_empty_and_single_classes(clean):
    some = clean.subset(np.flatnonzero(clean.labels < 3))
    gap = replace(some, labels=np.where(some.labels == 1, 7, some.labels))
    found = fit_class_patterns(gap)
    assert found.patterns.shape == (10, 32, 32, 3)
    assert not found.patterns[[1, 3, 4, 5, 6, 8, 9]].any()
    np.testing.assert_allclose(found.patterns[[0, 7, 2]], fit_class_patterns(some).patterns[:3], atol=1e-6)
    alone = some.subset(np.flatnonzero(some.labels == 0))
    np.testing.assert_array_equal(centred(alone).train.images, alone.images)


def test_small_classes_are_believed_less(clean):
    poisoned = ulfast.poison(clean, "regions-16")
    rows = np.concatenate([np.flatnonzero(clean.labels == c)[: 400 if c else 10] for c in range(10)])
    patterns = fit_class_patterns(poisoned.subset(rows)).patterns
    whole = fit_class_patterns(poisoned).patterns
    small, large = (np.square(patterns[c]).sum() / np.square(whole[c]).sum() for c in (0, 1))
    assert large == pytest.approx(1, abs=0.3)
    assert fit_class_patterns(poisoned.subset(rows)).metadata["share"] > 0
    assert small < 4  # its mean is mostly noise: subtracting all of it would be tens of times the pattern


def test_streamed_and_in_memory_are_the_same(tmp_path, make_dataset):
    data = make_dataset(200)
    write_dataset(tmp_path / "x", data)
    streamed = ulfast.load_dataset(tmp_path / "x", stream=True)
    np.testing.assert_array_equal(centred(streamed).train.images, centred(data).train.images)


def test_a_network_learns_again(clean):
    some = clean.subset(np.arange(1000))
    result = ulfast.attack(
        ulfast.poison(some, "regions-16"),
        test=ulfast.load_dataset("sample", split="test"),
        method="class-centring+mean-noise",
        model="cnn",
        epochs=2,
        seed=0,
    )
    assert result.method == "class-centring+mean-noise"
    assert 0 < result.notes["class_patterns"]["share"] < 1


@pytest.fixture(scope="module")
def forty(clean):
    """The sample in four orientations: 40 classes of 125 images."""
    turn = np.arange(len(clean)) % 4
    images = np.stack([np.rot90(image, k) for image, k in zip(clean.images, turn, strict=True)])
    names = tuple(f"{name} {k}" for name in clean.classes for k in range(4))
    return Dataset(images, clean.labels * 4 + turn, names, "forty", "train", {})


@pytest.mark.parametrize(("many", "method"), [(False, "regions-16"), (False, "lsp"), (True, "regions-16")])
def test_a_dear_projection_gives_way(clean, forty, many, method):
    data = ulfast.poison(forty if many else clean, method)
    plan = Plan(data, data, RECIPE)
    for step in get_attack("orthogonal-full")[1]:
        step.apply(plan, Context(0, torch.device("cpu")))
    assert (plan.notes["projection_takes"] > DEAR) == many
    assert ("class_patterns" in plan.notes) == many
    assert (plan.removal.rows is None) == many
    assert plan.removal.noise is not None
    assert (plan.train.images is data.images) != many


def test_the_share_that_a_projection_takes(clean):
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(3072, 4)))[0].T.astype(np.float32)
    rows *= np.array([[1], [0.8], [0.5], [0]], np.float32)
    x = clean.images.reshape(5000, -1) / 255
    projected = x - x @ rows.T @ rows

    def variance(values):
        return sum(np.square(values[clean.labels == c] - values[clean.labels == c].mean(0)).sum() for c in range(10))

    want = 1 - variance(projected) / variance(x)
    assert share_taken(torch.from_numpy(rows), clean) == pytest.approx(want, rel=1e-4)
    assert share_taken(torch.zeros(0, 3072), clean) == 0


def test_noise_of_each_image_s_own_is_not_hidden_under_noise(forty):
    """The class means hold nothing of it, with the classes centred or not."""
    plan = Plan(forty, forty, RECIPE)
    own = tuple(
        Evidence(name, value, 0.1, 0.2, "") for name, value in (("linear", 0.1), ("detail", 0.5), ("marked", 0.1))
    )
    pattern = tuple(Evidence(name, 0.9, 0.1, 0.2, "") for name in ("linear", "detail", "marked"))
    for centred in (False, True):
        assert OrthogonalFull.hiding(plan, own, centred=centred) == 0
    assert OrthogonalFull.hiding(plan, pattern, centred=True) == SCALE
