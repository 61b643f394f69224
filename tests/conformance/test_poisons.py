"""The behaviour of the published programs, as statistics of our poisons on images made here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ulfast.data import Dataset
from ulfast.poisons import Workplace, ar, get_poison, poison
from ulfast.poisons.surrogate import Surrogate


def gray(n: int, classes: int, size: int = 32) -> Dataset:
    return Dataset(
        np.full((n, size, size, 3), 128, np.uint8), np.arange(n) % classes, tuple(f"class{c}" for c in range(classes))
    )


def noise(clean: Dataset, method: str, **parameters: object) -> np.ndarray:
    """What is added, (n, H, W, C) float64, pixels in [0, 1]."""
    return (poison(clean, method, **parameters).images.astype(int) - clean.images) / 255


def test_ops_takes_the_pixel_that_stands_out_most():
    """Of all pixels and colour-cube corners, the pair with the largest ratio of mean to deviation of its distance from
    the class's images, over images and channels; no pair serves two classes.
    """
    rng = np.random.default_rng(7)
    base = rng.integers(0, 256, (10, 9, 9, 3))
    images = (base.repeat(20, 0) + rng.integers(-40, 41, (200, 9, 9, 3))).clip(0, 255).astype(np.uint8)
    clean = Dataset(images, np.arange(10).repeat(20), tuple("abcdefghij"))
    corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], dtype=float)
    made, used = poison(clean, "ops").images, set()
    for label in range(10):
        x = images[clean.labels == label] / 255
        distance = np.abs(corners[:, None, None, None] - x)  # (corner, image, y, x, channel)
        score = distance.mean((1, 4)) / distance.std((1, 4))
        for taken in used:
            score[taken] = -1
        corner, *at = np.unravel_index(score.argmax(), score.shape)
        used.add((corner, *at))
        want = images[clean.labels == label].copy()
        want[:, at[0], at[1]] = 255 * corners[corner]
        assert np.array_equal(made[clean.labels == label], want)


def plain_ar(windows: np.ndarray, n: int, size: int) -> np.ndarray:
    """n images of one process, (n, 3, size, size) of L2 norm 1: white noise four pixels larger, in which every value is
    replaced by the weighted sum of the eight before it, row by row; the first four rows and columns go."""
    x = np.random.default_rng(3).standard_normal((n, 3, size + 4, size + 4))
    for i in range(size + 2):
        for j in range(size + 2):
            x[:, :, i + 2, j + 2] = (x[:, :, i : i + 3, j : j + 3] * windows).sum((2, 3))
    x = x[:, :, 4:, 4:]
    return x / np.linalg.norm(x.reshape(n, -1), axis=1)[:, None, None, None]


def autocovariance(x: np.ndarray) -> np.ndarray:
    """(n, 3 channels, 9 lags) of each image, lags of up to two rows and columns."""
    size = x.shape[2]
    lags = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
    moved = [(x[:, :, dy:, dx:] * x[:, :, : size - dy, : size - dx]).mean((2, 3)) for dy, dx in lags]
    return np.stack(moved, 2)


def test_ar_has_the_autocovariance_of_its_recurrence():
    windows = ar.find_coefficients(3, 11)
    delta = noise(gray(600, 3), "ar", seed=11).transpose(0, 3, 1, 2)
    norms = np.linalg.norm(delta.reshape(600, -1), axis=1)
    assert 0.97 < norms.mean() < 1.03  # 1 but for whole levels
    for label in range(3):
        ours = autocovariance(delta[label::3])
        theirs = autocovariance(plain_ar(windows[label].double().numpy(), 200, 32))
        error = np.sqrt(ours.var(0) / 200 + theirs.var(0) / 200)
        # Levels add a twelfth of their square to the variance.
        z = (ours.mean(0) - theirs.mean(0) - (np.arange(9) == 0) / 12 / 255**2) / error
        assert np.sqrt((z**2).mean()) < 1.6
        assert np.abs(z).max() < 5


def test_ar_filters_do_not_see_their_own_noise():
    """A process's own filter gives zero; an earlier one's responds with at least 10 to noise of norm 1."""
    windows = ar.find_coefficients(3, 11, accept="published")
    for label in range(3):
        signal = torch.from_numpy(plain_ar(windows[label].double().numpy(), 20, 32)).float()
        answers = ar.response(signal, windows)
        assert answers[:, label].max() < 1e-3
        assert label == 0 or answers[:, :label].amin(1).max() >= 10


def test_lsp_has_the_published_norms_and_angles():
    """Within what two draws by the published program and three seeds of ours gave on CIFAR-10."""
    delta = noise(gray(2000, 10), "lsp", seed=5).reshape(2000, -1)
    labels = np.arange(2000) % 10
    norms = np.linalg.norm(delta, axis=1)
    assert 1.28 < norms.mean() < 1.33
    assert norms.min() > 0.88
    assert norms.max() < 1.37  # the bound is 1.304; levels are truncated
    assert 13 <= np.abs(delta * 255).max() <= 17
    means = np.stack([delta[labels == c].mean(0) for c in range(10)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    own = (delta / norms[:, None] * unit[labels]).sum(1)
    assert 0.915 < own.mean() < 0.94
    between = np.abs((unit @ unit.T)[~np.eye(10, dtype=bool)])
    assert 0.08 < between.mean() < 0.15
    distance = (means**2).sum(1) - 2 * delta @ means.T  # and the same for all classes
    assert (distance.argmin(1) == labels).all()


def test_cuda_filters_are_uniform_with_a_one():
    """The image of a single white pixel is the filter: nine weights, one of them 1, the others uniform below 0.3, the
    same for the channels."""
    images = np.zeros((900, 7, 7, 3), np.uint8)
    images[:, 3, 3] = 255
    clean = Dataset(images, np.arange(900), tuple(map(str, range(900))))
    made = poison(clean, "cuda", seed=2).images
    assert (made == made[..., :1]).all()
    weights = made[:, 2:5, 2:5, 0].reshape(900, 9).astype(int)
    assert made.sum() == 3 * weights.sum()
    assert ((weights == 255).sum(1) == 1).all()
    others = weights[weights < 255]
    assert others.max() <= 0.3 * 255
    histogram = np.histogram(others + 0.5, bins=10, range=(0, 0.3 * 255))[0]
    assert np.abs(histogram - 720).max() < 5 * np.sqrt(720)
    assert np.abs(np.bincount((weights == 255).argmax(1), minlength=9) - 100).max() < 50


def test_em_class_wise_takes_19_steps_per_round(monkeypatch):
    """On 50,000 images: batches of 512 of a fifth of them, the last one left out; 10 steps of the network on all."""
    rng = np.random.default_rng(0)
    images = rng.integers(16, 240, (50_000, 10, 10, 3), dtype=np.uint8)
    clean = Dataset(images, np.arange(50_000) % 10, tuple("abcdefghij"))
    steps, trained = [], []

    def gradient(self, x, y):
        steps.append(torch.bincount(y, minlength=10))
        return torch.ones_like(x), torch.ones(len(y)), torch.zeros(len(y), 10)

    def learn(self, x, y, optimizer, size, clip):
        trained.append((size, clip))
        return torch.ones(())

    monkeypatch.setattr(Surrogate, "gradient", gradient)
    monkeypatch.setattr(Surrogate, "judge", lambda self, x, y: (torch.ones(len(y)), torch.ones(len(y)) > 0))
    monkeypatch.setattr(Surrogate, "learn", learn)
    work = Workplace(device="cpu")
    store = replace(get_poison("em-classwise")[1], surrogate="cnn").find(clean, 0, work)
    assert [int(count.sum()) for count in steps] == [512] * 19
    assert torch.stack(steps).sum(0).min() > 900  # of the 1,000 images of every class
    assert trained == [(512, 5.0)] * 10
    assert [row["error"] for row in work.facts["rounds"]] == [0]  # below 10 %: there is no second round
    # The gradient points the same way everywhere: 19 steps of 0.8 levels, up to the bound.
    torch.testing.assert_close(store.read(torch.arange(10)), torch.full((10, 3, 10, 10), -8 / 255))


@pytest.mark.parametrize(("method", "steps"), [("em", 20), ("hypo", 100), ("sep", 30), ("tap", 250)])
def test_the_published_numbers_of_steps(method, steps):
    values = get_poison(method)[1].resolved(gray(2, 2))
    assert values["steps"] == steps
    assert values["eps"] == pytest.approx(8 / 255)
