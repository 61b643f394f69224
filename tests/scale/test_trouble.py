"""A full disk, lost and damaged files, two writers: one line, nothing corrupt, and the work before is kept."""

from __future__ import annotations

import errno
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ulfast
import ulfast.data.writers.resumable
import ulfast.poisons.run
import ulfast.projection.fit_state
from ulfast import InputError, fit_basis, load_dataset, write_dataset
from ulfast.cli.main import group
from ulfast.data.writers.resumable import RowWriter
from ulfast.runtime.files import atomic_file, part_folder, save_tensors


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def often(monkeypatch):
    """Everything is saved as often as possible, in pieces of 20 images of 12 x 12."""
    monkeypatch.setattr(ulfast.data.writers.resumable, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(ulfast.projection.fit_state, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(ulfast.poisons.run, "CHUNK_BYTES", 20 * 432)


def test_a_disk_that_fills_up_while_poisoning(make_dataset, tmp_path, monkeypatch, often):
    write_dataset(tmp_path / "data", make_dataset(150), make_dataset(30, split="test"))
    words = ["poison", "--data", str(tmp_path / "data"), "--quiet", "--out"]
    CliRunner().invoke(group, [*words, str(tmp_path / "want")], catch_exceptions=False)
    write, left = os.pwrite, [3]

    def filling(*arguments):
        left[0] -= 1
        return write(*arguments) if left[0] >= 0 else full()

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", filling)
        failed = CliRunner().invoke(group, [*words, str(tmp_path / "got")])
    assert isinstance(failed.exception, InputError)
    assert "the disk is full while writing" in str(failed.exception)
    assert not (tmp_path / "got").exists()
    assert len((tmp_path / ".got.part" / ".done-0").read_text().splitlines()) == 3
    resumed = CliRunner().invoke(group, [*words, str(tmp_path / "got"), "--resume"], catch_exceptions=False)
    assert resumed.exit_code == 0
    for name in ("train/images.npy", "train/labels.npy", "train/manifest.json", "test/images.npy"):
        assert (tmp_path / "got" / name).read_bytes() == (tmp_path / "want" / name).read_bytes()
    assert not (tmp_path / ".got.part").exists()
    again = CliRunner().invoke(group, [*words, str(tmp_path / "got"), "--resume"], catch_exceptions=False)
    assert "complete already" in again.output
    other = CliRunner().invoke(group, [*words, str(tmp_path / "got"), "--resume", "--seed", "1"])
    assert "exists already" in str(other.exception)


def test_a_disk_too_small_is_detected_before_the_work(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="the disk is full"), RowWriter(tmp_path / "out", make_dataset(), {}):
        raise AssertionError("not reached")
    assert not list(tmp_path.iterdir())


def test_an_early_error_leaves_nothing_and_a_late_one_keeps_finished_work(make_dataset, tmp_path, monkeypatch):
    dataset = make_dataset(60)
    with pytest.raises(KeyboardInterrupt), RowWriter(tmp_path / "out", dataset, {}) as writer:  # noqa: PT012
        writer.put(0, 20, dataset.images[:20], None)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(ulfast.data.writers.resumable, "COMMIT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), RowWriter(tmp_path / "out", dataset, {"seed": 0}) as writer:  # noqa: PT012
        writer.put(20, 40, dataset.images[20:40], "middle")
        with pytest.raises(InputError, match="another process is writing"), RowWriter(tmp_path / "out", dataset, {}):
            raise AssertionError("not reached")
        raise KeyboardInterrupt
    with (
        pytest.raises(InputError, match="another seed"),
        RowWriter(tmp_path / "out", dataset, {"seed": 1}, resume=True),
    ):
        raise AssertionError("not reached")
    with (part_folder(tmp_path / "out") / ".done-0").open("a") as notes:
        notes.write("[0, 20, ")  # killed while it wrote this
    with RowWriter(tmp_path / "out", dataset, {"seed": 0}, resume=True) as writer:
        assert writer.left([(0, 20), (20, 40), (40, 60)]) == [(0, 20), (40, 60)]
        for begin, stop in ((40, 60), (0, 20)):
            writer.put(begin, stop, dataset.images[begin:stop], "ends")
        assert writer.gather() == ["ends", "middle", "ends"]
        writer.finish({"a": 1})
    assert np.array_equal(load_dataset(tmp_path / "out").images, dataset.images)
    write_dataset(tmp_path / "plain", ulfast.data.dataset.replace(dataset, manifest={"a": 1}))
    for name in ("images.npy", "labels.npy", "manifest.json"):
        assert (tmp_path / "out/train" / name).read_bytes() == (tmp_path / "plain/train" / name).read_bytes()


def test_missing_rows_are_never_a_data_set(make_dataset, tmp_path):
    dataset = make_dataset(60)
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="rows 20 to 60 were not written"),
        RowWriter(tmp_path / "out", dataset, {}) as writer,
    ):
        writer.put(0, 20, dataset.images[:20], None)
        writer.gather()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rank", [None, 4])
def test_a_stopped_fit_resumes_to_the_same_weights(make_dataset, tmp_path, often, rank):
    dataset, options = make_dataset(), {"steps": 40, "rank": rank, "device": "cpu"}
    whole, calls = fit_basis(dataset, **options), []

    def stop(stage, done, total, **_):
        calls.append(done)
        if len(calls) == (2 if rank is None else 3):  # with more directions: in the second round
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_basis(dataset, checkpoint=tmp_path / "fit.pt", progress=stop, **options)
    resumed = fit_basis(dataset, checkpoint=tmp_path / "fit.pt", resume=True, **options)
    assert torch.equal(resumed.rows, whole.rows)
    assert torch.equal(resumed.weights, whole.weights)
    with pytest.raises(InputError, match="a fit with another lr"):
        fit_basis(dataset, checkpoint=tmp_path / "fit.pt", resume=True, lr=0.2, **options)
    (tmp_path / "fit.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read as an interrupted fit"):
        fit_basis(dataset, checkpoint=tmp_path / "fit.pt", resume=True, **options)


def test_a_full_disk_ends_a_fit_and_a_training_with_one_line(make_dataset, tmp_path, monkeypatch, often):
    dataset = make_dataset()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="the disk is full while writing"):
            fit_basis(dataset, steps=40, checkpoint=tmp_path / "fit.pt", device="cpu")
    assert not list(tmp_path.iterdir())
    ulfast.attack(dataset, test=dataset, method="none", epochs=1, out=tmp_path / "run", device="cpu")
    kept = (tmp_path / "run/checkpoints/attack/last.pt").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("ulfast.training.checkpoint.save_tensors", lambda path, content: full_file(path, content))
        with pytest.raises(InputError, match=r"the disk is full while writing .*last\.pt"):
            ulfast.attack(dataset, test=dataset, method="none", epochs=2, out=tmp_path / "other", device="cpu")
    assert kept == (tmp_path / "run/checkpoints/attack/last.pt").read_bytes()


