"""What is written with a checksum is read as it was written, or not at all."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError, load_dataset, write_dataset
from ulfast.cli.main import run
from ulfast.runtime.files import save_tensors
from ulfast.runtime.reading import CHECKSUM, checksum, load_tensors


@pytest.fixture
def small(tmp_path, make_dataset):
    write_dataset(tmp_path / "d", make_dataset(60, 16), make_dataset(30, 16, split="test", seed=1))
    return tmp_path / "d"


def test_pixels_that_were_changed_are_found(small, capsys, one_line):
    file = small / "train" / "images.npy"
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 1
    file.write_bytes(raw)
    one_line(load_dataset, small, match=r"images\.npy does not match its checksum")  # small: the sample is all of it
    assert run(["data", "info", str(small), "--quick"]) == 2
    assert "does not match its checksum" in capsys.readouterr().err


def test_of_a_large_set_some_blocks_are_looked_at_and_all_with_verify(tmp_path, make_dataset, monkeypatch, one_line):
    from ulfast.data.writers import folder

    monkeypatch.setattr(folder, "BLOCK", 1000)
    write_dataset(tmp_path / "d", make_dataset(600, 16))
    file = tmp_path / "d" / "train" / "images.npy"
    raw = bytearray(file.read_bytes())
    damaged = range(50_000, len(raw) - 50_000, 10_000)  # in a tenth of the blocks
    for at in damaged:
        raw[at] ^= 1
    file.write_bytes(raw)
    one_line(load_dataset, tmp_path / "d", verify=True, match="does not match its checksum")
    found = 0
    for _ in range(80):
        try:
            load_dataset(tmp_path / "d")
        except InputError:
            found += 1
    assert 0 < found < 80  # two of 461 blocks are drawn anew each time
    for at in damaged:
        raw[at] ^= 1
    raw[-1] ^= 1  # the last block is always looked at
    file.write_bytes(raw)
    one_line(load_dataset, tmp_path / "d", match="does not match its checksum")


def test_labels_that_were_changed_or_are_no_whole_numbers_are_found(small, one_line):
    file = small / "train" / "labels.npy"
    labels = np.load(file)
    np.save(file, labels[::-1].copy())
    one_line(load_dataset, small, match=r"labels\.npy does not match its checksum")
    np.save(file, labels + 0.9)
    one_line(load_dataset, small, match="holds float64, not whole numbers")


def test_a_set_written_before_there_were_checksums_is_read(small):
    file = small / "train" / "manifest.json"
    about = json.loads(file.read_text())
    for key in ("images_crc32", "labels_crc32", "block"):
        del about[key]
    file.write_text(json.dumps(about))
    assert len(load_dataset(small, verify=True)) == 60


READERS = [["fit", "--steps", "3", "--device", "cpu", "--out", "b.safetensors"], ["poison", "--out", "p"]]


@pytest.mark.parametrize("verb", READERS, ids=lambda words: words[0])
def test_verify_is_an_option_of_what_reads(small, monkeypatch, capsys, tmp_path, verb):
    monkeypatch.chdir(tmp_path)
    asked = []
    from ulfast.data.readers import folder

    check = folder._check_images
    monkeypatch.setattr(folder, "_check_images", lambda *a: asked.append(a[-1]) or check(*a))
    assert run([*verb, "--data", str(small), "--verify", "--quiet"]) == 0, capsys.readouterr().err
    assert asked[0] is True


def test_a_changed_weight_of_a_checkpoint_is_found(tmp_path, one_line):
    content = {"model": {"weight": torch.rand(50)}, "state": {"epoch": 3, "history": [{"loss": 0.5}]}}
    save_tensors(tmp_path / "x.pt", content)
    got = load_tensors(tmp_path / "x.pt", "again")
    assert got.keys() == content.keys()
    assert torch.equal(got["model"]["weight"], content["model"]["weight"])
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    at = bytes(raw).find(content["model"]["weight"].numpy().tobytes())
    raw[at] ^= 1
    (tmp_path / "x.pt").write_bytes(raw)
    one_line(load_tensors, tmp_path / "x.pt", "again", match="does not match its checksum")


def test_a_weight_that_was_made_to_require_grad_is_found(tmp_path, one_line):
    content = {"model": {"w": torch.rand(3)}}
    marked = {"model": {"w": content["model"]["w"].clone().requires_grad_()}, CHECKSUM: checksum(content)}
    torch.save(marked, tmp_path / "x.pt")
    one_line(load_tensors, tmp_path / "x.pt", "again", match="does not match its checksum")


def test_a_basis_must_be_orthonormal(tmp_path, one_line):
    rows = torch.linalg.qr(torch.rand(192, 3))[0].T.contiguous()
    for change, match in (
        (lambda r: r * 1.01, "not orthonormal"),
        (lambda r: r.clone().index_fill_(0, torch.tensor([0]), float("nan")), "not orthonormal"),
        (lambda r: r.double(), "not float32"),
    ):
        ulfast.Basis(change(rows), (8, 8, 3)).save(tmp_path / "b.safetensors")
        one_line(ulfast.Basis.load, tmp_path / "b.safetensors", match=match)
    ulfast.Basis(rows, (8, 8, 3)).save(tmp_path / "b.safetensors")
    assert torch.equal(ulfast.Basis.load(tmp_path / "b.safetensors").rows, rows)
    from safetensors.torch import save

    raw = save({"rows": rows}, metadata={"format": "ulfast-basis-1"})
    (tmp_path / "b.safetensors").write_bytes(raw)
    one_line(ulfast.Basis.load, tmp_path / "b.safetensors", match="image_shape")


def test_an_archive_with_a_damaged_member_is_one_line(tmp_path, make_dataset, one_line):
    data = make_dataset(40, 16)
    np.savez_compressed(tmp_path / "x.npz", images=data.images, labels=data.labels)
    raw = bytearray((tmp_path / "x.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        at = archive.infolist()[0].header_offset + 200
    raw[at] ^= 255
    (tmp_path / "x.npz").write_bytes(raw)
    one_line(load_dataset, tmp_path / "x.npz", match="cannot be read as arrays")
