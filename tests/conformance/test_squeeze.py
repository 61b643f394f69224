"""Byte equality with the published image squeezing: Pillow's gray, posterise and JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import ulfast
from ulfast.attacks import Context, Plan, get_attack
from ulfast.parameters import with_parameters
from ulfast.training import Recipe

RECIPE = Recipe("test", 1, 32, "adamw", 3e-3, 0.0, "one-cycle", None)
SIZES = ((8, 8), (17, 33), (32, 32), (224, 224))


def picture(height, width, channels):
    """Waves, an edge and noise: smooth parts, sharp parts and both ends of the range."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([127 + 120 * np.sin(x / (3 + c) + y / (5 - c)) for c in range(channels)], axis=-1)
    waves[height // 3 :, width // 2 :] += 60
    return (waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8)


def pillow(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def squeezed(method, image, **parameters):
    data = ulfast.Dataset(np.stack([image, 255 - image]), np.array([0, 1]), ("a", "b"))
    plan = Plan(data, data, RECIPE)
    _, (step,) = get_attack(method)
    with_parameters(step, method, parameters).apply(plan, Context(0, torch.device("cpu")))
    return plan.train.images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("quality", [1, 10, 30, 50, 75, 90, 95, 96, 100])
def test_jpeg_is_pillow_s_save_and_open(quality, size, channels):
    image = picture(*size, channels)
    for one, got in zip((image, 255 - image), squeezed("iss-jpeg", image, quality=quality), strict=True):
        stream = io.BytesIO()
        pillow(one).save(stream, "JPEG", quality=quality)
        assert np.array_equal(got, np.asarray(Image.open(stream)).reshape(one.shape))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_gray_is_pillow_s_l(size):
    image = picture(*size, 3)
    for one, got in zip((image, 255 - image), squeezed("iss-gray", image), strict=True):
        assert np.array_equal(got, np.repeat(np.asarray(pillow(one).convert("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_bit_depth_is_pillow_s_posterise(bits, channels):
    image = picture(17, 33, channels)
    for one, got in zip((image, 255 - image), squeezed("iss-bdr", image, bits=bits), strict=True):
        assert np.array_equal(got, np.asarray(ImageOps.posterize(pillow(one), bits)).reshape(one.shape))


def test_the_published_blur_changes_nothing():
    """Sigma 0.1 at 3 x 3: the weight of a neighbour is below a part in 10^21."""
    image = picture(32, 32, 3)
    assert np.array_equal(squeezed("gaussian", image, sigma=0.1)[0], image)
