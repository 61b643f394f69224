"""Images brought to one size."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ulfast.data.resize import centre_square


def photograph(height, width, channels=3):
    """Smooth shapes with edges and grain, uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [128 + 90 * np.sin(9 * x * (c + 1) + 5 * y) * np.sign(y - x * 0.7) for c in range(channels)]
    return (np.stack(planes, -1) + rng.normal(0, 6, (height, width, channels))).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(375, 500), (500, 334), (90, 64), (224, 301)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_resized_image_is_pillows_but_for_a_few_values(size, channels):
    image, side = photograph(*size, channels), 224
    height, width = size
    scale = side / min(size)
    whole = (max(side, round(width * scale)), max(side, round(height * scale)))
    picture = Image.fromarray(image[..., 0] if channels == 1 else image).resize(whole, Image.Resampling.BICUBIC)
    left, top = (whole[0] - side) // 2, (whole[1] - side) // 2
    wanted = np.asarray(picture.crop((left, top, left + side, top + side))).reshape(side, side, channels)
    got = centre_square(image, side)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    off = np.abs(got.astype(int) - wanted)
    assert off.max() <= 3
    assert (off > 0).mean() < 0.02


def test_an_image_of_that_size_stays_as_it_is():
    image = photograph(64, 64)
    assert centre_square(image, 64) is image


def test_a_read_only_image_is_resized_without_a_warning(recwarn):
    image = photograph(50, 60)
    image.flags.writeable = False
    assert centre_square(image, 32).shape == (32, 32, 3)
    assert not recwarn.list


@pytest.mark.slow
def test_every_level_of_the_cpu_gives_the_same_bytes():
    code = (
        "import hashlib, numpy as np; from ulfast.data.resize import centre_square;"
        "rng = np.random.default_rng(1); d = hashlib.sha256();"
        "[d.update(centre_square(rng.integers(0, 256, (h, w, c), np.uint8), s)) for h, w, c, s in"
        " ((375, 500, 3, 224), (224, 224, 3, 64), (90, 64, 1, 100), (33, 47, 3, 8))]; print(d.hexdigest())"
    )
    found = []
    for level in ("default", "avx2"):
        there = os.environ | {"ATEN_CPU_CAPABILITY": level}
        found.append(subprocess.run([sys.executable, "-c", code], env=there, capture_output=True, check=True).stdout)
    assert found[0] == found[1]
