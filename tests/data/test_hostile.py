"""Files that were made to do harm, or were damaged so that they would: one line, and nothing else happens."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError, load_dataset
from ulfast.attacks.snapshots import Examples
from ulfast.data.beton import format as fmt, open_beton, write_beton
from ulfast.data.loaders.projected import Shards, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.data.readers import restricted
from ulfast.data.readers.mat5 import read_mat
from ulfast.data.readers.restricted import load_pickle
from ulfast.grids import Grid
from ulfast.poisons import labels as poison_labels
from ulfast.poisons.imported import import_published
from ulfast.runtime import reading
from ulfast.runtime.reading import load_tensors, read_yaml

# pickles


def shared(levels: int) -> bytes:
    """Lists of ten times the list before, `levels` of them."""
    made = b"\x80\x02]q\x00(" + b"K\x01" * 10 + b"e0"
    for i in range(1, levels):
        made += b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e0"
    return made + b"h" + bytes([levels - 1]) + b"."


BOMBS = {
    "bytearray of 20 GB": b"cbuiltins\nbytearray\n(I20000000000\ntR.",
    "object number 2**27": b"\x80\x02]r" + (2**27).to_bytes(4, "little") + b".",
    "object number in text": b"(lp99999999\n.",
    "billion laughs": shared(13),
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a dictionary that holds itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "bytes of 2**62": b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b".",
    "nested 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a set made of a number": b"cbuiltins\nset\n(I5\ntR.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_all_memory_is_refused_in_little(tmp_path, name, one_line):
    (tmp_path / "x.pkl").write_bytes(BOMBS[name])
    tracemalloc.start()
    one_line(load_pickle, tmp_path / "x.pkl", match=r"x\.pkl")
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_lists_that_are_shared_a_few_times_are_read(tmp_path):
    inner = [1, 2, 3]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": inner, "b": inner, "long": list(range(50))}, 2))
    assert load_pickle(tmp_path / "x.pkl") == {"a": inner, "b": inner, "long": list(range(50))}


@pytest.mark.parametrize("name", ["_codecs\nencode", "numpy\nndarray", "numpy\ndtype", "builtins\nset"])
def test_a_refused_pickle_changes_nothing_in_the_process(tmp_path, name, one_line):
    """BUILD sets attributes of what a name leads to."""
    before = {f: dict(vars(v)) if hasattr(v, "__dict__") else v for f, v in vars(restricted).items()}
    raw = b"\x80\x04c" + name.encode() + b"\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    (tmp_path / "x.pkl").write_bytes(raw)
    one_line(load_pickle, tmp_path / "x.pkl", match="a change of the reader")
    assert restricted._encode.__defaults__ == ("latin1",)
    after = {f: dict(vars(v)) if hasattr(v, "__dict__") else v for f, v in vars(restricted).items()}
    assert after.keys() == before.keys()
    assert after["_Array"] == before["_Array"]
    assert after["_Dtype"] == before["_Dtype"]


def test_labels_of_a_torch_file_that_share_their_members_are_refused(tmp_path, make_dataset, one_line):
    base, inner = make_dataset(), [1] * 10
    for _ in range(12):
        inner = [inner] * 10
    torch.save({"data": torch.from_numpy(base.images.copy()), "labels": inner}, tmp_path / "x.pt")
    one_line(import_published, tmp_path / "x.pt", base, match="share their members")


# .mat


def mat(kind: int = 2, size: int | None = None, shape=(8, 8, 3, 4), packed: bool = False, name: bytes = b"X") -> bytes:
    """A file of one array of uint8 zeros, as it declares itself."""

    def part(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    pixels = bytes(8 * 8 * 3 * 4)
    body = part(6, struct.pack("<II", 9, 0)) + part(5, struct.pack(f"<{len(shape)}i", *shape)) + part(1, name)
    body += struct.pack("<II", kind, len(pixels) if size is None else size) + pixels
    element = struct.pack("<II", 14, len(body)) + body
    if packed:
        element = zlib.compress(element)
        element = struct.pack("<II", 15, len(element)) + element
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element


@pytest.mark.parametrize("packed", [False, True])
def test_mat_files_are_read_as_scipy_reads_them(tmp_path, packed):
    from scipy.io import loadmat, savemat

    rng = np.random.default_rng(0)
    wanted = {
        "bytes": rng.integers(0, 256, (5, 4, 3, 2), dtype=np.uint8),
        "doubles": rng.random((7, 3)),
        "whole": np.arange(9.0)[:, None],  # stored in one byte each
        "long": rng.integers(-(2**40), 2**40, (3, 2)),
        "one": np.array([[5]], np.int16),
    }
    savemat(tmp_path / "x.mat", wanted, do_compression=packed)
    got, scipys = read_mat(tmp_path / "x.mat", list(wanted)), loadmat(tmp_path / "x.mat")
    for name, value in wanted.items():
        assert got[name].dtype == value.dtype
        assert np.array_equal(got[name], scipys[name])
    assert set(read_mat(tmp_path / "x.mat", ["one", "none"])) == {"one"}


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": 0},
        {"kind": 258},
        {"kind": 9},
        {"size": 2**31},
        {"size": 5},
        {"shape": (8, 8, 3, 5)},
        {"shape": (-8, -8, 3, 4)},
        {"shape": (2**30, 2**30, 2**30, 2**30)},
        {"shape": ()},
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_mat_file_never_kills_the_process(tmp_path, damage, packed, one_line):
    (tmp_path / "x.mat").write_bytes(mat(packed=packed))
    assert read_mat(tmp_path / "x.mat", "X")["X"].shape == (8, 8, 3, 4)
    (tmp_path / "x.mat").write_bytes(mat(packed=packed, **damage))
    one_line(read_mat, tmp_path / "x.mat", "X", match=r"x\.mat cannot be read")


def test_a_small_mat_file_does_not_unpack_to_all_memory(tmp_path, one_line):
    packed = zlib.compress(struct.pack("<II", 14, 2**32 - 1) + mat()[136:] + bytes(64 << 20), 9)
    (tmp_path / "x.mat").write_bytes(mat()[:128] + struct.pack("<II", 15, len(packed)) + packed)
    one_line(read_mat, tmp_path / "x.mat", "X", match=r"cannot be read|would take")


# sizes that are declared


def jpeg(side: int) -> bytes:
    """Of 16 x 16 pixels, with another size in its head."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    raw = bytearray(out.getvalue())
    at = raw.find(b"\xff\xc0")
    raw[at + 5 : at + 9] = side.to_bytes(2, "big") * 2
    return bytes(raw)


