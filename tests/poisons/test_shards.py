"""`poison --to wds`: from shards to shards, with the same images as in other ways, in bounded memory."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.cli.main import group
from ulfast.data.export import export_dataset
from ulfast.data.lazy import LazyImages
from ulfast.data.writers import wds


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
        (("--shard-size", "100"), "belongs to --to wds"),
        (("--to", "wds", "--resume"), "there is no interrupted run"),
        (("--to", "wds", "--poison-test", "t"), "written by one process"),
    ],
)
def test_what_shards_do_not_go_with(shards, tmp_path, words, said):
    done = run("poison", "--data", shards, "--out", tmp_path / "p", *words)
    assert isinstance(done.exception, InputError)
    assert said in str(done.exception)


def test_interrupted_shards_are_resumed_with_the_same_settings_only(shards, tmp_path, monkeypatch):
    words = ("poison", "--data", shards, "--to", "wds", "--shard-size", "100")
    assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    written = []

    def full(file, piece, write=wds._write):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(piece.name)
        write(file, piece)

    with monkeypatch.context() as patch:
        patch.setattr(wds, "_write", full)
        stopped = run(*words, "--out", tmp_path / "p")
    assert isinstance(stopped.exception, InputError)
    assert not (tmp_path / "p").exists()
    assert sorted(file.name for file in (tmp_path / ".p.part").glob("*.tar")) == written
    other = run(*words, "--out", tmp_path / "p", "--rate", "0.5", "--resume")
    assert "belongs to a run with another" in str(other.exception)
    made = []
    monkeypatch.setattr(
        wds, "_write", lambda file, piece, write=wds._write: made.append(piece.name) or write(file, piece)
    )
    assert run(*words, "--out", tmp_path / "p", "--resume").exit_code == 0
    assert made
    assert not set(made) & set(written)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "p" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / ".p.part").exists()
