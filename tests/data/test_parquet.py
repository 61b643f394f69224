"""Parquet files as Hugging Face writes them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.export import export_dataset
from ulfast.data.lazy import LazyImages
from ulfast.data.png import png

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, data, *, image="image", labels=("label",), names=("a", "b", "c"), extra=(), null=None, group=None):
    """A file as `datasets` makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": None if i == null else png(one), "path": f"{i}.png"} for i, one in enumerate(data.images)]
    columns = {image: pa.array(pictures, IMAGE)}
    columns |= {name: pa.array(data.labels, pa.int64()) for name in labels}
    columns |= {name: pa.array(data.labels + 10, pa.int64()) for name in extra}
    features = {image: {"_type": "Image"}}
    if names:
        features |= {name: {"names": list(names), "_type": "ClassLabel"} for name in labels}
    table = pa.table(columns)
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train.parquet", "validation.parquet"),
    ],
)
def test_files_are_found_as_the_hub_names_them(tmp_path, make_dataset, train, test):
    data, other = make_dataset(9, 16), make_dataset(6, 16, seed=1)
    write(tmp_path / train, data, image="img")
    write(tmp_path / test, other, image="img")
    got = load_dataset(tmp_path)
    assert got.classes == ("a", "b", "c")
    assert np.array_equal(got.images, data.images)
    assert np.array_equal(got.labels, data.labels)
    assert np.array_equal(load_dataset(tmp_path, split="test").images, other.images)
    assert np.array_equal(load_dataset(tmp_path / train).images, data.images)


def test_two_configurations_require_a_choice(tmp_path, make_dataset):
    for name in ("clean", "noisy"):
        write(tmp_path / name / "train-00000-of-00001.parquet", make_dataset(9, 16))
    with pytest.raises(InputError, match=r"clean, noisy: which is meant"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "noisy")) == 9


def test_several_columns_require_a_choice(tmp_path, make_dataset):
    data = make_dataset(9, 16)
    write(tmp_path / "x.parquet", data, labels=("fine_label", "coarse_label"), extra=("id",))
    with pytest.raises(InputError, match=r"fine_label, coarse_label.*--target-key"):
        load_dataset(tmp_path / "x.parquet")
    assert load_dataset(tmp_path / "x.parquet", target_key="fine_label").classes == ("a", "b", "c")
    for option in ({"target_key": "image"}, {"target_key": "fine_label", "input_key": "id"}):
        with pytest.raises(InputError, match=r"no column"):
            load_dataset(tmp_path / "x.parquet", **option)
    write(tmp_path / "y.parquet", data, extra=("id",))  # one ClassLabel and another number
    assert load_dataset(tmp_path / "y.parquet").labels.tolist() == data.labels.tolist()
    write(tmp_path / "z.parquet", data, names=None)  # without metadata
    assert load_dataset(tmp_path / "z.parquet").classes == ("0", "1", "2")


def test_row_groups_are_read_one_by_one_when_images_are_asked_for(tmp_path, make_dataset):
    data = make_dataset(30, 16)
    write(tmp_path / "data" / "train-00000-of-00002.parquet", data.subset(np.arange(20)), group=4)
    write(tmp_path / "data" / "train-00001-of-00002.parquet", data.subset(np.arange(20, 30)), group=4)
    lazy = load_dataset(tmp_path, stream=True)
    assert isinstance(lazy.images, LazyImages)
    order = np.random.default_rng(0).permutation(30)
    assert np.array_equal(lazy.images[order], data.images[order])


def test_only_a_bounded_number_of_row_groups_is_kept(tmp_path, make_dataset, monkeypatch):
    from ulfast.data.readers import parquet

    monkeypatch.setattr(parquet, "CACHE_BYTES", 3000)
    data = make_dataset(40, 16)
    write(tmp_path / "x.parquet", data, group=2)
    tables = []
    real = parquet._Table
    monkeypatch.setattr(parquet, "_Table", lambda *a: tables.append(real(*a)) or tables[-1])
    lazy = load_dataset(tmp_path / "x.parquet", stream=True)
    assert np.array_equal(lazy.images[:], data.images)
    assert tables[0]._held <= 3000
    assert 0 < len(tables[0]._groups) < 20


def test_what_is_written_has_the_features_of_datasets(tmp_path, make_dataset):
    train, test = make_dataset(25, 16), make_dataset(6, 16, seed=1, split="test")
    export_dataset(train, tmp_path / "out", "parquet", test=test, shard_size=10)
    names = [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert sorted(file.name for file in (tmp_path / "out" / "data").iterdir()) == [
        "test-00000-of-00001.parquet",
        *names,
    ]
    schema = pq.read_schema(tmp_path / "out" / "data" / names[0])
    assert schema.field("image").type == IMAGE
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {
        "image": {"_type": "Image"},
        "label": {"names": ["class0", "class1", "class2"], "_type": "ClassLabel"},
    }
    for split, data in (("train", train), ("test", test)):
        got = load_dataset(tmp_path / "out", split=split)
        assert np.array_equal(got.images, data.images)
        assert got.classes == data.classes
        assert np.array_equal(got.labels, data.labels)


def test_datasets_opens_what_is_written(tmp_path, make_dataset):
    datasets = pytest.importorskip("datasets")
    data = make_dataset(12, 16)
    export_dataset(data, tmp_path / "out", "parquet", shard_size=5)
    read = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.features["label"].names == list(data.classes)
    assert np.array_equal(np.stack([np.asarray(row["image"]) for row in read]), data.images)


def test_damage_is_named(tmp_path, make_dataset):
    data = make_dataset(9, 16)
    write(tmp_path / "x.parquet", data, null=4)
    with pytest.raises(InputError, match=r"x\.parquet, row 4 of group 0 has no image"):
        load_dataset(tmp_path / "x.parquet")
    assert load_dataset(tmp_path / "x.parquet", skip_damaged=True).notes == {"damaged images, left out": 1}
    whole = (tmp_path / "x.parquet").read_bytes()
    for cut in (whole[: len(whole) // 2], b"PAR1", b""):
        (tmp_path / "cut.parquet").write_bytes(cut)
        with pytest.raises(InputError, match=r"cut\.parquet cannot be read"):
            load_dataset(tmp_path / "cut.parquet")
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"no column of images.*--input-key"):
        load_dataset(tmp_path / "none.parquet")


def test_more_rows_than_bytes_take_no_memory(tmp_path):
    rows = 200_000
    table = pa.table({"image": pa.nulls(rows, IMAGE), "label": np.zeros(rows, np.int64)})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd", row_group_size=rows)
    assert (tmp_path / "x.parquet").stat().st_size < rows
    with pytest.raises(InputError, match="200,000 rows, more than it has bytes"):
        load_dataset(tmp_path / "x.parquet")


def test_without_pyarrow_the_extra_is_named(tmp_path, make_dataset, monkeypatch):
    write(tmp_path / "x.parquet", make_dataset(9, 16))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"pip install 'ulfast\[parquet\]'"):
        load_dataset(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"pip install 'ulfast\[parquet\]'"):
        export_dataset(make_dataset(9, 16), tmp_path / "out", "parquet")
