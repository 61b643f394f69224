"""Sets that do not fit into memory: decoded on demand, ahead of use, in bounded memory, with nothing left running."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
import torch

from ulfast import InputError, fit_basis
from ulfast.data import Augment, MemoryLoader, load_dataset, write_dataset
from ulfast.data.beton.format import Beton
from ulfast.data.dataset import Dataset
from ulfast.data.export import export_dataset
from ulfast.data.lazy import LazyImages, prefetch, streams
from ulfast.data.loaders.removal import Removal
from ulfast.data.readers.encoded import Encoded
from ulfast.projection.basis import Basis
from ulfast.projection.orthonormal import gram, orthonormal_rows


@pytest.fixture
def folder(tmp_path, make_dataset):
    """A JPEG folder of 60 images in 3 classes."""
    import simplejpeg

    data = make_dataset(60, 24)
    for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = tmp_path / "jpegs" / "train" / data.classes[label] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(simplejpeg.encode_jpeg(image, 90))
    return tmp_path / "jpegs"


def gather(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_it_is_indexed_like_an_array(folder):
    whole, lazy = load_dataset(folder).images, load_dataset(folder, stream=True).images
    for key in (3, -1, slice(2, 40, 5), [4, 1, 1], np.array([[1, 2, 3], [7, 5, 9]]), whole[:, 0, 0, 0] > 100, []):
        picked = lazy[np.array(key, int) if isinstance(key, list) else key]
        np.testing.assert_array_equal(picked, whole[np.array(key, int) if isinstance(key, list) else key])


@pytest.mark.parametrize("layout", ["imagefolder", "wds", "parquet", "beton"])
def test_only_the_images_that_a_limit_asks_for_are_decoded(tmp_path, make_dataset, monkeypatch, layout):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    place = tmp_path / {"beton": "x.beton"}.get(layout, "x")
    export_dataset(make_dataset(60, 24), place, layout, test=make_dataset(10, 24, split="test"), shard_size=20)
    expected = load_dataset(place).balanced(12, 3)
    decoded = []
    for owner in (Encoded, Beton):
        decode = owner.decode
        monkeypatch.setattr(owner, "decode", lambda *a, f=decode, **k: decoded.append(1) or f(*a, **k))
    found = load_dataset(place, limit=12, seed=3)
    assert len(decoded) in (12, 13)  # once more for its size
    assert found == expected
    assert not isinstance(found.images, LazyImages)
    assert load_dataset(place, limit=12, seed=3, stream=True).checksum() == expected.checksum()
    assert len(load_dataset(place, split="test", limit=12)) == 10
    with pytest.raises(InputError, match="a limit of 2 is less than one image for each of 3 classes"):
        load_dataset(place, limit=2)


def test_the_limit_is_a_setting(monkeypatch):
    assert not streams(1000, (224, 224, 3), None)
    monkeypatch.setenv("ULFAST_STREAM_BYTES", "1000")
    assert streams(1000, (224, 224, 3), None)
    assert not streams(1000, (224, 224, 3), False)
    monkeypatch.setenv("ULFAST_STREAM_BYTES", "4GiB")
    with pytest.raises(InputError, match="give a number of bytes"):
        streams(1, (8, 8, 3), None)


def test_a_streamed_folder_is_the_folder(folder, tmp_path):
    whole, lazy = load_dataset(folder), load_dataset(folder, stream=True)
    assert isinstance(lazy.images, LazyImages)
    assert lazy.checksum() == whole.checksum()
    assert (lazy.images[7] == whole.images[7]).all()
    assert (lazy.images[[3, 59, 3]] == whole.images[[3, 59, 3]]).all()
    part = lazy.balanced(9, 1)
    assert isinstance(part.images, LazyImages)
    assert part.checksum() == whole.balanced(9, 1).checksum()
    write_dataset(tmp_path / "out", lazy)
    assert load_dataset(tmp_path / "out").checksum() == whole.checksum()


@pytest.mark.parametrize("batch", [1, 7, 60, 100])
def test_batches_are_those_of_memory(folder, batch):
    basis = torch.linalg.qr(torch.randn(1728, 3, generator=torch.Generator().manual_seed(1)))[0].T.contiguous()
    options = {"basis": basis, "augment": Augment(), "shuffle": True, "seed": 3}
    ours, want = (gather(MemoryLoader(load_dataset(folder, stream=s), batch, **options)) for s in (True, False))
    assert torch.equal(ours[0], want[0])
    assert torch.equal(ours[1], want[1])
    ours, want = (
        gather(MemoryLoader(load_dataset(folder, stream=s), batch, removal=Removal(transform=torch.sqrt), shuffle=True))
        for s in (True, False)
    )
    assert torch.equal(ours[0], want[0])


def test_an_error_or_leaving_early_ends_the_threads(folder):
    lazy = load_dataset(folder, stream=True)
    before = threading.active_count()
    for _ in range(50):
        for _ in MemoryLoader(lazy, 4, mean=(0.5,) * 3, std=(0.2,) * 3, shuffle=True):
            break
    assert threading.active_count() == before
    next(iter(folder.glob("train/class1/*7.jpg"))).write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        gather(MemoryLoader(lazy, 4, mean=(0.5,) * 3, std=(0.2,) * 3, shuffle=True))
    assert threading.active_count() == before


def test_a_missing_file_and_another_size_are_named(folder):
    import simplejpeg

    lazy = load_dataset(folder, stream=True)
    file = next(iter(folder.glob("train/class2/*.jpg")))
    file.write_bytes(simplejpeg.encode_jpeg(np.zeros((30, 24, 3), np.uint8)))
    with pytest.raises(InputError, match="--resize"):
        lazy.images[:]
    file.unlink()
    with pytest.raises(InputError, match=file.name):
        lazy.images[:]


def test_prefetch_takes_only_the_memory_of_its_buffers():
    started = []

    def read(i, out):
        started.append(i)
        out.fill(i % 251)

    images = LazyImages((100_000, 32, 32, 3), read)
    batches = np.split(np.arange(6400), 100)
    tracemalloc.start()
    for number, block in enumerate(prefetch(images, batches)):
        assert (block[:, 0, 0, 0] == batches[number] % 251).all()
        assert len(started) <= 64 * (number + 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 64 * 3072 + (400 << 10)


def test_the_fit_of_a_stream_is_the_fit(folder):
    whole, lazy = (load_dataset(folder, stream=s) for s in (False, True))
    for options in ({"steps": 40, "batch_size": 16}, {"epochs": 2, "batch_size": 25, "init": "torch"}, {"rank": 4}):
        options = {"steps": 30, **options} if "epochs" not in options else options
        a, b = (fit_basis(data, **options) for data in (whole, lazy))
        assert torch.equal(a.rows, b.rows)
        assert a.metadata["train_accuracy"] == b.metadata["train_accuracy"]


def test_orthonormal_rows_span_what_qr_spans():
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(12, 700, generator=generator) @ torch.diag(torch.logspace(0, -3, 700))
    weights -= weights.mean(0)
    rows = orthonormal_rows(weights, 1e-5)
    assert rows.shape == (11, 700)
    assert (gram(rows) - torch.eye(11, dtype=torch.float64)).abs().max() < 1e-7
    want = torch.linalg.svd(weights.double(), full_matrices=False)[2][:11]
    assert (rows.double().T @ rows.double() - want.T @ want).abs().max() < 1e-6


def test_a_nearly_dependent_set_stays_orthonormal():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(1, 5000, generator=generator) + 1e-4 * torch.randn(40, 5000, generator=generator)
    rows = orthonormal_rows(weights, 1e-5)
    assert len(rows) == 40
    assert (gram(rows) - torch.eye(40, dtype=torch.float64)).abs().max() < 2e-7


def test_large_weights_take_the_same_path(monkeypatch):
    weights = torch.randn(5, 192, generator=torch.Generator().manual_seed(4))
    weights[2] = 0
    small = Basis.from_weights(weights, (8, 8, 3), {})
    monkeypatch.setattr("ulfast.projection.basis.LARGE", 10)
    large = Basis.from_weights(weights, (8, 8, 3), {})
    assert small.rank == large.rank == 4
    torch.testing.assert_close(small.rows.T @ small.rows, large.rows.T @ large.rows, atol=1e-6, rtol=0)
    assert large.metadata["orthogonality_error"] < 1e-6


def test_a_data_set_of_lazy_images_is_checked():
    images = LazyImages((4, 8, 8, 3), lambda i, out: out.fill(i))
    with pytest.raises(InputError, match="4 images but labels"):
        Dataset(images, np.zeros(3, np.int64), ("a", "b"))
