"""Strong augmentation, and the poisons made through it, with random noise, or with a colour."""

from __future__ import annotations

import colorsys
from collections import Counter

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError
from ulfast.poisons import POISONS, augment, em, get_poison, poison, rem, tap
from ulfast.poisons.surrogate import Surrogate

CNN = {"surrogate": "cnn", "lr": 0.01}
NEUTRAL = torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.5, 0.999]])


def smooth(n: int = 4, size: int = 16) -> torch.Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def test_strength_zero_is_at_most_a_mirroring():
    x = smooth()
    u = torch.rand(4, augment.DRAWS)
    u[:, 4] = torch.tensor([0.1, 0.9, 0.1, 0.9])
    torch.testing.assert_close(augment.augmented(x, u, 0.0)[1::2], x[1::2])
    torch.testing.assert_close(augment.augmented(x, u, 0.0)[::2], x[::2].flip(3))


def test_crops_keep_their_share_of_the_area_and_lie_inside():
    n, size = 400, 32
    ramp = torch.arange(size).float() / size
    x = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), torch.zeros(size, size)])
    x = x.expand(n, 3, size, size)
    u = torch.rand(n, augment.DRAWS, generator=torch.Generator().manual_seed(1))
    u[:, 9] = 0.999  # neither jitter nor gray
    seen = augment.augmented(x, u, 1.0)
    middle = seen[:, :, 8:24, 8:24]
    across = (middle[:, 0, :, 1:] - middle[:, 0, :, :-1]).mean((1, 2)) * size
    down = (middle[:, 1, 1:] - middle[:, 1, :-1]).mean((1, 2)) * size
    area = (across * down).abs()
    assert 0.09 < float(area.min()) < 0.2
    assert 0.8 < float(area.max()) <= 1.001
    assert 130 < int((across < 0).sum()) < 270
    assert bool((down > 0).all())
    ratio = across.abs() / down
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 1.4
    weak = augment.augmented(x, u, 0.1)[:, 0, 8:24, 8:24]
    assert float((weak[:, :, 1:] - weak[:, :, :-1]).mean((1, 2)).abs().min()) * size > 0.7


def test_jitter_and_gray_come_as_often_as_they_should():
    x = smooth(1).expand(2000, -1, -1, -1)
    u = NEUTRAL.repeat(2000, 1)
    u[:, 5] = 0.9
    u[:, 9] = torch.rand(2000, generator=torch.Generator().manual_seed(2))
    seen = augment.augmented(x, u, 0.5)
    brighter = (seen.mean((1, 2, 3)) > 1.05 * x[0].mean()).double().mean()
    gray = ((seen[:, 0] - seen[:, 1]).abs().amax((1, 2)) < 1e-6).double().mean()
    assert float(brighter) == pytest.approx(0.4, abs=0.04)
    assert float(gray) == pytest.approx(0.1, abs=0.03)


def test_a_turn_of_the_hue_turns_the_hue():
    x = torch.tensor([0.6, 0.4, 0.35])[None, :, None, None].expand(1, 3, 8, 8)
    u = NEUTRAL.clone()
    u[:, 8], u[:, 9] = 0.75, 0.0
    seen = augment.augmented(x, u, 0.5)[0, :, 4, 4].tolist()
    before, after = (colorsys.rgb_to_hsv(*v)[0] for v in ([0.6, 0.4, 0.35], seen))
    assert 0.01 < abs((after - before + 0.5) % 1 - 0.5) < 0.06
    assert augment.augmented(x.mean(1, keepdim=True), u, 0.5).shape == (1, 1, 8, 8)


