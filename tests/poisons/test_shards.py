"""`poison --to wds`: from shards to shards, with the same images as in other ways, in bounded memory."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.cli.main import group
from ulfast.data.export import export_dataset
from ulfast.data.lazy import LazyImages


def run(*words):
    return CliRunner().invoke(group, [str(word) for word in words])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "shards"
    train = ulfast.load_dataset("sample", limit=300)
    test = ulfast.load_dataset("sample", split="test").balanced(50)
    export_dataset(train, folder, "wds", test=test, shard_size=128)
    return folder


@pytest.mark.parametrize("extra", [(), ("--rate", "0.5"), ("--classes", "3,5")])
@pytest.mark.parametrize("method", ["lsp", "ar", "cuda"])
def test_shards_become_poisoned_shards(shards, tmp_path, method, extra, monkeypatch):
    monkeypatch.setenv("ULFAST_STREAM_BYTES", "0")  # decoded while they are poisoned
    assert isinstance(ulfast.load_dataset(shards).images, LazyImages)
    out = tmp_path / "poisoned"
    done = run(
        "poison", "--method", method, "--data", shards, "--to", "wds", "--shard-size", "100", "--out", out, *extra
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    plain = run("poison", "--method", method, "--data", shards, "--out", tmp_path / "plain", *extra)
    assert plain.exit_code == 0, plain.output
    want, got = ulfast.load_dataset(tmp_path / "plain"), ulfast.load_dataset(out)
    assert np.array_equal(np.asarray(got.images), np.asarray(want.images))
    assert np.array_equal(got.labels, want.labels)
    assert got.classes == want.classes
    info = json.loads((out / "info.json").read_text())["splits"]
    assert info["train"]["shard_lengths"] == [100, 100, 100]
    mine, theirs = info["train"]["manifest"], want.manifest
    assert mine["method"] == method
    for key in ("images", "l2_mean", "linf_max"):
        assert mine["statistics"][key] == pytest.approx(theirs["statistics"][key])
    assert np.array_equal(
        np.asarray(ulfast.load_dataset(out, split="test").images),
        np.asarray(ulfast.load_dataset(shards, split="test").images),
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard-size", "10"), "belongs to --to wds"),
        (("--to", "wds", "--resume"), "written by one process, at once"),
        (("--to", "wds", "--poison-test", "t"), "written by one process, at once"),
    ],
)
def test_what_shards_do_not_go_with(shards, tmp_path, words, said):
    done = run("poison", "--data", shards, "--out", tmp_path / "p", *words)
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)
