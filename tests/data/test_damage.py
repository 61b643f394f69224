"""Random bytes changed in a file of each format: it is read or refused in one line, and nothing else happens."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.export import export_dataset


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def made(folder, kind, make_dataset):
    """A file that is to be damaged, and what is read."""
    data = make_dataset(12, 10)
    if kind == "wds":
        export_dataset(data, folder / "x", "wds")
        return folder / "x" / "train-000000.tar", folder / "x"
    if kind == "parquet":
        pytest.importorskip("pyarrow")
        export_dataset(data, folder / "x", "parquet")
        return folder / "x" / "data" / "train-00000-of-00001.parquet", folder / "x"
    if kind == "npz":
        np.savez_compressed(folder / "x.npz", data=data.images, targets=data.labels)
        return folder / "x.npz", folder / "x.npz"
    if kind == "pickle":
        pairs = [(image.transpose(2, 0, 1).astype(np.float32) / 255, label) for image, label in data]
        (folder / "x.pkl").write_bytes(pickle.dumps(pairs))
        return folder / "x.pkl", folder / "x.pkl"
    if kind == "npy-pair":
        np.save(folder / "x_train.npy", data.images)
        np.save(folder / "y_train.npy", data.labels)
        return folder / "x_train.npy", folder
    digits = make_dataset(20, 10, channels=1, classes=10)
    content = idx(digits.images[..., 0])
    name = "train-images-idx3-ubyte" + (".gz" if kind == "idx.gz" else "")
    (folder / name).write_bytes(gzip.compress(content) if kind == "idx.gz" else content)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(digits.labels.astype(np.uint8)))
    return folder / name, folder


@pytest.mark.parametrize("kind", ["wds", "parquet", "npz", "pickle", "npy-pair", "idx", "idx.gz"])
def test_damage_anywhere_is_harmless_or_one_line(tmp_path, make_dataset, kind):
    file, where = made(tmp_path, kind, make_dataset)
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    refused: list[str] = []
    for _ in range(60):
        content = bytearray(whole)
        if rng.random() < 0.2:
            del content[rng.integers(len(content)) :]
        else:
            first = rng.integers(2) * (len(content) - min(len(content), 600))  # a head or a foot, where the sizes are
            for at in first + rng.integers(min(len(content), 600), size=rng.integers(1, 9)):
                content[at] = rng.integers(256)
        file.write_bytes(content)
        try:
            load_dataset(where)
        except InputError as error:
            refused.append(str(error))
    assert len(refused) > 5
    for message in refused:
        assert "\n" not in message
        assert str(where) in message
    file.write_bytes(whole)
    assert len(load_dataset(where)) in (12, 20)
