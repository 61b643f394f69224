"""WebDataset shards: written, read, and refused."""

from __future__ import annotations

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ulfast import InputError
from ulfast.data import READERS, load_dataset
from ulfast.data.export import export_dataset
from ulfast.data.lazy import LazyImages
from ulfast.data.png import png
from ulfast.data.readers.tar import members
from ulfast.data.writers.wds import write_wds


def write_tar(path, files, format=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def samples(data, stem="", label=lambda c: str(c).encode(), key="cls"):
    for i in range(len(data)):
        yield f"{stem}{i:04d}.png", png(data.images[i])
        yield f"{stem}{i:04d}.{key}", label(int(data.labels[i]))


def test_shards_are_read_back_with_their_classes_and_read_by_index(tmp_path, make_dataset):
    train, test = make_dataset(25, 16), make_dataset(7, 16, seed=1, split="test")
    export_dataset(train, tmp_path / "out", "wds", test=test, shard_size=10)
    names = sorted(file.name for file in (tmp_path / "out").glob("*.tar"))
    assert names == ["test-000000.tar", "train-000000.tar", "train-000001.tar", "train-000002.tar"]
    info = json.loads((tmp_path / "out" / "info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [10, 10, 5]
    assert info["splits"]["train"]["num_samples"] == 25
    assert info["splits"]["train"]["filenames"] == names[1:]
    for split, data in (("train", train), ("test", test)):
        for stream in (False, True):
            got = load_dataset(tmp_path / "out", split=split, stream=stream)
            assert isinstance(got.images, LazyImages) == stream
            assert np.array_equal(got.images[:], data.images)
            assert np.array_equal(got.labels, data.labels)
            assert got.classes == data.classes
    lazy = load_dataset(tmp_path / "out", stream=True)
    assert np.array_equal(lazy.images[[23, 0, 11]], train.images[[23, 0, 11]])


def test_the_same_set_gives_the_same_bytes_and_tarfile_reads_them(tmp_path, make_dataset):
    data = make_dataset(12, 16)
    for name in ("a", "b"):
        write_wds(tmp_path / name, {"train": data}, size=5)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    with tarfile.open(tmp_path / "a" / "train-000001.tar") as archive:
        assert archive.getnames()[:3] == ["00000005.cls", "00000005.png", "00000006.cls"]
        picture = Image.open(archive.extractfile("00000005.png"))
        assert np.array_equal(np.asarray(picture), data.images[5])


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "d" * 90 + "/" + "e" * 120 + "/", "é/ü/"])
def test_members_are_those_of_tarfile(tmp_path, format, folder):
    if format == tarfile.USTAR_FORMAT and len(folder) > 100:
        folder = "d" * 90 + "/" + "e" * 50 + "/"
    files = [(f"{folder}{i}.png", bytes([i]) * size) for i, size in enumerate((0, 1, 511, 512, 513, 5000))]
    write_tar(tmp_path / "x.tar", files, format)
    data = (tmp_path / "x.tar").read_bytes()
    got = [(name, data[offset : offset + size]) for name, offset, size in members(tmp_path / "x.tar")]
    assert got == files


def test_names_of_any_length_and_folders_in_the_archive(tmp_path, make_dataset):
    data = make_dataset(6, 16)
    write_tar(tmp_path / "one.tar", samples(data, "deep/" * 40))
    got = load_dataset(tmp_path / "one.tar")
    assert np.array_equal(got.images, data.images)
    assert got.classes == ("0", "1", "2")  # numbers, where nothing names them
    with pytest.raises(InputError, match="--test-data"):
        load_dataset(tmp_path / "one.tar", split="test")
    assert len(load_dataset("sample", split="test", test_data=tmp_path / "one.tar")) == 6


def test_splits_by_the_names_of_shards_by_folders_by_info_and_by_braces(tmp_path, make_dataset):
    train, test = make_dataset(6, 16), make_dataset(3, 16, seed=1)
    for place in ("names/x-train-{}.tar", "folders/train/{}.tar", "hub/data/train-{}.tar"):
        write_tar(tmp_path / place.format("000"), samples(train.subset(np.arange(3))))
        write_tar(tmp_path / place.format("001"), samples(train.subset(np.arange(3, 6))))
    write_tar(tmp_path / "names" / "x-validation-000.tar", samples(test))
    write_tar(tmp_path / "folders" / "val" / "0.tar", samples(test))
    write_tar(tmp_path / "hub" / "data" / "validation-000.tar", samples(test))
    for folder in ("names", "folders", "hub"):
        assert np.array_equal(load_dataset(tmp_path / folder).images, train.images)
        assert np.array_equal(load_dataset(tmp_path / folder, split="test").images, test.images)
    braces = tmp_path / "names" / "x-train-{000..001}.tar"
    assert np.array_equal(load_dataset(braces).images, train.images)
    with pytest.raises(InputError, match=r"there is no .*x-train-002\.tar"):
        load_dataset(tmp_path / "names" / "x-train-{000..002}.tar")
    with pytest.raises(InputError, match=r"stands for .* shards"):
        load_dataset(tmp_path / "names" / "x-train-{000..99999999}.tar")
    info = {"splits": {"train": {"filenames": ["x-validation-000.tar"]}}, "classes": ["a", "b", "c"]}
    (tmp_path / "names" / "_info.json").write_text(json.dumps(info))
    assert load_dataset(tmp_path / "names").classes == ("a", "b", "c")
    assert np.array_equal(load_dataset(tmp_path / "names").images, test.images)
    for bad in ("/etc/passwd", "../names/x-train-000.tar"):
        info["splits"]["train"]["filenames"] = [bad]
        (tmp_path / "names" / "_info.json").write_text(json.dumps(info))
        with pytest.raises(InputError, match="outside"):
            load_dataset(tmp_path / "names")


def test_labels_in_json_by_number_and_by_name(tmp_path, make_dataset):
    data = make_dataset(6, 16)
    names = ("cat", "dog", "eel")
    write_tar(
        tmp_path / "j.tar",
        samples(data, key="json", label=lambda c: json.dumps({"label": c, "kind": names[c]}).encode()),
    )
    assert load_dataset(tmp_path / "j.tar").labels.tolist() == data.labels.tolist()
    for option in ({"target_key": "kind"}, {"label_field": "kind"}):
        got = load_dataset(tmp_path / "j.tar", **option)
        assert got.classes == names
        assert got.labels.tolist() == data.labels.tolist()
    with pytest.raises(InputError, match="no field other"):
        load_dataset(tmp_path / "j.tar", target_key="other")


def test_several_images_in_a_sample_require_a_choice(tmp_path, make_dataset):
    data = make_dataset(4, 16, classes=2)
    files = [*samples(data), *((f"{i:04d}.jpg", png(data.images[0])) for i in range(4))]
    write_tar(tmp_path / "two.tar", files)
    with pytest.raises(InputError, match="--input-key"):
        load_dataset(tmp_path / "two.tar")
    assert np.array_equal(load_dataset(tmp_path / "two.tar", input_key="png").images, data.images)
    first = load_dataset(tmp_path / "two.tar", input_key="webp;jpg")
    assert np.array_equal(first.images[3], data.images[0])


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst", "x.tar"])
def test_compressed_archives_are_refused(tmp_path, make_dataset, name):
    write_tar(tmp_path / "plain.tar", samples(make_dataset(4, 16)))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    for path in (tmp_path / "c" / name, tmp_path / "c"):
        with pytest.raises(InputError, match="is compressed"):
            load_dataset(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 3], "cut short"),
        (lambda data: b"\x01" * 512 + data[512:], "damaged"),
        (lambda data: b"", "empty"),
        (lambda data: b"not a tar" * 100, "damaged"),
    ],
)
def test_damaged_archives_are_named(tmp_path, make_dataset, change, message):
    write_tar(tmp_path / "x.tar", samples(make_dataset(4, 16)))
    (tmp_path / "x.tar").write_bytes(change((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(InputError, match=rf"x\.tar.*{message}"):
        load_dataset(tmp_path / "x.tar")


def test_a_size_beyond_the_file_takes_no_memory(tmp_path):
    member = tarfile.TarInfo("a.png")
    member.size = 1 << 50  # GNU's binary numbers
    (tmp_path / "x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(InputError, match="cut short"):
        load_dataset(tmp_path / "x.tar")


def test_damaged_images_and_labels(tmp_path, make_dataset):
    data = make_dataset(6, 16)
    files = dict(samples(data))
    files["0004.png"] = files["0004.png"][:60]
    write_tar(tmp_path / "x.tar", files.items())
    with pytest.raises(InputError, match=r"x\.tar, 0004\.png cannot be read"):
        load_dataset(tmp_path / "x.tar")
    got = load_dataset(tmp_path / "x.tar", skip_damaged=True)
    assert np.array_equal(got.images, data.images[[0, 1, 2, 3, 5]])
    assert got.notes == {"damaged images, left out": 1}
    files = dict(samples(data))
    files["0002.cls"] = b"dog"
    write_tar(tmp_path / "y.tar", files.items())
    with pytest.raises(InputError, match=r"0002\.cls is 'dog'"):
        load_dataset(tmp_path / "y.tar")
    del files["0002.cls"]
    write_tar(tmp_path / "z.tar", files.items())
    with pytest.raises(InputError, match=r"no cls of 0002"):
        load_dataset(tmp_path / "z.tar")


def test_an_archive_beside_class_folders_is_not_the_data_set(tmp_path, make_dataset):
    data = make_dataset(6, 16)
    for c in range(3):
        (tmp_path / "train" / f"c{c}").mkdir(parents=True)
        (tmp_path / "train" / f"c{c}" / "0.png").write_bytes(png(data.images[c]))
    write_tar(tmp_path / "images.tar", samples(data))
    assert load_dataset(tmp_path).classes == ("c0", "c1", "c2")
    assert not READERS["wds"].detect(tmp_path)
    (tmp_path / "images.tar").unlink()
    with pytest.raises(InputError, match=r"no \.tar in it"):
        load_dataset(tmp_path, format="wds")
    write_tar(tmp_path / "data" / "images.tar", samples(data))
    assert load_dataset(tmp_path).classes == ("c0", "c1", "c2")


@pytest.mark.parametrize("layout", ["wds", "parquet"])
def test_an_interrupted_conversion_resumes_after_complete_files(tmp_path, make_dataset, monkeypatch, layout):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    from ulfast.data.export import SHARDED
    from ulfast.data.writers import pieces

    data = make_dataset(20, 16)
    write = SHARDED[layout]
    write(tmp_path / "whole", {"train": data}, size=6)
    seen: list[int] = []

    def failing(stage, done, total):
        seen.append(done)
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", {"train": data}, size=6, resume=True, progress=failing)
    assert not (tmp_path / "out").exists()
    made: list[str] = []
    encoded = pieces.Piece.encoded
    monkeypatch.setattr(pieces.Piece, "encoded", lambda self: (made.append(self.name), encoded(self))[1])
    write(tmp_path / "out", {"train": data}, size=6, resume=True)
    assert len(made) == 2  # of four
    for file in (tmp_path / "whole").rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "other", {"train": data}, size=6, progress=failing)
    assert not list(tmp_path.glob(".other*"))


def test_a_conversion_takes_the_memory_of_a_block(tmp_path, make_dataset):
    """Of a set that is decoded on demand, at most one block of images is in memory."""
    from ulfast.data.dataset import Dataset
    from ulfast.data.writers import pieces

    asked: list[int] = []

    class Watched(LazyImages):
        def __getitem__(self, key):
            asked.append(len(np.arange(len(self))[key]) if isinstance(key, slice) else 0)
            return super().__getitem__(key)

    n, side = 64, 512
    images = Watched((n, side, side, 3), lambda i, out: out.fill(i))
    data = Dataset(images, np.arange(n) % 2, ("a", "b"))  # type: ignore[arg-type]
    write_wds(tmp_path / "out", {"train": data}, size=40)
    assert max(asked) * side * side * 3 <= pieces.BLOCK_BYTES
    assert sum(asked) == n
    assert load_dataset(tmp_path / "out", stream=True).images[63].max() == 63
