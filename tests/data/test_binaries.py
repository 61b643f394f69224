"""MNIST's idx files and STL-10's binary ones."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import load_dataset


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, data, split="train", stem="", packed=False, by_columns=False, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    images = data.images[..., 0].transpose(0, 2, 1) if by_columns else data.images[..., 0]
    for what, array in (
        ("images-idx3", np.ascontiguousarray(images)),
        ("labels-idx1", (data.labels + first).astype(np.uint8)),
    ):
        content = idx(array)
        name = f"{stem}{split}-{what}-ubyte"
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", [".", "MNIST/raw", "raw"])
def test_mnist(tmp_path, make_dataset, packed, inner):
    train, test = make_dataset(12, 10, channels=1), make_dataset(6, 10, channels=1, seed=1)
    write_idx(tmp_path / "set" / inner, train, packed=packed)
    write_idx(tmp_path / "set" / inner, test, "t10k", packed=packed)
    for split, data in (("train", train), ("test", test)):
        if split == "train":
            with pytest.raises(InputError, match="class '3' has no image"):
                load_dataset(tmp_path / "set")  # ten digits, of which the small set has three
        else:
            got = load_dataset(tmp_path / "set", split=split)
            assert np.array_equal(got.images, data.images)
            assert np.array_equal(got.labels, data.labels)
            assert got.classes == tuple(map(str, range(10)))
    digits = make_dataset(20, 10, channels=1, classes=10)
    write_idx(tmp_path / "set" / inner, digits, packed=packed)
    assert np.array_equal(load_dataset(tmp_path / "set").images, digits.images)


def test_fashion_mnist_has_names(tmp_path, make_dataset):
    data = make_dataset(20, 10, channels=1, classes=10)
    write_idx(tmp_path / "FashionMNIST" / "raw", data)
    for path in (tmp_path / "FashionMNIST", tmp_path / "FashionMNIST" / "raw", tmp_path):
        assert load_dataset(path).classes[9] == "Ankle boot"


@pytest.mark.parametrize("mapping", [False, True])
def test_emnist_is_turned_upright_and_its_letters_are_named(tmp_path, make_dataset, mapping):
    data = make_dataset(52, 10, channels=1, classes=26)
    write_idx(tmp_path, data, stem="emnist-letters-", packed=True, by_columns=True, first=1)
    if mapping:
        (tmp_path / "emnist-letters-mapping.txt").write_text("".join(f"{c} {64 + c} {96 + c}\n" for c in range(1, 27)))
    got = load_dataset(tmp_path)
    assert np.array_equal(got.images, data.images)
    assert np.array_equal(got.labels, data.labels)
    assert got.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert got.notes == {"images turned upright, which EMNIST stores by columns": 52}
    write_idx(tmp_path, make_dataset(20, 10, channels=1, classes=10), stem="emnist-digits-", by_columns=True)
    with pytest.raises(InputError, match="emnist-digits, emnist-letters: point --data at"):
        load_dataset(tmp_path)
    assert load_dataset(tmp_path / "emnist-digits-train-images-idx3-ubyte").num_classes == 10


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "cut short|does not hold"),
        (lambda content: content + b"x", "does not hold"),
        (lambda content: b"\0\0\x0d" + content[3:], "not an idx file"),
        (lambda content: content[:4] + struct.pack(">3I", 1 << 30, 1 << 15, 1 << 15), "cut short"),
        (lambda content: b"", "not an idx file|cannot be read"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, make_dataset, packed, change, message):
    write_idx(tmp_path, make_dataset(20, 10, channels=1, classes=10), packed=packed)
    file = next(tmp_path.glob("*images*"))
    content = file.read_bytes()
    content = change(gzip.decompress(content) if packed else content)
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path)


def test_idx_labels_must_be_there_and_fit(tmp_path, make_dataset):
    write_idx(tmp_path, make_dataset(20, 10, channels=1, classes=10))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))
    with pytest.raises(InputError, match="7 labels for 20 images"):
        load_dataset(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"there is no .*labels"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("names", [False, True])
def test_stl10_is_by_columns_and_its_labels_begin_at_one(tmp_path, make_dataset, names):
    data = make_dataset(20, 96, classes=10)
    for split in ("train", "test"):
        data.images.transpose(0, 3, 2, 1).tofile(tmp_path / f"{split}_X.bin")
        (data.labels + 1).astype(np.uint8).tofile(tmp_path / f"{split}_y.bin")
    if names:
        (tmp_path / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    for split in ("train", "test"):
        got = load_dataset(tmp_path, split=split)
        assert np.array_equal(got.images, data.images)
        assert np.array_equal(got.labels, data.labels)
        assert got.classes[:2] == (("a", "b") if names else ("airplane", "bird"))
    (tmp_path / "train_y.bin").write_bytes(bytes(20))
    with pytest.raises(InputError, match="labels outside 1 to 10"):
        load_dataset(tmp_path)
    (tmp_path / "train_X.bin").write_bytes(bytes(100))
    with pytest.raises(InputError, match="not a multiple of 27,648"):
        load_dataset(tmp_path)
