"""The result of the published loaders on the published files, in our own arithmetic.

Noise is not in whole levels, so that a rounding, another float type or another order of operations shows.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import ulfast
from ulfast.poisons.imported import import_published

CLASSES = 10


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (500, 16, 16, 3), dtype=np.uint8)
    images[::3] //= 16  # dark and bright images, whose sums leave the range
    images[1::3] |= 0xF0
    return ulfast.Dataset(images, rng.permutation(500) % CLASSES, tuple(map(str, range(CLASSES))), "base")


def noise(count, dtype, seed=1):
    return np.random.default_rng(seed).uniform(-8 / 255, 8 / 255, (count, 16, 16, 3)).astype(dtype)


def differs_from_rounding(got, path, base):
    """Truncation is half a level darker; without that difference the test would show nothing."""
    other = import_published(path, base, rounding="nearest").images
    return 0.3 < (got != other).mean() < 0.6 and ((other - got) <= 1).all()


@pytest.mark.parametrize("classwise", [False, True])
def test_em_pt_is_added_in_float32_levels_and_truncated(tmp_path, base, classwise):
    delta = noise(CLASSES if classwise else 500, np.float32)
    torch.save(torch.from_numpy(delta.transpose(0, 3, 1, 2).copy()), tmp_path / "perturbation.pt")
    levels = delta * np.float32(255)
    total = base.images.astype(np.float32) + (levels[base.labels] if classwise else levels)
    got = import_published(tmp_path / "perturbation.pt", base).images
    assert np.array_equal(got, np.minimum(np.maximum(total, 0), 255).astype(np.uint8))
    assert differs_from_rounding(got, tmp_path / "perturbation.pt", base)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classwise", [False, True])
def test_ops_npy_is_added_in_float64_shares_and_truncated(tmp_path, base, dtype, classwise):
    delta = noise(CLASSES if classwise else 500, dtype)
    delta[:, 3, 4] = 1  # the pixel itself
    delta[:, 5, 6] = np.arange(-1, 2) / 255  # whole levels, of which float arithmetic loses some
    np.save(tmp_path / "perturbation.npy", delta)
    total = base.images / np.float64(255) + (delta[base.labels] if classwise else delta)
    got = import_published(tmp_path / "perturbation.npy", base).images
    assert np.array_equal(got, (255 * np.minimum(np.maximum(total, 0), 1)).astype(np.uint8))
    assert differs_from_rounding(got, tmp_path / "perturbation.npy", base)


def test_rem_pickle_is_added_in_whole_levels(tmp_path, base):
    delta = np.random.default_rng(2).integers(-8, 9, (500, 3, 16, 16)).astype(np.int8)
    (tmp_path / "noise.pkl").write_bytes(pickle.dumps(delta))
    total = base.images.astype(int) + delta.transpose(0, 2, 3, 1)
    for rounding in ("truncate", "nearest"):
        got = import_published(tmp_path / "noise.pkl", base, rounding=rounding).images
        assert np.array_equal(got, total.clip(0, 255))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ntga_images_are_truncated_in_their_own_type(tmp_path, base, dtype):
    order = np.random.default_rng(3).permutation(500)[:400]
    images = (base.images / 255 + noise(500, np.float64)).clip(0, 1).astype(dtype)
    for rows in (np.arange(500), order):  # the base's order, and its own
        np.save(tmp_path / "x_train_cifar10_ntga_fnn_best.npy", images[rows])
        np.save(tmp_path / "y_train_cifar10.npy", np.eye(CLASSES)[base.labels[rows]])
        got = import_published(tmp_path, base)
        assert np.array_equal(got.images, (images[rows] * dtype(255)).astype(np.uint8))
        assert np.array_equal(got.labels, base.labels[rows])
        assert differs_from_rounding(got.images, tmp_path, base)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lsp_noise_follows_its_own_labels(tmp_path, base, dtype):
    """The k-th image of a class takes the k-th perturbation of that class; what is left over goes unused."""
    delta, labels = noise(600, dtype), np.arange(600) // 60
    np.save(tmp_path / "simple_data.npy", delta)
    np.save(tmp_path / "simple_label.npy", labels)
    used = np.zeros(CLASSES, int)
    want = np.empty_like(base.images)
    for i, (image, label) in enumerate(zip(base.images, base.labels, strict=True)):
        share = image / np.float64(255) + delta[60 * label + used[label]]
        want[i] = np.minimum(np.maximum(share * 255, 0), 255).astype(np.uint8)
        used[label] += 1
    got = import_published(tmp_path, base).images
    assert np.array_equal(got, want)
    assert differs_from_rounding(got, tmp_path, base)


def test_pil_images_are_truncated_in_float32(tmp_path, base):
    images = (base.images / 255 - noise(500, np.float64)).clip(0, 1).astype(np.float32)
    content = {"data": torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), "labels": torch.from_numpy(base.labels)}
    torch.save(content, tmp_path / "unlearnable_cifar10.pt")
    got = import_published(tmp_path / "unlearnable_cifar10.pt", base).images
    assert np.array_equal(got, (images * np.float32(255)).astype(np.uint8))
    assert differs_from_rounding(got, tmp_path / "unlearnable_cifar10.pt", base)


def test_tap_pngs_are_the_images(tmp_path, base):
    few = base.subset(np.arange(40))
    (tmp_path / "data").mkdir()
    for i, image in enumerate(few.images):
        Image.fromarray(image ^ 1).save(tmp_path / "data" / f"{i}.png")
    assert np.array_equal(import_published(tmp_path, few).images, few.images ^ 1)
