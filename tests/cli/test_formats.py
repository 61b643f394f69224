"""The verbs that read and write other people's formats."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ulfast.data import load_dataset, write_dataset
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


def test_damaged_samples_are_left_out_on_the_way(run, tmp_path, make_dataset):
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
    assert "give it with --base" in run(*command, code=2).stderr
    assert "--scale 8/255" in run(*command, "--base", tmp_path / "clean", code=2).stderr
    assert "--scale x is no number" in run(*command, "--scale", "x", code=2).stderr
    run(*command, "--base", tmp_path / "clean", "--scale", "8/255", "--rounding", "nearest")
    want = (data.images.astype(int) + 8 * delta.astype(int)).clip(0, 255)
    assert np.array_equal(load_dataset(tmp_path / "d").images, want)
