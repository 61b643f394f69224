"""Names of arrays in .npz files, as other programs write them."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import load_dataset


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images", "labels"),
        ("x", "y"),
        ("X", "Y"),
        ("data", "targets"),  # AVATAR, torchvision
        ("data", "labels"),
        ("train_images", "train_labels"),  # MedMNIST
        ("x_train", "y_train"),  # Keras
        ("train_data", "train_targets"),
        ("arr_0", "arr_1"),
        ("arr_1", "arr_0"),
    ],
)
def test_arrays_are_found_by_their_usual_names(tmp_path, make_dataset, image, label):
    data = make_dataset(12, 10)
    np.savez(tmp_path / "x.npz", **{image: data.images, label: data.labels[:, None]})
    got = load_dataset(tmp_path / "x.npz")
    assert np.array_equal(got.images, data.images)
    assert np.array_equal(got.labels, data.labels)


def test_medmnist_has_three_splits_and_test_precedes_val(tmp_path, make_dataset):
    parts = {split: make_dataset(12, 10, seed=seed) for seed, split in enumerate(("train", "val", "test"))}
    arrays = {f"{split}_images": part.images for split, part in parts.items()}
    arrays |= {f"{split}_labels": part.labels[:, None] for split, part in parts.items()}
    np.savez(tmp_path / "m.npz", **arrays)
    assert np.array_equal(load_dataset(tmp_path / "m.npz").images, parts["train"].images)
    assert np.array_equal(load_dataset(tmp_path / "m.npz", split="test").images, parts["test"].images)
    del arrays["test_images"], arrays["test_labels"]
    np.savez(tmp_path / "m.npz", **arrays)
    assert np.array_equal(load_dataset(tmp_path / "m.npz", split="test").images, parts["val"].images)


def test_ambiguous_arrays_are_asked_about(tmp_path, make_dataset):
    data, other = make_dataset(12, 10), make_dataset(12, 10, seed=1)
    np.savez(tmp_path / "x.npz", images=data.images, labels=data.labels, data=other.images)
    with pytest.raises(InputError, match=r"images and data: say which is meant with --input-key"):
        load_dataset(tmp_path / "x.npz")
    assert np.array_equal(load_dataset(tmp_path / "x.npz", input_key="data").images, other.images)
    np.savez(tmp_path / "y.npz", x=data.images, y=data.labels, targets=other.labels)
    with pytest.raises(InputError, match=r"y and targets: .*--target-key"):
        load_dataset(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", data.images, data.labels, other.images, other.labels)
    with pytest.raises(InputError, match=r"4 arrays without names"):
        load_dataset(tmp_path / "z.npz")
    np.savez(tmp_path / "o.npz", pictures_train=data.images, kinds_train=data.labels)
    with pytest.raises(InputError, match=r"it has pictures_train, kinds_train; name them with --input-key"):
        load_dataset(tmp_path / "o.npz")
    got = load_dataset(tmp_path / "o.npz", input_key="pictures", target_key="kinds")
    assert np.array_equal(got.images, data.images)


@pytest.mark.parametrize("compress", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_says_more_than_the_file_holds_takes_no_memory(tmp_path, compress):
    head = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 30, 64, 64, 3)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compress) as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(5000))
        archive.writestr("y.npy", head.getvalue())
    with pytest.raises(InputError, match=r"x\.npz cannot be read as arrays \(x\.npy of shape .* larger than its size"):
        load_dataset(tmp_path / "x.npz")