def test_the_backward_map_is_the_gradient():
    x = smooth().double()
    u = torch.rand(4, augment.DRAWS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights = torch.rand(x.shape, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(augment.augmented(leaf, u, 0.6), leaf, weights)
    way = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    up, down = (augment.augmented(x + s * 1e-6 * way, u, 0.6) for s in (1, -1))
    slope = ((up - down) * weights).sum((1, 2, 3)) / 2e-6
    torch.testing.assert_close((gradient * way).sum((1, 2, 3)), slope, rtol=1e-5, atol=1e-6)
    # `shown` has the same, each image's from its number.
    moved, back = augment.shown(x.float(), 0.6, 3, 9, 40)
    assert torch.equal(augment.shown(x.float()[2:], 0.6, 3, 9, 42)[0], moved[2:])
    assert not torch.equal(augment.shown(x.float(), 0.6, 3, 10, 40)[0], moved)
    assert back(torch.ones_like(moved)).shape == x.shape


def test_published_defaults(make_dataset):
    ten, hundred = make_dataset(500, 8, classes=10), make_dataset(500, 8, classes=100)
    assert get_poison("aue")[1].resolved(ten) | {"steps": 5, "train_steps": 4, "rounds": 60, "strength": 0.6} == (
        get_poison("aue")[1].resolved(ten)
    )
    assert get_poison("aue")[1].resolved(ten)["alpha"] == pytest.approx(0.8 / 255)
    assert get_poison("aue")[1].resolved(hundred)["strength"] == 1.0
    aap = get_poison("aap")[1].resolved(ten)
    assert aap["alpha"] * 250 == pytest.approx(2.5 * 8 / 255)
    assert (aap["epochs"], aap["lr"], aap["steps"], aap["strength"]) == (40, 0.5, 250, 0.4)
    assert get_poison("aap")[1].resolved(hundred)["strength"] == 0.8
    sem = get_poison("sem")[1].resolved(ten)
    assert (sem["iterations"], sem["steps"], sem["samples"], sem["inner"]) == (5000, 10, 5, "random")
    assert sem["eps_a"] == pytest.approx(4 / 255)
    dune = get_poison("dune")[1].resolved(ten)
    assert (dune["offset"], dune["steps"], dune["checkpoints"]) == (3, 30, 5)
    assert dune["alpha"] == pytest.approx(0.5 / 255)
    fu = em.ErrorMinimising(preset="fu").resolved(ten)
    assert (fu["rounds"], fu["steps"], fu["alpha"]) == (5000, 10, pytest.approx(1.6 / 255))
    huang = em.ErrorMinimising().resolved(ten)
    assert (huang["rounds"], huang["steps"], huang["train_steps"], huang["stop"]) == (100, 20, 10, 0.01)


def test_aue_trains_and_searches_through_the_augmentation(make_dataset, monkeypatch):
    clean, numbers, rates = make_dataset(60), [], []
    seen, learn = em.shown, Surrogate.learn
    monkeypatch.setattr(em, "shown", lambda *a: (numbers.append(a[3]), seen(*a))[1])
    monkeypatch.setattr(
        Surrogate,
        "learn",
        lambda self, x, y, optimizer, *a, **k: (
            rates.append(optimizer.param_groups[0]["lr"]),
            learn(self, x, y, optimizer, *a, **k),
        )[1],
    )
    poison(clean, "aue", **CNN, rounds=2, steps=2, batch_size=30)
    # Two rounds of two training steps; then two batches of two steps each, whose images have draws of their own.
    training = [number for number in numbers if number >= em.TRAINING]
    assert training == [em.TRAINING + i for i in range(4)]
    assert Counter(number for number in numbers if number < em.TRAINING) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert rates == pytest.approx([0.01, 0.01 * 0.8535534, 0.005, 0.01 * 0.1464466])
    with pytest.raises(InputError, match="strength must be between 0 and 1"):
        poison(clean, "aue", strength=2)


def test_aap_trains_its_network_on_what_it_attacks(make_dataset, monkeypatch):
    clean, seen, sweep = make_dataset(60), {}, tap.sweep
    monkeypatch.setattr(tap, "sweep", lambda *a, **options: (seen.update(options), sweep(*a, **options)))
    options = {**CNN, "epochs": 2, "steps": 4}
    strong = poison(clean, "aap", **options)
    assert seen["alphas"] == pytest.approx([-2.5 * 8 / 255 / 4] * 4)
    x = torch.rand(4, 3, 12, 12)
    assert not torch.equal(seen["augment"](torch.arange(4), 0)(x, 1)[0], seen["augment"](torch.arange(4), 0)(x, 2)[0])
    plain = poison(clean, "aap", **options, strength=0)
    assert seen["augment"] is None
    assert strong.manifest["making"]["surrogate_accuracy"] != plain.manifest["making"]["surrogate_accuracy"]
    poison(clean, "aap", **options, targeted=False)
    assert min(seen["alphas"]) > 0
    assert torch.equal(seen["targets"](torch.arange(3)), torch.arange(3))


def test_sem_draws_where_rem_has_an_adversary(make_dataset, monkeypatch):
    clean, calls, gradient = make_dataset(60), [], Surrogate.gradient
    monkeypatch.setattr(Surrogate, "gradient", lambda self, *a: (calls.append(1), gradient(self, *a))[1])
    options = {**CNN, "iterations": 2, "steps": 2, "steps_a": 3, "samples": 2, "batch_size": 30}
    poison(clean, "sem", **options)
    assert len(calls) == 4 * 2 * 2  # searches of two batches to train on and of two in the end, steps, samples
    calls.clear()
    poison(clean, "rem", **options)
    # Four times that, a step of the adversary each; its steps at the last look, and of what is trained on.
    assert len(calls) == 4 * 2 * 2 * 4 + 4 * 2 * 3 + 2 * 3
    start = torch.full((2, 3, 12, 12), 0.5)
    found = POISONS["sem"]._adversary(None, start, None, {"eps_a": 4 / 255}, rem.Draws(0, 0, 0))
    assert 3.9 / 255 < float((found - start).abs().max()) <= 4 / 255 + 1e-6


def test_em_of_fu_searches_from_new_random_starts(make_dataset, monkeypatch):
    clean, starts, seen = make_dataset(60), [], rem.random_start
    monkeypatch.setattr(rem, "random_start", lambda *a, **k: (starts.append(a[3]), seen(*a, **k))[1])
    options = {**CNN, "preset": "fu", "rounds": 2, "batch_size": 30}
    made = poison(clean, "em", **options)
    assert starts == pytest.approx([8 / 255] * 4)  # two batches to train on, and all images in the end
    assert made.manifest["parameters"]["steps"] == 10
    assert made.checksum() == poison(clean, "em", **options).checksum()
    with pytest.raises(InputError, match="fu is sample-wise"):
        poison(clean, "em-classwise", preset="fu")
    with pytest.raises(InputError, match="preset must be one of huang, fu"):
        poison(clean, "em", preset="quick")


def test_dune_adds_a_colour_of_each_class_to_what_sep_adds(make_dataset):
    clean = make_dataset(60)
    gray = ulfast.Dataset(clean.images // 2 + 60, clean.labels, clean.classes)
    options = {"surrogate": "cnn", "epochs": 2, "checkpoints": 2, "steps": 3, "offset": 1, "alpha": 1 / 255}
    made = poison(gray, "dune", **options, flights=2, particles=4)
    spatial = poison(gray, "sep", **options)
    colours = np.array(made.manifest["making"]["colours"])
    assert colours.shape == (3, 3)
    assert np.abs(colours).max() > 8 / 255
    rest = made.images.astype(int) - spatial.images
    assert np.array_equal(rest, np.broadcast_to(np.rint(255 * colours[gray.labels])[:, None, None], rest.shape))
    assert made.checksum() == poison(gray, "dune", **options, flights=2, particles=4).checksum()
    with pytest.raises(InputError, match="offset 3 of 3 classes aims at an image's own: give --set offset=1"):
        poison(gray, "dune", surrogate="cnn")