class Full:
    """A file on a disk with room for 100 bytes."""

    def __init__(self):
        self.room = 100

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            full()
        return len(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def full_file(path, content):
    """`save_tensors` on such a disk, where torch says something else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pathlib.Path.open", lambda *a, **k: Full())
        save_tensors(path, content)


def test_torch_does_not_hide_a_full_disk(tmp_path):
    with pytest.raises(InputError, match="the disk is full"):
        full_file(tmp_path / "x.pt", {"a": torch.zeros(1000)})
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_swept(tmp_path):
    gone, other = tmp_path / ".x.json.0123abcd.part", tmp_path / ".y.json.0123abcd.part"
    for file in (gone, other):
        file.write_text("half")
    with atomic_file(tmp_path / "x.json") as alive:
        alive.write_text("half")
        with atomic_file(tmp_path / "x.json") as part:
            part.write_text("whole")
        assert sorted(f.name for f in tmp_path.iterdir()) == sorted([alive.name, other.name, "x.json"])


def test_a_lost_image_is_one_line(tmp_path):
    from PIL import Image

    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), (9 * len(name), 0, 0)).save(tmp_path / f"{name}.png")
    dataset = load_dataset(tmp_path, stream=True)
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(InputError, match=r"b/0\.png cannot be read"):
        fit_basis(dataset, steps=4, device="cpu")
