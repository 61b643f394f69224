from __future__ import annotations

import errno
import os
import signal

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import DatasetWriter, load_dataset, write_dataset


def test_round_trip_is_memory_mapped(tmp_path, make_dataset):
    train, test = make_dataset(50), make_dataset(20, seed=1, split="test")
    write_dataset(tmp_path / "out", train, test)
    got = load_dataset(tmp_path / "out")
    assert isinstance(got.images, np.memmap)
    assert got.checksum() == train.checksum()
    assert (got.classes, got.name, got.split) == (train.classes, "tiny", "train")
    assert load_dataset(tmp_path / "out", split="test").checksum() == test.checksum()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_existing_folder_asks_for_overwrite(tmp_path, make_dataset):
    write_dataset(tmp_path / "out", make_dataset(50))
    with pytest.raises(InputError, match="--overwrite"):
        write_dataset(tmp_path / "out", make_dataset(20))
    assert len(load_dataset(tmp_path / "out")) == 50
    write_dataset(tmp_path / "out", make_dataset(20), overwrite=True)
    assert len(load_dataset(tmp_path / "out")) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_error_leaves_nothing(tmp_path, make_dataset):
    data = make_dataset()

    def half():
        with DatasetWriter(tmp_path / "out") as writer:
            writer.split("train", data.image_shape, data.classes).append(data.images, data.labels)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, make_dataset, monkeypatch):
    data = make_dataset()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        write_dataset(tmp_path / "out", data)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_data_set(tmp_path, forked):
    def write():
        with DatasetWriter(tmp_path / "out") as writer:
            split = writer.split("train", (8, 8, 3), ("a", "b"))
            split.append(np.zeros((1000, 8, 8, 3), np.uint8), np.zeros(1000, np.int64))
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(write) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError):
        load_dataset(tmp_path / "out")


def test_a_streamed_count_of_any_length_fits_the_header(tmp_path):
    with DatasetWriter(tmp_path / "out") as writer:
        split = writer.split("train", (8, 8, 1), ("a", "b"))
        for i in range(11):
            block = np.full((1000, 8, 8, 1), i, np.uint8)
            split.append(block, np.arange(1000) % 2)
        with pytest.raises(ValueError, match="append takes"):
            split.append(block[:, :4], np.zeros(1000))
    got = load_dataset(tmp_path / "out")
    assert got.images.shape == (11000, 8, 8, 1)
    assert got.images[::1000, 0, 0, 0].tolist() == list(range(11))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "labels.npy").unlink(), "labels.npy is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
        (lambda f: (f / "manifest.json").write_text("{}"), "format None"),
        (lambda f: os.truncate(f / "images.npy", 500), "is damaged"),
        (lambda f: np.save(f / "images.npy", np.zeros((3, 12, 12, 3), np.uint8)), "not what its manifest says"),
    ],
)
def test_damage_is_named(tmp_path, make_dataset, damage, message):
    write_dataset(tmp_path / "out", make_dataset())
    damage(tmp_path / "out" / "train")
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "out")


def test_a_set_without_test_images_says_so(tmp_path, make_dataset):
    write_dataset(tmp_path / "out", make_dataset())
    with pytest.raises(InputError, match="--test-data"):
        load_dataset(tmp_path / "out", split="test")
    assert len(load_dataset("sample", split="test", test_data=tmp_path / "out")) == 60


def test_the_splits_must_match(tmp_path, make_dataset):
    with pytest.raises(InputError, match="differ"):
        write_dataset(tmp_path / "out", make_dataset(size=12), make_dataset(size=16))
    assert list(tmp_path.iterdir()) == []
