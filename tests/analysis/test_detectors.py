from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError
from ulfast.analysis.detectors import (
    BOUND,
    _Milestones,
    bias_shift,
    image_errors,
    iterative_filtering,
    simple_2nn,
    simple_linear,
)
from ulfast.data import load_dataset


@pytest.fixture(scope="module")
def clean():
    return load_dataset("sample").balanced(1000)


@pytest.fixture(scope="module")
def lsp(clean):
    return ulfast.poison(clean, "lsp")


def test_errors_of_images():
    poisoned = np.array([True, True, True, True, False, False])
    errors = image_errors(np.array([0, 1, 2, 5]), poisoned)
    assert (errors.false_alarms, errors.misses, errors.half_total) == (0.5, 0.25, 0.375)
    for found in (np.arange(6), np.arange(0)):
        assert image_errors(found, poisoned).half_total == 0.5
    assert image_errors(np.flatnonzero(poisoned), poisoned).half_total == 0
    assert math.isnan(image_errors(np.array([0]), np.ones(2, bool)).false_alarms)
    assert math.isnan(image_errors(np.array([0]), np.zeros(2, bool)).misses)


def test_published_schedule():
    recipe = _Milestones("x", 100, 128, "sgd", 0.01, 5e-4, "milestones")
    rates = [recipe.rate(3 * epoch + 2, 3) for epoch in (0, 74, 75, 89, 90, 99)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_a_linear_model_finds_lsp_and_not_photographs(clean, lsp):
    found = simple_linear(lsp)
    assert found.poisoned
    assert found.accuracy >= BOUND
    assert found.to_dict() == {
        "poisoned": True,
        "accuracy": found.accuracy,
        "train_accuracy": found.train_accuracy,
        "bound": 0.7,
    }
    assert not simple_linear(clean, epochs=30).poisoned


def test_the_seed_decides(lsp):
    found = [simple_linear(lsp, epochs=3, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    found = [simple_2nn(lsp, hidden=8, epochs=3, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_two_layers_tell_poison_from_photographs(clean):
    """A narrow layer and few steps, so the bound is lower than the published one."""
    settings = {"hidden": 32, "epochs": 60, "bound": 0.4}
    assert simple_2nn(ulfast.poison(clean, "regions-16"), **settings).poisoned
    assert not simple_2nn(clean, **settings).poisoned


def test_the_hidden_layer_is_as_wide_as_the_image(monkeypatch, clean):
    seen = []
    monkeypatch.setattr("ulfast.analysis.detectors.train", lambda model, *a, **k: seen.append(model) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        simple_2nn(clean)
    assert [tuple(p.shape) for p in seen[0].parameters()] == [(3072, 3072), (3072,), (10, 3072), (10,)]


def test_bias_shift_trains_on_shifted_and_tests_on_stored_pixels(monkeypatch, lsp):
    seen = {}

    def train(model, loader, test_loader, recipe, **_):
        seen.update(train=torch.cat([x for x, _ in loader]), test=torch.cat([x for x, _ in test_loader]), recipe=recipe)
        raise ZeroDivisionError

    monkeypatch.setattr("ulfast.analysis.detectors.train", train)
    with pytest.raises(ZeroDivisionError):
        bias_shift(lsp, model="cnn")
    assert len(seen["train"]) == 800
    assert len(seen["test"]) == 200
    assert float(seen["train"].min()) == pytest.approx(-0.5, abs=1e-6)
    assert float(seen["train"].max()) == pytest.approx(0.5, abs=1e-6)
    assert float(seen["test"].min()) == pytest.approx(0, abs=1e-6)
    assert float(seen["test"].max()) == pytest.approx(1, abs=1e-6)
    assert (seen["recipe"].epochs, seen["recipe"].lr, seen["recipe"].augment) == (100, 0.01, None)
    # Together they are the set: the shift undone, each image once.
    together = torch.cat([seen["train"] + 0.5, seen["test"]]).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    assert sorted(x.tobytes() for x in together) == sorted(x.tobytes() for x in lsp.images)


def test_bias_shift_runs_and_repeats(clean):
    some = clean.balanced(200)
    found = bias_shift(some, model="cnn", epochs=1)
    assert 0 <= found.accuracy <= 1
    assert bias_shift(some, model="cnn", epochs=1) == found
    assert bias_shift(some, model="cnn", epochs=1, shift=0.5) != found


def test_iterative_filtering_keeps_what_a_network_learns_first(clean):
    """Half of the images have a corner that says the class, loud enough for a few epochs."""
    marked = clean.images.copy()
    poisoned = np.arange(len(clean)) % 2 == 0
    for i in np.flatnonzero(poisoned):
        c = int(clean.labels[i])
        marked[i, :, :] = marked[i] // 4
        marked[i, 3 * c : 3 * c + 3] = 255
    data = replace(clean, images=marked)
    recipe = ulfast.training.get_recipe("quick", "cnn", 5000)
    recipe = replace(recipe, batch_size=32, augment=None)
    settings = {"model": "cnn", "recipe": recipe, "rounds": 2, "epochs": 3}
    found = iterative_filtering(data, **settings)
    errors = image_errors(found.images, poisoned)
    assert errors.half_total < 0.2, (errors, found.shares)
    assert found.images.dtype == np.int64
    assert len(found.shares) == 2
    assert found.shares[-1] == pytest.approx(len(found.images) / len(data))
    few = data.balanced(200)
    once, again = (iterative_filtering(few, **settings | {"epochs": 1}) for _ in range(2))
    assert np.array_equal(once.images, again.images)


def test_the_suspects_get_the_extra_labels(monkeypatch, clean):
    """The second round has label C + c for the images that the first network did not assign to c."""
    assigned = np.where(np.arange(len(clean)) % 3 == 0, clean.labels, (clean.labels + 1) % 10)
    rounds = []
    monkeypatch.setattr("ulfast.analysis.detectors._assigned", lambda network, loader: assigned)

    def train(model, loader, test_loader, recipe, **_):
        rounds.append((loader.dataset.labels, list(model.parameters())[-1].shape[0], recipe))

    monkeypatch.setattr("ulfast.analysis.detectors.train", train)
    found = iterative_filtering(clean, model="cnn", rounds=2)
    (first, outputs, recipe), (second, _, _) = rounds
    assert np.array_equal(first, clean.labels)
    assert np.array_equal(second - clean.labels, np.where(np.arange(len(clean)) % 3 == 0, 0, 10))
    assert outputs == 20
    assert (recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.schedule) == ("sgd", 0.1, 5e-4, "cosine")
    assert np.array_equal(found.images, np.arange(0, len(clean), 3))


def test_what_cannot_be_examined(clean):
    one = clean.subset(np.flatnonzero(clean.labels == 0))
    for detector in (simple_2nn, simple_linear, bias_shift, iterative_filtering):
        with pytest.raises(InputError, match="one class"):
            detector(one)
        with pytest.raises(InputError, match="at least 5"):
            detector(clean[:4])
    for detector in (simple_2nn, simple_linear, bias_shift, iterative_filtering):
        with pytest.raises(InputError, match="epochs must be at least 1, got 0"):
            detector(clean, epochs=0)
    with pytest.raises(InputError, match="hidden must be at least 1, got 0"):
        simple_2nn(clean, hidden=0)
    with pytest.raises(InputError, match="rounds"):
        iterative_filtering(clean, rounds=0)
    with pytest.raises(InputError, match="unknown model"):
        bias_shift(clean, model="resnet9")