def test_the_size_of_a_jpeg_is_looked_at_before_it_is_decoded(tmp_path, make_dataset, monkeypatch, one_line):
    for c in "ab":
        (tmp_path / c).mkdir()
        (tmp_path / c / "0.jpg").write_bytes(jpeg(65500))
    one_line(load_dataset, tmp_path, resize=16, match="declares 65500 x 65500 pixels")
    monkeypatch.setenv("ULFAST_MAX_PIXELS", "100")
    (tmp_path / "a" / "0.jpg").write_bytes(jpeg(16))
    one_line(load_dataset, tmp_path, match="more than 100: make it smaller, or set ULFAST_MAX_PIXELS")
    monkeypatch.setenv("ULFAST_MAX_PIXELS", "many")
    one_line(load_dataset, tmp_path, match="give a number of pixels")


def test_a_jpeg_in_a_beton_has_the_size_of_the_table(tmp_path, make_dataset, monkeypatch, one_line):
    write_beton(tmp_path / "x.beton", make_dataset(4, 16), mode="jpeg")
    fmt.manifest_path(tmp_path / "x.beton").unlink()
    beton, raw = open_beton(tmp_path / "x.beton"), bytearray((tmp_path / "x.beton").read_bytes())
    at = bytes(raw).find(b"\xff\xc0", int(beton.ptr[0]))
    raw[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    (tmp_path / "x.beton").write_bytes(raw)
    one_line(open_beton(tmp_path / "x.beton").decode, 0, match="a JPEG of 60000 x 60000, not 16 x 16")
    monkeypatch.setenv("ULFAST_MAX_PIXELS", "100")
    one_line(open_beton, tmp_path / "x.beton", match="declares 16 x 16 pixels, more than 100")


def test_a_thin_image_is_not_blown_up(tmp_path, one_line):
    from PIL import Image

    for c in "ab":
        (tmp_path / c).mkdir()
        Image.new("L", (1, 60_000)).save(tmp_path / c / "0.png")
    one_line(load_dataset, tmp_path, resize=512, match="too narrow for --resize 512")


def test_arrays_that_would_not_fit_into_memory_are_not_unpacked(tmp_path, make_dataset, monkeypatch, one_line):
    data = make_dataset(40, 16)
    np.savez_compressed(tmp_path / "x.npz", images=data.images, labels=data.labels)
    monkeypatch.setattr(reading, "free_memory", lambda: 1000)
    one_line(load_dataset, tmp_path / "x.npz", match="its arrays unpacked would take")
    monkeypatch.setattr(reading, "free_memory", lambda: None)  # nobody says
    assert len(load_dataset(tmp_path / "x.npz")) == 40
    assert reading.free_memory() is None


@pytest.mark.parametrize("name", ["delta.npy", "x_train_a.npy"])
def test_a_header_that_declares_more_than_the_file_has(tmp_path, make_dataset, name, one_line):
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }"
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.ljust(117) + b"\n" + bytes(64))
    one_line(import_published, tmp_path / name, make_dataset(), match="cannot be read as an array")


