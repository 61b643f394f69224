"""The verbs that read and write other formats."""

from __future__ import annotations

import json
import pickle
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import savemat

from ulfast.data import READERS, load_dataset, write_dataset
from ulfast.data.export import export_dataset


@pytest.fixture
def run(ulfast):
    """`run(*arguments, code=0)` checks the exit code and returns stdout and stderr."""

    def checked(*arguments, code=0):
        got, out, err = ulfast(*arguments)
        assert got == code, err
        return SimpleNamespace(stdout=out, stderr=err)

    return checked


@pytest.mark.parametrize("layout", ["wds", "parquet"])
def test_convert_and_export_write_files_of_a_size(run, tmp_path, make_dataset, layout):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    train, test = make_dataset(25, 16), make_dataset(6, 16, seed=1, split="test")
    write_dataset(tmp_path / "in", train, test)
    for verb, option in (("convert", "--to"), ("export", "--layout")):
        out = tmp_path / verb
        result = run("data", verb, tmp_path / "in", option, layout, "--shard-size", 10, "--out", out, "--json")
        assert json.loads(result.stdout)["images"] == 25
        assert len([file for file in out.rglob("*train*") if file.is_file()]) == 3
        assert load_dataset(out) == train
        assert load_dataset(out, split="test") == test
    told = json.loads(run("data", "info", tmp_path / "convert", "--quick", "--json").stdout)
    assert told["splits"]["train"]["images"] == 25
    assert told["splits"]["train"]["sha256"] == train.checksum()
    assert "exists already" in run("data", "convert", tmp_path / "in", "--to", layout, "--out", out, code=2).stderr
    run("data", "export", tmp_path / "in", "--layout", layout, "--out", out, "--overwrite")
    (out / "mine").write_text("")
    refused = run("data", "export", tmp_path / "in", "--layout", layout, "--out", out, "--overwrite", code=2)
    assert "mine, which ulfast did not write" in refused.stderr


def test_damaged_samples_are_left_out_while_reading(run, tmp_path, make_dataset):
    data = make_dataset(12, 16)
    export_dataset(data, tmp_path / "f", "imagefolder")
    first = sorted((tmp_path / "f").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:40])
    (tmp_path / "f" / "ulfast.json").unlink()
    command = ("data", "convert", tmp_path / "f", "--to", "wds", "--out", tmp_path / "w")
    assert "cannot be read as an image" in run(*command, code=2).stderr
    result = run(*command, "--skip-damaged")
    assert "1 damaged images, left out" in result.stderr
    assert len(load_dataset(tmp_path / "w")) == 11


def test_keys_are_options(run, tmp_path, make_dataset):
    data = make_dataset(12, 16)
    np.savez(tmp_path / "x.npz", a=data.images, b=data.labels)
    assert "--input-key" in run("data", "info", tmp_path / "x.npz", "--quick", code=2).stderr
    result = run("data", "info", tmp_path / "x.npz", "--quick", "--json", "--input-key", "a", "--target-key", "b")
    assert json.loads(result.stdout)["splits"]["train"]["sha256"] == data.checksum()


def test_import_without_a_base_and_with_a_scale(run, tmp_path, make_dataset):
    data = make_dataset(12, 16)
    np.savez(tmp_path / "avatar.npz", data=data.images, targets=data.labels)
    run("data", "import", tmp_path / "avatar.npz", "--out", tmp_path / "a")
    got = load_dataset(tmp_path / "a")
    assert np.array_equal(got.images, data.images)
    assert got.manifest["parameters"]["layout"] == "images-npz"
    write_dataset(tmp_path / "clean", data)
    delta = np.sign(np.random.default_rng(0).standard_normal(data.images.shape)).astype(np.float32)
    np.save(tmp_path / "delta.npy", delta)
    command = ("data", "import", tmp_path / "delta.npy", "--out", tmp_path / "d")
    assert "give that with --base" in run(*command, code=2).stderr
    assert "--scale 8/255" in run(*command, "--base", tmp_path / "clean", code=2).stderr
    assert "--scale x is not a number" in run(*command, "--scale", "x", code=2).stderr
    run(*command, "--base", tmp_path / "clean", "--scale", "8/255", "--rounding", "nearest")
    want = (data.images.astype(int) + 8 * delta.astype(int)).clip(0, 255)
    assert np.array_equal(load_dataset(tmp_path / "d").images, want)


def written(kind, path, data):
    """A data set of ten classes as the format `kind` has it; what `--data` is then."""
    images, labels = data.images, data.labels
    planes, numbers = images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels.astype(np.uint8)
    path.mkdir()
    if kind == "ulfast":
        write_dataset(path / "x", data)
        return path / "x"
    if kind in ("npz", "beton", "wds", "parquet", "imagefolder"):
        out = path / {"npz": "x.npz", "beton": "x.beton"}.get(kind, "x")
        export_dataset(data, out, kind)
        return out
    if kind == "cifar-python":
        for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
            (path / name).write_bytes(pickle.dumps({b"data": planes, b"labels": labels.tolist()}))
    elif kind == "cifar-binary":
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            (path / name).write_bytes(np.concatenate([numbers[:, None], planes], 1).tobytes())
    elif kind == "svhn":
        savemat(path / "train_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]})
    elif kind == "idx":
        for name, array in (("images-idx3", images[..., 0]), ("labels-idx1", numbers)):
            head = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (path / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    elif kind == "stl10":
        images.transpose(0, 3, 2, 1).tofile(path / "train_X.bin")
        (numbers + 1).tofile(path / "train_y.bin")
    elif kind == "npy-pair":
        np.save(path / "x_train.npy", images)
        np.save(path / "y_train.npy", labels)
    else:
        assert kind == "pickle"
        (path / "x.pkl").write_bytes(pickle.dumps(list(zip(images, labels.tolist(), strict=True))))
        return path / "x.pkl"
    return path


@pytest.mark.parametrize("kind", READERS)
def test_info_describes_every_format(run, tmp_path, make_dataset, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    data = make_dataset(20, 96 if kind == "stl10" else 32, channels=1 if kind == "idx" else 3, classes=10)
    where = written(kind, tmp_path / "in", data)
    assert next(name for name, reader in READERS.items() if reader.detect(where)) == kind
    told = json.loads(run("data", "info", where, "--quick", "--json").stdout)["splits"]["train"]
    assert told["image_shape"] == list(data.image_shape)
    assert list(told["classes"].values()) == [10 if kind.startswith("cifar") else 2] * 10
    if not kind.startswith("cifar"):  # whose batches hold the same images here
        ordered = data.subset(np.argsort(data.labels, kind="stable")) if kind == "imagefolder" else data
        assert told["sha256"] == ordered.checksum()
