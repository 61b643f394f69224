"""Sums over the images of each class: exact, in pieces, of few classes or none a piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ulfast.data import Dataset, class_moments


@pytest.fixture
def many() -> Dataset:
    """60 images of 40 classes, of which three have none."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 5, 4, 3), np.uint8)
    labels = generator.permutation(np.r_[np.arange(3, 40), np.full(23, 7)])
    return Dataset(images, labels.astype(np.int64), tuple(str(c) for c in range(40)))


@pytest.mark.parametrize("size", [1, 7 * 60, 64 << 20])
def test_sums_do_not_depend_on_the_pieces(many, monkeypatch, size):
    monkeypatch.setattr(class_moments, "CHUNK_BYTES", size)
    got = class_moments.class_moments(many, squares=True)
    assert got.counts.tolist() == [int((many.labels == c).sum()) for c in range(40)]
    for c in range(40):
        own = many.images[many.labels == c].astype(np.int64)
        np.testing.assert_array_equal(got.sums[c], own.sum(0))
        np.testing.assert_array_equal(got.squares[c], (own**2).sum(0))


def test_means_are_in_units_of_one_and_missing_without_an_image(many):
    means = class_moments.class_moments(many).means()
    assert (means.shape, means.dtype) == ((40, 60), torch.float64)
    assert means[:3].isnan().all()
    own = many.images[many.labels == 7].reshape(24, -1) / 255
    np.testing.assert_allclose(means[7], own.mean(0), rtol=1e-12)


def test_squares_only_where_asked_for_and_progress_to_the_end(many):
    seen: list[tuple[int, int]] = []
    assert class_moments.class_moments(many, progress=lambda *at: seen.append(at)).squares is None
    assert seen == [(60, 60)]