# what is no file


@pytest.mark.parametrize(
    "read",
    [
        lambda pipe: load_pickle(pipe),
        lambda pipe: ulfast.Basis.load(pipe),
        lambda pipe: read_yaml(pipe),
        lambda pipe: load_tensors(pipe, "again"),
        lambda pipe: read_mat(pipe, ["X"]),
        lambda pipe: open_beton(pipe),
        lambda pipe: ulfast.poisons.ar.load_coefficients(str(pipe), 3, 3),
        lambda pipe: load_dataset(pipe, format="npz"),
    ],
    ids=["pickle", "basis", "yaml", "checkpoint", "mat", "beton", "coefficients", "npz"],
)
def test_pipes_and_devices_are_refused_everywhere(tmp_path, read, one_line):
    os.mkfifo(tmp_path / "pipe")
    one_line(read, tmp_path / "pipe", match="is a pipe, not a file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    one_line(read, tmp_path / "zero", match="is a device, not a file")


def test_published_files_that_are_pipes_are_refused(tmp_path, make_dataset, one_line):
    for name in ("a.pt", "a.npy", "a.pkl", "a.safetensors"):
        os.mkfifo(tmp_path / name)
        one_line(import_published, tmp_path / name, make_dataset(), match="is a pipe, not a file")


def test_notes_beside_files_that_are_pipes_are_none(tmp_path, make_dataset, one_line):
    from ulfast.data.export import export_dataset

    export_dataset(make_dataset(30), tmp_path / "i", "imagefolder")
    (tmp_path / "i" / "ulfast.json").unlink()
    os.mkfifo(tmp_path / "i" / "ulfast.json")
    assert len(load_dataset(tmp_path / "i")) == 30
    (tmp_path / "run").mkdir()
    for name in ("result.json", "grid.json"):
        os.mkfifo(tmp_path / "run" / name)
    one_line(ulfast.AttackResult.load, tmp_path / "run", match="is a pipe, not a file")


# what is wrong with a value, not with its file


def test_a_set_whose_values_do_not_fit_together_is_named_by_its_file(tmp_path, make_dataset, one_line):
    data = make_dataset(12, 16)
    for name, arrays in (
        ("labels", {"images": data.images, "labels": data.labels[:5]}),
        ("classes", {"images": data.images, "labels": data.labels, "classes": np.array(["a"] * 10)}),
        ("range", {"images": data.images, "labels": data.labels + 50, "classes": np.array(list("abcdefghij"))}),
        ("channels", {"images": data.images[..., :2], "labels": data.labels}),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        one_line(load_dataset, tmp_path / f"{name}.npz", match=rf"{name}\.npz")
    np.save(tmp_path / "x_train_a.npy", data.images[..., :2])
    np.save(tmp_path / "y_train_a.npy", data.labels)
    one_line(import_published, tmp_path / "x_train_a.npy", match=r"x_train_a\.npy")


def test_a_published_file_whose_labels_are_arrays_of_words_is_one_line(tmp_path, make_dataset, one_line):
    images = make_dataset(4, 16).images
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([(image, np.array(["a", "b"])) for image in images]))
    one_line(import_published, tmp_path / "x.pkl", match=r"x\.pkl cannot be read")
    one_line(load_dataset, tmp_path / "x.pkl", match=r"x\.pkl cannot be read")


def test_a_field_with_a_line_break_in_its_name_is_one_line(tmp_path, make_dataset, one_line):
    write_beton(tmp_path / "x.beton", make_dataset(4, 16))
    fmt.manifest_path(tmp_path / "x.beton").unlink()
    raw = bytearray((tmp_path / "x.beton").read_bytes())
    field = fmt.HEADER.itemsize
    raw[field + 1 : field + 5] = b"a\n\x1bb"
    raw[field + fmt.FIELD.itemsize] = 125  # a kind that nobody knows
    (tmp_path / "x.beton").write_bytes(raw)
    assert r"a\n\x1bb" in one_line(open_beton, tmp_path / "x.beton", match="of the kinds")


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 5},
        {"classes": "ab"},
        {"classes": {"a": 1}},
        {"classes": [1, 2, 3]},
        {"image_shape": [16, 16, True]},
        {"image_shape": [16, 16, 1]},
        {"image_shape": 3},
        {"manifest": []},
        {"name": 3},
    ],
    ids=str,
)
def test_a_beton_whose_manifest_says_something_else_is_one_line(tmp_path, make_dataset, change, one_line):
    write_beton(tmp_path / "x.beton", make_dataset(12, 16))
    file = fmt.manifest_path(tmp_path / "x.beton")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    one_line(load_dataset, tmp_path / "x.beton", match=r"x\.beton")


