"""count_changes: equal to its twin on every CPU level, size and thread count; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ulfast import ops
from ulfast.ops import reference


def make(*shape):
    g = torch.Generator().manual_seed(sum(shape))
    clean = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    moved = clean.int() + torch.randint(-3, 4, shape, generator=g) * (torch.rand(shape, generator=g) < 0.3)
    return clean, moved.clamp(0, 255).to(torch.uint8)


SIZES = [
    *[(7, 32, 32, 3), (3, 8, 8, 3), (2, 5, 13, 3), (1, 224, 224, 3), (4, 9, 9, 1), (3, 6, 7, 4), (2, 11, 5, 2)],
    *[(2, 5, 7, 5), (0, 8, 8, 3), (3, 0, 8, 3), (3, 8, 8, 0), (40, 3)],
]


@pytest.mark.parametrize("size", SIZES)
def test_matches_its_twin(level, size):
    clean, poisoned = make(*size)
    assert torch.equal(ops.count_changes(clean, poisoned), reference.count_changes(clean, poisoned))


def test_the_columns_mean_what_they_say(level):
    clean, poisoned = (images.numpy() for images in make(9, 17, 12, 3))
    got = ops.count_changes(torch.from_numpy(clean), torch.from_numpy(poisoned)).numpy()
    change = poisoned.astype(int) - clean
    assert np.array_equal(got[:, 0], (change != 0).any(3).sum((1, 2)))
    assert np.array_equal(got[:, 1], (change != 0).sum((1, 2, 3)))
    assert np.array_equal(got[:, 2], ((change != 0) & np.isin(poisoned, (0, 255))).sum((1, 2, 3)))
    assert np.array_equal(got[:, 3], np.abs(change).max((1, 2, 3)))
    assert np.array_equal(got[:, 4], (change**2).sum((1, 2, 3)))


def test_the_largest_counts_there_are(level):
    black, white = torch.zeros(2, 64, 64, 3, dtype=torch.uint8), torch.full((2, 64, 64, 3), 255, dtype=torch.uint8)
    values = 64 * 64 * 3
    want = [[64 * 64, values, values, 255, 255**2 * values]] * 2
    assert ops.count_changes(black, white).tolist() == want
    assert ops.count_changes(white, white).tolist() == [[0] * 5] * 2


def test_any_thread_count_and_strides(threads):
    clean, poisoned = make(23, 9, 11, 3)
    want = reference.count_changes(clean, poisoned)
    strided = clean.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(ops.count_changes(strided, poisoned), want)


def test_registration():
    pair = make(2, 8, 16, 3)
    torch.library.opcheck(torch.ops.ulfast.count_changes.default, pair)
    compiled = torch.compile(ops.count_changes, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*pair), ops.count_changes(*pair))


@pytest.mark.parametrize(
    ("clean", "poisoned", "error", "message"),
    [
        (torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8, 3), TypeError, "clean must be"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 3), TypeError, "poisoned must be"),
        (torch.zeros(3, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), TypeError, "clean must be"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.uint8), ValueError, "differ in shape"),
    ],
)
def test_errors(clean, poisoned, error, message):
    with pytest.raises(error, match=message):
        ops.count_changes(clean, poisoned)
