"""The values of pixels: 16 bits, floats, EXIF, damaged files, declared sizes."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.readers.image import decode

RAMP = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)


def smooth(side: int = 32) -> np.ndarray:
    y, x = np.mgrid[:side, :side] * 255 // (side - 1)
    return np.stack([y, x, 255 - y], 2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_divided_by_256_and_that_is_reported(tmp_path, suffix):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(RAMP).save(tmp_path / name / f"0.{suffix}")
    got = load_dataset(tmp_path)
    assert np.array_equal(got.images[0], (RAMP >> 8)[..., None].repeat(3, 2))
    assert got.notes == {"16-bit images, divided by 256": 2}


def test_12_bits_in_16_are_refused(tmp_path):
    Image.fromarray(RAMP // 32).save(tmp_path / "x.png")
    with pytest.raises(InputError, match=r"x\.png has 16-bit pixels that reach 2046 of 65,535"):
        decode(tmp_path / "x.png")


def test_floats_are_shares_of_white_or_refused(tmp_path):
    file = tmp_path / "x.tif"
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(file)
    assert np.array_equal(decode(file)[..., 0], np.rint((RAMP / 65535).astype(np.float32) * 255))
    for bad, what in ((RAMP / 256, "not in"), (RAMP / 65535 - 0.5, "not in"), (RAMP * np.nan, "NaN")):
        Image.fromarray(bad.astype(np.float32)).save(file)
        with pytest.raises(InputError, match=f"x.tif has .*{what}"):
            decode(file)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_turns_nothing_and_that_is_reported(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(smooth()).save(tmp_path / name / f"0.{suffix}", exif=exif, quality=95)
    got = load_dataset(tmp_path)
    with Image.open(tmp_path / f"a/0.{suffix}") as plain:
        assert np.array_equal(got.images[0], np.asarray(plain.convert("RGB")))  # as torchvision reads it
    assert got.notes == {"images with an EXIF orientation, which is not applied": 2}


def damaged(file: Path) -> Path:
    """A JPEG with lost bits, which Pillow reads without a warning."""
    rng = np.random.default_rng(0)
    data = bytearray(simplejpeg.encode_jpeg(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), 95))
    data[len(data) // 2 : len(data) // 2 + 64] = b"\xff\x00" * 32
    del data[-200:-2]
    file.write_bytes(data)
    return file


def test_a_damaged_jpeg_is_named_or_left_out(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(smooth(64)).save(tmp_path / name / f"{i}.jpg")
    damaged(tmp_path / "b/1.jpg")
    (tmp_path / "a/0.jpg").write_bytes((tmp_path / "a/1.jpg").read_bytes()[:-300])
    with pytest.raises(InputError, match=r"a/0\.jpg is a damaged JPEG"):
        load_dataset(tmp_path)
    for stream in (False, True):
        got = load_dataset(tmp_path, skip_damaged=True, stream=stream)
        assert got.labels.tolist() == [0, 1]
        assert got.notes == {"damaged images, left out": 2}


def test_harmless_bytes_in_a_jpeg_are_read_past(tmp_path):
    data = simplejpeg.encode_jpeg(smooth(), 95)
    (tmp_path / "x.jpg").write_bytes(data[:-2] + b"\0\0\0" + data[-2:])
    assert np.array_equal(decode(tmp_path / "x.jpg"), simplejpeg.decode_jpeg(data))


def test_an_image_declared_too_large_is_refused(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    data = bytearray(simplejpeg.encode_jpeg(smooth(), 95))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    (tmp_path / "x.jpg").write_bytes(data)
    for name in ("x.png", "x.jpg"):
        with pytest.raises(InputError, match=rf"{name} declares"):
            decode(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "L"])
def test_other_modes_as_torchvision_reads_them(tmp_path, mode):
    picture = Image.fromarray(smooth()).convert(mode)
    file = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(file)
    with Image.open(file) as plain:
        assert np.array_equal(decode(file), np.asarray(plain.convert("RGB")))


def test_colours_of_16_bits(tmp_path):
    """Pillow cannot write them; a PNG by hand."""

    def write(file: Path, values: np.ndarray) -> None:
        def chunk(kind: bytes, body: bytes) -> bytes:
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        height, width, _ = values.shape
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))

    values = np.random.default_rng(0).integers(0, 65536, (9, 8, 3))
    notes: Counter[str] = Counter()
    write(tmp_path / "x.png", values)
    assert np.array_equal(decode(tmp_path / "x.png", notes=notes), values >> 8)
    assert notes == {"16-bit images, divided by 256": 1}
    write(tmp_path / "x.png", values >> 4)
    with pytest.raises(InputError, match=r"reach 15 of 255"):
        decode(tmp_path / "x.png")


def test_transparency_is_dropped_and_counted(tmp_path):
    for c, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        picture = np.dstack([smooth(), np.full((32, 32), 100 * c, np.uint8)])
        Image.fromarray(picture).save(tmp_path / name / "0.png")
    got = load_dataset(tmp_path)
    assert np.array_equal(got.images[1], smooth())
    assert got.notes == {"images with transparency, which is dropped": 2}


def test_whole_numbers_beyond_16_bits_are_refused(tmp_path):
    for values in (np.full((32, 32), 70_000), np.full((32, 32), -1)):
        Image.fromarray(values.astype(np.int32)).save(tmp_path / "x.tif")
        with pytest.raises(InputError, match=r"x\.tif has whole pixels .* not of 16 bits"):
            decode(tmp_path / "x.tif")