@pytest.mark.parametrize(
    "arrays",
    [
        {"given": np.zeros((3, 8, 8, 3), np.uint8), "classes": np.array(["a"])},
        {"given": np.zeros((3, 8, 8, 3)), "learned": np.zeros((3, 8, 8, 3)), "classes": np.array(["a"])},
        {
            "given": np.zeros((3, 8, 8, 3), np.uint8),
            "learned": np.zeros((2, 8, 8, 3), np.uint8),
            "classes": np.array(["a"]),
        },
    ],
)
def test_snapshots_of_a_run_that_are_no_images_are_one_line(tmp_path, arrays, one_line):
    np.savez(tmp_path / "examples.npz", **arrays)
    one_line(Examples.load, tmp_path / "examples.npz", match=r"examples\.npz cannot be read")


def test_members_of_an_archive_that_are_no_arrays_are_one_line(tmp_path, one_line):
    """numpy gives their bytes."""
    for name in ("examples.npz", "labels.npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in ("given.npy", "learned.npy", "classes.npy", "labels.npy"):
                archive.writestr(member, b"no array at all")
    one_line(Examples.load, tmp_path / "examples.npz", match="cannot be read")
    one_line(poison_labels._read, tmp_path / "labels.npz", match="cannot be read")


@pytest.mark.parametrize(
    "change",
    [
        {"images": 2**62},
        {"images": 0},
        {"shard_images": 0},
        {"shard_images": -1},
        {"image_shape": [8, 8, 3]},
        {"images": 7},
    ],
    ids=str,
)
def test_a_projected_set_with_another_manifest_is_one_line(tmp_path, make_dataset, change, one_line):
    write_projected(tmp_path / "p", make_dataset(12, 16), Removal())
    file = tmp_path / "p" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    one_line(Shards, tmp_path / "p", match="cannot be read as a projected set")


def test_a_projected_set_of_one_file_is_read_whatever_the_size_of_a_full_one(tmp_path, make_dataset):
    write_projected(tmp_path / "p", make_dataset(12, 16), Removal())
    file = tmp_path / "p" / "manifest.json"
    before = Shards(tmp_path / "p")[torch.arange(12)]
    file.write_text(json.dumps({**json.loads(file.read_text()), "shard_images": 2**63}))
    assert torch.equal(Shards(tmp_path / "p")[torch.arange(12)], before)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
@pytest.mark.parametrize(
    "read",
    [
        ulfast.load_dataset,
        ulfast.Basis.load,
        lambda path: Grid.of({"name": "g", "data": path, "poisons": ["lsp"], "attacks": ["none"]}),
        lambda path: import_published(path, ulfast.load_dataset("sample", limit=20)),
        lambda path: ulfast.poison(ulfast.load_dataset("sample", limit=20), "file", path=path),
        lambda path: ulfast.poison(ulfast.load_dataset("sample", limit=20), "gue", generator=path),
        lambda path: ulfast.poison(ulfast.load_dataset("sample", limit=20), "ar", coefficients=path),
        lambda path: ulfast.poison(ulfast.load_dataset("sample", limit=20), "lsp", labels=path),
        lambda path: ulfast.attack(None, method="none", start=path),
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(name, read):
    with pytest.raises(InputError) as caught:
        read(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
