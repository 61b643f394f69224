from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from ulfast import InputError
from ulfast.data import Dataset, load_dataset
from ulfast.data.dataset import balanced_indices, chunks
from ulfast.data.lazy import LazyImages


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


@pytest.mark.parametrize("lazy", [False, True])
def test_a_data_set_is_a_map_style_dataset_of_torch(make_dataset, lazy):
    data = make_dataset(10, 12)
    if lazy:
        images = data.images
        data = replace(data, images=LazyImages(images.shape, lambda i, out: np.copyto(out, images[i])))
    whole = data.images[:]
    image, label = data[3]
    assert image.dtype == np.uint8
    assert isinstance(label, int)
    assert np.array_equal(image, whole[3])
    assert label == data.labels[3]
    assert np.array_equal(data[-1][0], whole[9])
    assert np.array_equal(data[torch.tensor(4)][0], whole[4])
    for wrong in (10, -11):
        with pytest.raises(IndexError, match=f"image {wrong} of 10"):
            data[wrong]
    assert [label for _, label in data] == data.labels.tolist()
    assert np.array_equal(np.stack([image for image, _ in data]), whole)
    batches = list(torch.utils.data.DataLoader(data, batch_size=4))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 12, 12, 3), (4, 12, 12, 3), (2, 12, 12, 3)]
    assert batches[0][0].dtype == torch.uint8
    assert batches[0][1].dtype == torch.int64
    assert np.array_equal(torch.cat([images for images, _ in batches]), whole)


def test_slices_indices_and_masks_give_data_sets(make_dataset):
    data = make_dataset(10, 12)
    for key, rows in (
        (slice(2, 9, 3), [2, 5, 8]),
        (slice(None, None, -1), list(range(9, -1, -1))),
        ([4, 4, -1], [4, 4, 9]),
        (np.array([7, 0]), [7, 0]),
        (torch.tensor([1, 2]), [1, 2]),
        (data.labels == 1, np.flatnonzero(data.labels == 1).tolist()),
        ([], []),
    ):
        got = data[key]
        assert isinstance(got, Dataset)
        assert np.array_equal(got.images, data.images[rows])
        assert got.labels.tolist() == data.labels[rows].tolist()
        assert got.classes == data.classes
    for wrong in (1.5, "a", np.zeros((2, 2), int), [1.0]):
        with pytest.raises(TypeError, match="indexed by"):
            data[wrong]
    with pytest.raises(IndexError):
        data[[10]]


def test_sets_are_equal_by_content_and_hash_equally(make_dataset):
    data = make_dataset(10, 12)
    same = replace(data, images=data.images.copy(), name="other", split="test", manifest={"method": "x"})
    assert data == same
    assert hash(data) == hash(same)
    assert len({data, same}) == 1
    changed = data.images.copy()
    changed[9, 0, 0, 0] ^= 1
    for other in (
        replace(data, images=changed),
        replace(data, labels=(data.labels + 1) % 3),
        replace(data, classes=("a", "b", "c")),
        data[:9],
    ):
        assert data != other
    assert data != "data"
