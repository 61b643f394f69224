"""Diffusion purification by a small model of some clean images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ulfast import InputError
from ulfast.attacks import Context, Plan, get_attack
from ulfast.attacks.diffusion import TIMES, Denoiser, purified, signal
from ulfast.parameters import with_parameters
from ulfast.training import Recipe

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", None)
CPU = Context(0, torch.device("cpu"))
SMALL = {"width": 4, "diffusion_steps": 3, "clean_images": 60}


@pytest.fixture(scope="module")
def data(bars):
    return bars(300, 60, 40)


def planned(data, context=CPU, **parameters):
    plan = Plan(data[1], data[2], RECIPE)
    _, (step,) = get_attack("avatar")
    with_parameters(step, "avatar", SMALL | parameters).apply(plan, replace(context, clean=data[0]))
    return plan


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 9, 14), (3, 3, 11, 7)])
def test_the_network_keeps_the_shape_and_hears_the_time(shape):
    torch.manual_seed(0)
    network, x = Denoiser(shape[1], 8), torch.randn(shape)
    early, late = (network(x, torch.full((shape[0],), at)) for at in (0, TIMES - 1))
    assert early.shape == shape
    assert not torch.allclose(early, late, atol=1e-3)


def test_the_signal_is_the_published_process_s():
    """exp(-integral of the rate) with a rate from 0.1 to 20, within what its steps make of it."""
    left = signal()
    time = torch.arange(1, TIMES + 1) / TIMES
    torch.testing.assert_close(left, torch.exp(-(0.1 * time + 0.5 * 19.9 * time**2)), atol=2e-3, rtol=0)
    assert left[99] == pytest.approx(0.8963, abs=1e-3)  # where AVATAR stops


@pytest.mark.parametrize("steps", [1, 4])
def test_who_knows_the_noise_gives_the_image_back(steps):
    """Of a model that is always right nothing is lost, however many steps are taken."""
    x = torch.rand(5, 3, 8, 8) * 1.8 - 0.9
    noise, left = torch.randn(5, 3, 8, 8), signal()

    class Knows(nn.Module):
        def forward(self, seen, time):
            share = left[time][:, None, None, None]
            return (seen - share.sqrt() * x) / (1 - share).sqrt()

    times = torch.linspace(99, 0, steps + 1).round().int().tolist()[:-1]
    torch.testing.assert_close(purified(Knows(), x, noise, times), x, atol=1e-4, rtol=0)


def test_images_are_replaced_and_labels_and_test_images_stay(data):
    plan = planned(data)
    assert plan.train.images.shape == data[1].images.shape
    assert plan.train.images.dtype == np.uint8
    assert not np.array_equal(plan.train.images, data[1].images)
    assert np.array_equal(plan.train.labels, data[1].labels)
    assert plan.test is data[2]
    assert plan.notes["avatar"]["clean_images"] == 60
    assert np.array_equal(planned(data).train.images, plan.train.images)
    one = planned(data, purify_steps=1)
    assert not np.array_equal(one.train.images, plan.train.images)


def test_resumed_it_gives_the_same_images(data, interrupted, monkeypatch):
    monkeypatch.setattr("ulfast.attacks.diffusion.PIECE", 2)
    whole = planned(data, diffusion_steps=5).train.images
    plan, steps = interrupted(lambda context: planned(data, context, diffusion_steps=5), "avatar", 2)
    assert np.array_equal(plan.train.images, whole)
    assert steps == [("avatar", 3)]


@pytest.mark.slow
def test_noise_is_taken_away(bars):
    """A fifth of the squared error of the noised images at most is left; the rest of them has been learned."""
    clean, _, test = bars(600, 60, 60)
    plan = planned((clean, clean, test), width=8, diffusion_steps=400, clean_images=600)
    left = signal()[99]
    added = (1 - left) / left * 127.5**2  # of an image that is scaled back to its brightness
    assert np.square(plan.train.images.astype(float) - clean.images).mean() < 0.35 * float(added)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"width": 6}, "multiple of 4"), ({"purify_time": 2000}, "at most 1000"), ({"purify_time": 3}, "10 steps back")],
)
def test_what_cannot_be_is_refused(data, parameters, message):
    with pytest.raises(InputError, match=message):
        planned(data, **parameters)


def test_it_needs_clean_images(data):
    _, (step,) = get_attack("avatar")
    with pytest.raises(InputError, match="--clean"):
        step.apply(Plan(data[1], data[2], RECIPE), CPU)
