from __future__ import annotations

import errno
import json
import os
import signal
import zlib

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import load_dataset, write_dataset
from ulfast.data.beton import BetonWriter, format as fmt, open_beton, write_beton, writer as beton_writer


def same(a, b):
    return a.checksum() == b.checksum() and a.classes == b.classes and a.split == b.split


def test_raw_is_bit_exact_and_keeps_the_manifest(tmp_path, make_dataset):
    data = make_dataset(50)
    write_beton(tmp_path / "x.beton", data)
    got = load_dataset(tmp_path / "x.beton")
    assert same(got, data)
    assert got.name == "tiny"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]
    assert same(load_dataset(tmp_path / "x.beton", stream=True), data)


def test_jpeg_and_mixed_decode_to_what_was_encoded(tmp_path, make_dataset):
    import simplejpeg

    data = make_dataset(40, 16)
    want = [simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(x, 85, colorsubsampling="420")) for x in data.images]
    write_beton(tmp_path / "j.beton", data, mode="jpeg", quality=85)
    assert (load_dataset(tmp_path / "j.beton").images == np.stack(want)).all()
    write_beton(tmp_path / "m.beton", data, mode="mixed", quality=85, share=0.4, seed=3)
    jpeg = open_beton(tmp_path / "m.beton").mode == fmt.JPEG
    assert 5 < jpeg.sum() < 30
    got = load_dataset(tmp_path / "m.beton").images
    assert (got == np.where(jpeg[:, None, None, None], np.stack(want), data.images)).all()
    assert (tmp_path / "j.beton").stat().st_size < 9 << 20


def test_test_images_are_beside_or_in_a_folder(tmp_path, make_dataset):
    train, test = make_dataset(30), make_dataset(12, seed=1, split="test")
    (tmp_path / "both").mkdir()
    for name in ("x", "both/train"):
        write_beton(tmp_path / f"{name}.beton", train)
    for name in ("x.test", "both/val"):
        write_beton(tmp_path / f"{name}.beton", test)
    for source in ("x.beton", "both"):
        assert same(load_dataset(tmp_path / source), train)
        assert same(load_dataset(tmp_path / source, split="test"), test)
    (tmp_path / "x.test.beton").unlink()
    with pytest.raises(InputError, match="no test images beside it"):
        load_dataset(tmp_path / "x.beton", split="test")


