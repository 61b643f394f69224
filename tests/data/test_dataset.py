from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from ulfast import InputError
from ulfast.data import Dataset, load_dataset
from ulfast.data.dataset import balanced_indices, chunks


def test_the_sample_is_what_its_readme_says():
    train, test = load_dataset("sample"), load_dataset("sample", split="test")
    assert train.images.shape == (5000, 32, 32, 3)
    assert test.images.shape == (1000, 32, 32, 3)
    assert np.bincount(train.labels).tolist() == [500] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    assert train.classes[3] == "cat"
    # The first image of CIFAR-10: a frog whose first pixel is known.
    assert train.classes[train.labels[0]] == "frog"
    assert train.images[0, 0, 0].tolist() == [59, 62, 63]


def test_the_sample_matches_its_checksums():
    import json
    from importlib.resources import files

    about = json.loads((files("ulfast.data") / "sample" / "labels.json").read_text())
    for split in ("train", "test"):
        assert load_dataset("sample", split=split).checksum() == about[split]["sha256"]


def test_shape_label_and_channel_errors():
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 1, 0])
    with pytest.raises(InputError, match="label 1 of image 1 is out of range"):
        Dataset(images, labels, ("a",))
    with pytest.raises(InputError, match="4 images but labels of shape"):
        Dataset(images, labels[:3], ("a", "b"))
    with pytest.raises(InputError, match="uint8"):
        Dataset(images.astype(np.float32), labels, ("a", "b"))
    with pytest.raises(InputError, match="1 or 3 channels"):
        Dataset(images[..., :2], labels, ("a", "b"))


def test_checksum_sees_every_part(make_dataset):
    base = make_dataset()
    changed = base.images.copy()
    changed[-1, -1, -1, -1] ^= 1
    others = [Dataset(changed, base.labels, base.classes), Dataset(base.images, base.labels[::-1].copy(), base.classes)]
    assert len({base.checksum(), *(other.checksum() for other in others)}) == 3
    assert base.checksum() == make_dataset().checksum()


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6), share=st.floats(0.05, 1), seed=st.integers(0, 1000))
def test_balanced_takes_as_evenly_as_it_can(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    limit = max(len(counts), int(share * len(labels)))
    rows = balanced_indices(labels, len(counts), limit, seed)
    assert len(rows) == limit == len(set(rows.tolist()))
    assert (np.diff(rows) > 0).all()
    taken = np.bincount(labels[rows], minlength=len(counts))
    for c, count in enumerate(counts):
        # A class that gives less than another gives all it has, up to the one left over.
        assert taken[c] == count or taken[c] >= taken.max() - 1
    assert (balanced_indices(labels, len(counts), limit, seed) == rows).all()


def test_limit_is_balanced_and_drawn_by_the_seed():
    a, b = load_dataset("sample", limit=105, seed=1), load_dataset("sample", limit=105, seed=2)
    assert sorted(np.bincount(a.labels).tolist()) == [10] * 5 + [11] * 5
    assert not np.array_equal(a.images, b.images)
    with pytest.raises(InputError, match="less than one image"):
        load_dataset("sample", limit=5)


def test_chunks_cover_everything_once(make_dataset):
    images = make_dataset(50).images
    ranges = chunks(images, 5 * images[0].nbytes)
    assert ranges[0] == (0, 5)
    assert [b for b, _ in ranges[1:]] == [s for _, s in ranges[:-1]]
    assert ranges[-1][1] == 50


def test_a_fingerprint_is_of_pixels_labels_and_classes(make_dataset, monkeypatch):
    data = make_dataset(30)
    images = data.images.copy()
    images[0, 0, 0, 0] ^= 1
    others = [
        replace(data, images=images),
        replace(data, labels=(data.labels + 1) % 3),
        replace(data, classes=("a", "b", "c")),
    ]
    assert data.fingerprint() == make_dataset(30).fingerprint()
    assert len({data.fingerprint(), *(one.fingerprint() for one in others)}) == 4
    monkeypatch.setattr("ulfast.data.dataset.HASHED_BYTES", 10)
    assert len({data.fingerprint(), *(one.fingerprint() for one in others)}) == 4
