"""Class-wise convolutions, measured at the images' borders and undone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError, ops
from ulfast.attacks import Context, Plan, get_attack
from ulfast.parameters import with_parameters
from ulfast.projection.deconvolution import border_filter, divided, fit_class_filters
from ulfast.training import Recipe

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", None)


@pytest.fixture(scope="module")
def clean():
    return ulfast.load_dataset("sample")


@pytest.fixture(scope="module")
def poisoned(clean):
    return ulfast.poison(clean, "cuda", seed=0)


def filters(seed, classes=10, side=3, blur=0.3):
    """The kernels of `cuda`, which sum to one."""
    u = ops.philox_uniform(seed, ops.philox.STREAM_CUDA, 0, classes, side * side + 1)
    kernels = u[:, :-1] * blur
    one = (u[:, -1] * side * side).long().clamp_max(side * side - 1)
    kernels[torch.arange(classes), one] = 1.0
    kernels = kernels.view(-1, side, side).double().numpy()
    return kernels / kernels.sum((1, 2), keepdims=True)


def planned(data, name="deconvolve", **parameters):
    plan = Plan(data, data, RECIPE)
    _, (step,) = get_attack(name)
    with_parameters(step, name, parameters).apply(plan, Context(0, torch.device("cpu")))
    return plan


def psnr(images, reference, kernel=None):
    """PSNR in decibels with each image optimally scaled and without its border; with a filter, shifted back as it
    shifted."""
    if kernel is not None:
        middle = len(kernel) // 2
        images = np.roll(images, [int(i) - middle for i in np.unravel_index(kernel.argmax(), kernel.shape)], (1, 2))
    want = reference[:, 6:-6, 6:-6].astype(float)
    got = images[:, 6:-6, 6:-6].astype(float)
    scale = (got * want).sum((1, 2, 3), keepdims=True) / np.square(got).sum((1, 2, 3), keepdims=True)
    return -10 * np.log10(np.square((got * scale - want) / 255).mean())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_an_even_image_shows_its_filter(width):
    """Exactly, whatever the weights."""
    kernel = np.random.default_rng(width).random((2 * width + 1,) * 2)
    kernel /= kernel.sum()
    light = torch.full((1, 1, 48, 40), 200.0, dtype=torch.float64)
    seen = torch.nn.functional.conv2d(light, torch.from_numpy(kernel)[None, None], padding=width)[0, 0].numpy()
    np.testing.assert_allclose(border_filter(seen - 1 + seen / 200, width), kernel, atol=1e-3)


def test_the_filters_of_cuda_are_inferred_from_its_images(clean, poisoned):
    found = fit_class_filters(poisoned, 1)
    assert np.abs(found.kernels - filters(0)).max() < 0.04
    assert np.abs(found.kernels - filters(0)).mean() < 0.01
    assert found.convolved.mean() > 0.98


def test_images_come_back(clean, poisoned):
    """From 20 to 30 dB to 33 and more."""
    restored = planned(poisoned).train
    for c, kernel in enumerate(filters(0)):
        own = poisoned.labels == c
        before = psnr(poisoned.images[own], clean.images[own], kernel)
        after = psnr(restored.images[own], clean.images[own])
        assert after > max(33, before + 8), (c, before, after)
    assert np.array_equal(restored.labels, poisoned.labels)
    assert (restored.images.max(axis=(1, 2, 3)) <= poisoned.images.max(axis=(1, 2, 3))).all()


@pytest.mark.slow
def test_large_filters_of_large_images_come_back(clean):
    images = np.repeat(np.repeat(clean.images[:800], 3, axis=1), 3, axis=2)
    large = replace(clean, images=images, labels=clean.labels[:800])
    poisoned = ulfast.poison(large, "cuda", seed=0, size=9, blur=0.06)
    restored = planned(poisoned)
    assert restored.notes["deconvolved"]["border"] == 4
    kernels = filters(0, side=9, blur=0.06)
    gains = []
    for c, kernel in enumerate(kernels):
        own = poisoned.labels == c
        gains.append(psnr(restored.train.images[own], images[own]) - psnr(poisoned.images[own], images[own], kernel))
    assert np.mean(gains) > 3


def test_only_the_poisoned_images_are_restored(clean):
    some = ulfast.poison(clean, "cuda", seed=0, rate=0.2)
    changed = (some.images != clean.images).any(axis=(1, 2, 3))
    found = fit_class_filters(some, 1)
    assert found.convolved[changed].mean() > 0.97
    assert found.convolved[~changed].mean() < 0.05
    restored = planned(some).train
    others = [images[~found.convolved] for images in (restored.images, some.images)]
    assert np.array_equal(*(images[:, 3:-3, 3:-3] for images in others))


def test_the_border_does_not_tell_the_restored_images(clean):
    """All are mirrored, three pixels wide, about the fourth: also those of classes that were not convolved."""
    some = ulfast.poison(clean, "cuda", seed=0, classes=[0, 1])
    restored = planned(some).train.images
    for images in (
        restored,
        restored[:, ::-1],
        restored.transpose(0, 2, 1, 3),
        restored.transpose(0, 2, 1, 3)[:, ::-1],
    ):
        for k in range(3):
            assert np.array_equal(images[:, k], images[:, 6 - k])


@pytest.mark.parametrize("method", [None, "lsp", "ar", "ops", "regions-16"])
def test_images_without_a_dark_border_do_not_change(clean, method):
    data = clean if method is None else ulfast.poison(clean, method, seed=0)
    plan = planned(data)
    assert plan.train is data
    assert "deconvolved" not in plan.notes
    assert plan.notes["dark_border"] < 0.05


def test_without_a_filter_division_changes_nothing_but_the_border(clean):
    nothing = np.zeros((3, 3))
    nothing[1, 1] = 1
    images = clean.images[:20]
    got = divided(images, nothing)
    assert np.abs(got[:, 3:-3, 3:-3].astype(int) - images[:, 3:-3, 3:-3]).max() <= 1


def test_gray_and_oblong_images_are_restored_too(clean):
    gray = clean.images.mean(3, keepdims=True).astype(np.uint8)[:, :24]
    data = replace(clean, images=np.ascontiguousarray(gray))
    poisoned = ulfast.poison(data, "cuda", seed=1)
    restored = planned(poisoned).train
    kernels = filters(1)
    own = poisoned.labels == 3
    before = psnr(poisoned.images[own], data.images[own], kernels[3])
    assert psnr(restored.images[own], data.images[own]) > before + 5


def test_a_border_that_leaves_nothing_inside_is_refused(poisoned):
    with pytest.raises(InputError, match="a border of 6 pixels needs images of 60"):
        planned(poisoned, border=6)


def test_orthogonal_full_begins_with_it(poisoned):
    plan = planned(poisoned, "orthogonal-full")
    assert plan.notes["deconvolved"]["border"] == 1
    assert np.array_equal(plan.train.images, planned(poisoned).train.images)
    with pytest.raises(InputError, match="orthogonal-full is enough"):
        get_attack("deconvolve+orthogonal-full")


def test_an_attack_by_deconvolution_learns(clean, poisoned, tmp_path):
    some = poisoned.subset(np.arange(1200))
    test = ulfast.load_dataset("sample", split="test")
    result = ulfast.attack(some, test=test, method="deconvolve", model="cnn", epochs=2, out=tmp_path / "run")
    assert result.notes["deconvolved"]["convolved"] > 1100
    assert (tmp_path / "run" / "examples.npz").is_file()