def test_resize_and_pages(tmp_path, make_dataset, monkeypatch):
    monkeypatch.setattr(beton_writer, "PAGE", fmt.MIN_PAGE)
    data = make_dataset(40, 200)  # 120,000 bytes: 17 to a page of 2 MiB
    write_beton(tmp_path / "x.beton", data)
    beton = open_beton(tmp_path / "x.beton")
    assert (beton.ptr // fmt.MIN_PAGE == (beton.ptr + beton.size - 1) // fmt.MIN_PAGE).all()
    assert len(np.unique(beton.ptr // fmt.MIN_PAGE)) == 3
    assert same(load_dataset(tmp_path / "x.beton"), data)
    assert load_dataset(tmp_path / "x.beton", resize=64).image_shape == (64, 64, 3)


def test_another_suffix_is_refused(tmp_path, make_dataset):
    with pytest.raises(InputError, match=r"must end in \.beton"):
        write_beton(tmp_path / "x.raw", make_dataset(10))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_one_channel_is_written_as_three_and_read_as_one(tmp_path, make_dataset, mode):
    data = make_dataset(10, 16, channels=1)
    write_beton(tmp_path / "x.beton", data, mode=mode, quality=100)
    got = load_dataset(tmp_path / "x.beton")
    assert got.image_shape == (16, 16, 1)
    assert np.abs(got.images.astype(int) - data.images).max() <= (0 if mode == "raw" else 3)
    assert open_beton(tmp_path / "x.beton").decode(0).shape == (16, 16, 3)  # as FFCV reads it


def sections(path):
    """A byte in each part of a file."""
    beton = open_beton(path)
    n, total = len(beton), path.stat().st_size
    fields = fmt.HEADER.itemsize + fmt.FIELD.itemsize
    samples = fmt.HEADER.itemsize + 2 * fmt.FIELD.itemsize + 24 * (n // 2)
    table = total - fmt.ALLOCATION.itemsize * n
    return {
        "empty": 0,
        "header": 10,
        "fields": fields,
        "samples": samples,
        "pages": int(beton.ptr[n // 2]) + 7,
        "before the table": table,
        "table": table + 24 * 3,
        "last byte": total - 1,
    }


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize(
    "section", ["empty", "header", "fields", "samples", "pages", "before the table", "table", "last byte"]
)
def test_a_cut_file_is_refused_at_every_section(tmp_path, make_dataset, section, with_manifest):
    path = tmp_path / "x.beton"
    write_beton(path, make_dataset(20), mode="jpeg")
    cut = sections(path)[section]
    os.truncate(path, cut)
    if not with_manifest:
        fmt.manifest_path(path).unlink()
    with pytest.raises(InputError, match="write it again"):
        load_dataset(path)


def overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"\x03", "version 3"),
        (4, (3 << 20).to_bytes(4, "little"), "page size"),
        (8, (0).to_bytes(8, "little"), "0 samples"),
        (8, (1 << 40).to_bytes(8, "little"), "cut in the sample table"),
        (16, (1 << 60).to_bytes(8, "little"), "allocation table"),
        (24, b"\x09", "of the kinds"),
        ("ptr", (1 << 50).to_bytes(8, "little"), "in no allocation"),
        ("mode", b"\x07", "no known mode"),
        ("width", (9).to_bytes(2, "little"), "another length"),
        ("label", (-4).to_bytes(8, "little", signed=True), "label goes from -4"),
        ("allocated", (1 << 63).to_bytes(8, "little"), "in no allocation"),
        ("size", (1 << 62).to_bytes(8, "little"), "outside of the pages"),
    ],
)
def test_a_wrong_table_is_refused_without_a_manifest_too(tmp_path, make_dataset, at, value, message):
    path = tmp_path / "x.beton"
    write_beton(path, make_dataset(20))
    first = fmt.HEADER.itemsize + 2 * fmt.FIELD.itemsize
    table = path.stat().st_size - 20 * 24
    at = {
        "mode": first,
        "width": first + 1,
        "ptr": first + 5,
        "label": first + 16,
        "allocated": table + 8,
        "size": table + 16,
    }.get(at, at)
    overwrite(path, at, value)
    with pytest.raises(InputError, match=r"does not know|damaged|of the kinds"):
        load_dataset(path)
    fmt.manifest_path(path).unlink()
    with pytest.raises(InputError, match=message):
        load_dataset(path)


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_a_zeroed_page_is_found(tmp_path, make_dataset, mode):
    path = tmp_path / "x.beton"
    write_beton(path, make_dataset(20), mode=mode)
    beton = open_beton(path)
    overwrite(path, int(beton.ptr[7]), bytes(64))
    lazy = load_dataset(path, stream=True)
    assert lazy.images[:7].shape == (7, 12, 12, 3)
    with pytest.raises(InputError, match=r"image 7 is damaged"):
        lazy.images[5:10]
    if mode == "jpeg":
        fmt.manifest_path(path).unlink()
        with pytest.raises(InputError, match=r"image 7 is damaged, no JPEG"):
            load_dataset(path)


def test_a_manifest_of_another_file_is_refused(tmp_path, make_dataset):
    write_beton(tmp_path / "x.beton", make_dataset(20))
    write_beton(tmp_path / "y.beton", make_dataset(20, seed=5))
    os.replace(tmp_path / "y.beton", tmp_path / "x.beton")
    with pytest.raises(InputError, match="does not know"):
        load_dataset(tmp_path / "x.beton")
    (tmp_path / "x.beton.json").write_text("[]")
    with pytest.raises(InputError, match="is not the manifest"):
        load_dataset(tmp_path / "x.beton")


def test_an_error_leaves_nothing_and_an_existing_file_asks(tmp_path, make_dataset, monkeypatch):
    data = make_dataset(20)
    write_beton(tmp_path / "x.beton", data)
    with pytest.raises(InputError, match="--overwrite"):
        write_beton(tmp_path / "x.beton", data)
    write_beton(tmp_path / "x.beton", make_dataset(20, seed=2), overwrite=True)
    assert same(load_dataset(tmp_path / "x.beton"), make_dataset(20, seed=2))
    with (
        pytest.raises(ValueError, match="20 images were announced, 5 came"),
        BetonWriter(tmp_path / "y.beton", 20, (12, 12, 3), data.classes) as writer,
    ):
        writer.append(data.images[:5], data.labels[:5])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        write_beton(tmp_path / "y.beton", data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


def test_a_killed_writer_resumes_to_the_same_bytes(tmp_path, make_dataset, forked):
    def write(path, left):
        beton_writer.CHECKPOINT_BYTES, beton_writer.CHUNK_BYTES = 40_000, 10_000

        def progress(stage, done, total):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        write_beton(path, make_dataset(300), mode="mixed", resume=True, progress=progress)

    target = tmp_path / "x.beton"
    for left in (2, 7, 12):  # of 14 pieces of 23 images
        assert forked(write, target, left) == -signal.SIGKILL
        assert not target.exists()
        with pytest.raises(InputError):
            load_dataset(target)
    journal = np.frombuffer((tmp_path / "x.beton.part.journal").read_bytes(), beton_writer.JOURNAL)
    assert 7 * 23 < len(journal) < 300  # more than the second attempt had
    assert forked(write, target, -1) == 0
    assert forked(write, tmp_path / "y.beton", -1) == 0
    assert target.read_bytes() == (tmp_path / "y.beton").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n}.beton{e}" for n in "xy" for e in ("", ".json")]


def test_other_settings_start_anew(tmp_path, make_dataset):
    data = make_dataset(30)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_beton(tmp_path / "x.beton", data, mode="jpeg", quality=50, resume=True, progress=stop)
    assert (tmp_path / "x.beton.part.journal").stat().st_size == 30 * beton_writer.JOURNAL.itemsize
    write_beton(tmp_path / "x.beton", data, mode="raw", resume=True)
    assert same(load_dataset(tmp_path / "x.beton"), data)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


def test_checksums_are_in_the_file(tmp_path, make_dataset):
    data = make_dataset(20)
    write_beton(tmp_path / "x.beton", data)
    beton = open_beton(tmp_path / "x.beton")
    assert beton.crc.tolist() == [zlib.crc32(image) for image in data.images]
    assert json.loads((tmp_path / "x.beton.json").read_text())["images"] == 20


def test_convert_fit_and_attack_on_beton(tmp_path, make_dataset, monkeypatch, capsys):
    from click.testing import CliRunner

    from ulfast.cli.main import group

    monkeypatch.chdir(tmp_path)
    train, test = make_dataset(60), make_dataset(30, seed=1, split="test")
    write_dataset("small", train, test)

    def run(line):
        result = CliRunner().invoke(group, line.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "60 training and 30 test images: x.beton" in run("data convert small --out x.beton")
    assert same(load_dataset("x.beton"), train)
    assert same(load_dataset("x.beton", split="test"), test)
    (tmp_path / "x.test.beton").unlink()  # killed between the two files: the same command continues
    (tmp_path / "x.test.beton.json").unlink()
    before = (tmp_path / "x.beton").stat().st_mtime_ns
    run("data convert small --out x.beton")
    assert (tmp_path / "x.beton").stat().st_mtime_ns == before
    assert same(load_dataset("x.beton", split="test"), test)
    with pytest.raises(InputError, match="--overwrite"):
        run("data convert small --mode jpeg --out x.beton")
    run("data convert x.beton --to ulfast --resize 8 --out back")
    assert load_dataset("back").image_shape == (8, 8, 3)
    run("data export small --layout beton --out e.beton")
    assert same(load_dataset("e.beton", split="test"), test)
    run("fit --data x.beton --steps 20 --out b.safetensors --quiet")
    run("attack --data x.beton --method orthogonal --basis b.safetensors --epochs 1 --out r --quiet")
    run("data info x.beton --quick")
