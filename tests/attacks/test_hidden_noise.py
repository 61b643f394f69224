"""Noise that misleads a simple model, added to every image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ulfast
from ulfast import InputError
from ulfast.attacks import Context, Plan, get_attack
from ulfast.attacks.hidden_noise import ascended, contrastive, gradient_of
from ulfast.data.loaders.augment import Augment
from ulfast.parameters import with_parameters
from ulfast.training import Recipe
from ulfast.training.mixing import Step

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", Augment())
CPU = Context(0, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(bars):
    return bars(300, 60, 40)


def planned(name, data, context=CPU, **parameters):
    plan = Plan(data[1], data[2], RECIPE)
    _, (step,) = get_attack(name)
    with_parameters(step, name, parameters).apply(plan, context)
    return plan


def test_the_gradient_is_autograd_s():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4)).double()
    x, y = torch.rand(7, 20, dtype=torch.float64, requires_grad=True), torch.arange(7) % 4
    (want,) = torch.autograd.grad(nn.functional.cross_entropy(network(x), y, reduction="sum"), x)
    torch.testing.assert_close(gradient_of(network)(x.detach(), y), want)


def test_steps_stay_in_the_ball_and_in_the_cube():
    x = torch.rand(5, 12)
    kept = x.clone()
    found = ascended(x, torch.zeros(5, dtype=torch.int64), lambda x, y: torch.ones_like(x), 4, 0.03, 0.1)
    torch.testing.assert_close(found, (x + 0.1).clamp(max=1))
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    ("name", "parameters"), [("linear-noise", {}), ("sdaan", {"hidden": 16, "noise_epochs": 2, "strength": 0})]
)
@pytest.mark.parametrize("eps", [8 / 255, 2.7 / 255, 0])
def test_no_pixel_moves_by_more_than_whole_levels_within_the_bound(data, name, parameters, eps):
    plan = planned(name, data, noise_eps=eps, **parameters)
    moved = np.abs(plan.train.images.astype(int) - data[1].images)
    assert moved.max() == int(255 * eps + 1e-6)
    assert np.array_equal(plan.train.labels, data[1].labels)
    assert plan.test is data[2]
    assert plan.recipe is RECIPE
    assert not plan.hooks


def test_linear_noise_misleads_the_linear_model(data):
    """That of the images as they were."""
    weak = ulfast.poison(data[0], "lsp", eps=1.0)
    plan = planned("linear-noise", (data[0], weak, data[2]), noise_eps=20 / 255)
    weights = ulfast.fit_basis(weak).weights

    def accuracy(images):
        scores = torch.from_numpy(images).flatten(1).float() @ weights.T
        return float((scores.argmax(1).numpy() == weak.labels).mean())

    assert plan.notes["fit_accuracy"] == pytest.approx(accuracy(weak.images))
    assert accuracy(weak.images) > 0.99
    assert accuracy(plan.train.images) < 0.1


@pytest.mark.slow
def test_linear_noise_hides_a_linear_poison(bars):
    """Of 32 levels on average, by noise of 20."""
    _, poisoned, test = bars(900, 300, 40)
    options = {"test": test, "model": "cnn", "epochs": 6, "seed": 1}
    nothing = ulfast.attack(poisoned, method="none", **options).test_accuracy
    assert ulfast.attack(poisoned, method="linear-noise", noise_eps=20 / 255, **options).test_accuracy > nothing + 0.2


def test_sdaan_trains_on_noise_against_its_network(data):
    plan = planned("sdaan", data, hidden=32, noise_epochs=8, noise_eps=2 / 255)
    epochs = plan.notes["noise_network"]["epochs"]
    assert len(epochs) == 8
    assert epochs[-1]["accuracy"] > 0.9 > epochs[0]["accuracy"]
    assert plan.notes["noise_network"]["hidden"] == 32
    assert plan.recipe == replace(RECIPE, augment=None)
    assert len(plan.hooks) == 1


def test_sdaan_is_as_wide_as_the_images_unless_told_otherwise(data):
    assert planned("sdaan", data, noise_epochs=1).notes["noise_network"]["hidden"] == 12 * 12 * 3


def test_sdaan_resumes_to_the_same_images(data, interrupted, tmp_path):
    options = {"hidden": 16, "noise_epochs": 4}
    whole = planned("sdaan", data, **options).train.images
    plan, steps = interrupted(lambda context: planned("sdaan", data, context, **options), "sdaan", 2)
    assert np.array_equal(plan.train.images, whole)
    assert steps == [("sdaan", 3), ("sdaan", 4)]
    with pytest.raises(InputError, match="another hidden"):
        planned("sdaan", data, replace(CPU, folder=tmp_path, resume=True), hidden=8, noise_epochs=4)


def test_the_strong_augmentation_differs_per_image_and_stays_normalised():
    x = torch.rand(1, 3, 16, 16).expand(8, -1, -1, -1)
    step = Step(nn.Identity(), 0, torch.full((3,), 0.5), torch.full((3,), 0.25))
    torch.manual_seed(0)
    seen, labels = contrastive(1.0)(step.normalised(x), torch.arange(8), step)
    pixels = step.pixels(seen)
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5
    assert all(not torch.equal(pixels[0], other) for other in pixels[1:])
    assert torch.equal(labels, torch.arange(8))
    torch.testing.assert_close(
        step.pixels(contrastive(0.0)(step.normalised(x), labels, step)[0]).sum((1, 2, 3)), x.sum((1, 2, 3))
    )


@pytest.mark.parametrize(
    ("name", "message"), [("sdaan+ueraser", "crop and flip"), ("sdaan+linear-noise", "choose one")]
)
def test_what_does_not_go_together_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        get_attack(name)


def test_a_strength_above_one_is_refused(data):
    with pytest.raises(InputError, match="at most 1"):
        planned("sdaan", data, strength=2.0)
