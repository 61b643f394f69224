"""FFCV behind our loader: equal to `MemoryLoader`, with a guard against each of FFCV's faults."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from ulfast import InputError
from ulfast.data import Augment, MemoryLoader
from ulfast.data.beton import FFCVLoader, format as fmt, open_beton, write_beton

if importlib.util.find_spec("ffcv") is None:
    pytest.skip("FFCV is not installed: tools/ffcv.sh installs it", allow_module_level=True)

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def gather(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def basis_of(d, k=3):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(1)))[0].T.contiguous()


@pytest.fixture(scope="module")
def raw(tmp_path_factory, make_dataset):
    path = tmp_path_factory.mktemp("raw") / "x.beton"
    data = make_dataset(50)
    write_beton(path, data)
    return path, data


@pytest.fixture(scope="module")
def raw_loader(raw):
    """One compiled loader for the tests that only iterate."""
    return FFCVLoader(raw[0], 4, **STATISTICS)


@pytest.mark.slow
def test_importing_keeps_torch_s_threads(raw):
    code = """
import torch
torch.set_num_threads(3)
from ulfast.data.beton import engine
engine.load()
assert torch.get_num_threads() == 3, torch.get_num_threads()
from ulfast.data.beton import FFCVLoader
import sys
loader = FFCVLoader(sys.argv[1], 16, mean=(0.5,) * 3, std=(0.2,) * 3, threads=1)
assert torch.get_num_threads() == 3, torch.get_num_threads()
assert sum(len(y) for _, y in loader) == 50
assert torch.get_num_threads() == 3, torch.get_num_threads()
"""
    done = subprocess.run([sys.executable, "-c", code, str(raw[0])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_batches_are_those_of_the_memory_loader(tmp_path, make_dataset, mode):
    from ulfast.data import load_dataset

    data = make_dataset(50, 16)
    write_beton(tmp_path / "x.beton", data, mode=mode, quality=95)
    options = {"basis": basis_of(768), "augment": Augment(), "shuffle": True, "seed": 4, **STATISTICS}
    ours, theirs = (
        make(source, 7, drop_last=True, **options)
        for make, source in ((MemoryLoader, load_dataset(tmp_path / "x.beton")), (FFCVLoader, tmp_path / "x.beton"))
    )
    assert (len(ours), ours.images_per_epoch) == (len(theirs), theirs.images_per_epoch) == (7, 49)
    for epoch in (0, 3):
        ours.set_epoch(epoch), theirs.set_epoch(epoch)
        (x, y), (a, b) = gather(ours), gather(theirs)
        assert torch.equal(y, b)
        if mode == "raw":
            assert torch.equal(x, a)
        else:  # FFCV takes libjpeg's quick transform, which is off by a few levels
            assert (x - a).abs().mean() < 0.02
    assert next(iter(theirs))[0].is_contiguous(memory_format=torch.channels_last)


def test_resized_crops_are_those_of_the_memory_loader(raw):
    path, data = raw
    options = {
        "basis": basis_of(432),
        "augment": Augment(0, True, (0.3, 1.0)),
        "shuffle": True,
        "seed": 4,
        **STATISTICS,
    }
    (x, y), (want, labels) = gather(FFCVLoader(path, 8, **options)), gather(MemoryLoader(data, 8, **options))
    assert torch.equal(y, labels)
    torch.testing.assert_close(x, want, atol=1e-5, rtol=0)


def test_classwise_projection_and_subset(raw):
    path, data = raw
    bases = torch.stack([basis_of(432, 4)[:2], basis_of(432, 4)[2:], basis_of(432, 4)[1:3]])
    rows = np.arange(49, 9, -2)
    options = {"basis": bases, "augment": Augment(2), "shuffle": True, "seed": 1, **STATISTICS}
    x, y = gather(FFCVLoader(path, 8, indices=rows, **options))
    want, labels = gather(MemoryLoader(data.subset(rows), 8, **options))
    assert torch.equal(y, labels)
    assert torch.equal(x, want)


@pytest.mark.slow
def test_centre_crop_of_images_of_several_sizes(tmp_path):
    """A file from FFCV's own writer, without a manifest: 224 of 256 of the shorter side."""
    code = """
import sys, numpy as np
from ulfast.data.beton import engine
engine.load()
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
def image(i):
    rng = np.random.default_rng(i)
    return np.kron(rng.integers(0, 256, (8 + i % 3, 8 + i % 2, 3)), np.ones((16, 16, 1))).astype(np.uint8)
writer = DatasetWriter(sys.argv[1], {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()},
                       num_workers=1)
writer.from_indexed_dataset([(image(i), i % 3) for i in range(20)])
"""
    path = tmp_path / "theirs.beton"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True)
    beton = open_beton(path)
    assert (beton.image_shape, beton.crc, beton.labels.tolist()) == (None, None, [i % 3 for i in range(20)])
    with pytest.raises(InputError, match="several sizes"):
        FFCVLoader(path, 8, **STATISTICS)
    x, _ = gather(FFCVLoader(path, 8, size=56, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert x.shape == (20, 3, 56, 56)
    for i in (0, 5, 10):
        image = beton.decode(i)
        side = int(224 / 256 * min(image.shape[:2]))
        top, left = ((s - side) // 2 for s in image.shape[:2])
        middle = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None] / 255
        want = torch.nn.functional.adaptive_avg_pool2d(middle, 56)[0]
        assert (x[i] - want).abs().mean() < 0.05


def test_batches_may_be_kept(raw, raw_loader):
    kept = [x for x, _ in raw_loader]  # 13 batches, more than FFCV has buffers
    x, _ = gather(MemoryLoader(raw[1], 4, **STATISTICS))
    assert torch.equal(torch.cat(kept), x)


def test_leaving_early_two_hundred_times_leaves_no_thread(raw_loader):
    list(raw_loader)  # numba's own threads are there from now on
    before = threading.active_count(), len(os.listdir("/proc/self/task")), resident()
    for _ in range(200):
        for _ in raw_loader:
            break
    assert threading.active_count() == before[0]
    # The system clears away a pass's OpenMP helpers a moment after the pass.
    assert len(os.listdir("/proc/self/task")) <= before[1] + 2 * len(os.sched_getaffinity(0))
    assert resident() - before[2] < 30 << 20


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until_error(loader, seen):
    for _ in loader:
        seen.append(1)


def test_an_error_in_the_pipeline_is_the_caller_s(raw_loader, monkeypatch):
    from ulfast.data.beton.loader import _pieces

    epoch, seen = _pieces().epoch, []
    good = epoch.run_pipeline

    def bad(self, number, *rest):
        if number == 2:
            raise ArithmeticError("third batch")
        return good(self, number, *rest)

    monkeypatch.setattr(epoch, "run_pipeline", bad)
    before = threading.active_count()
    with pytest.raises(ArithmeticError, match="third batch"):
        until_error(raw_loader, seen)
    assert len(seen) == 2
    assert threading.active_count() == before


def test_two_loaders_at_once(raw):
    path, data = raw
    loaders = [FFCVLoader(path, 8, **STATISTICS) for _ in range(2)]
    first, second = (iter(loader) for loader in loaders)
    x, _ = gather(MemoryLoader(data, 8, **STATISTICS))
    got = [[], []]
    for a, b in zip(first, second, strict=True):
        got[0].append(a[0])
        got[1].append(b[0])
    assert torch.equal(torch.cat(got[0]), x)
    assert torch.equal(torch.cat(got[1]), x)


@pytest.mark.parametrize(("mode", "manifest"), [("raw", True), ("jpeg", True), ("jpeg", False)])
def test_a_damaged_image_is_an_error_not_a_batch(tmp_path, make_dataset, mode, manifest):
    path = tmp_path / "x.beton"
    write_beton(path, make_dataset(20, 16), mode=mode)
    beton = open_beton(path)
    with path.open("r+b") as file:
        file.seek(int(beton.ptr[13]) + int(beton.size[13]) // 2)
        file.write(bytes(int(beton.size[13]) // 2))
    if not manifest:
        fmt.manifest_path(path).unlink()
    loader = FFCVLoader(path, 5, **STATISTICS)
    seen = []
    with pytest.raises(InputError, match="image 13 is damaged"):
        until_error(loader, seen)
    assert len(seen) == 2


def test_a_cut_file_never_reaches_ffcv(tmp_path, make_dataset):
    path = tmp_path / "x.beton"
    write_beton(path, make_dataset(20))
    fmt.manifest_path(path).unlink()
    size = path.stat().st_size
    for cut in (20, 1000, 2300, size - 20 * 24, size - 24):
        os.truncate(path, cut)
        with pytest.raises(InputError, match="write it again"):
            FFCVLoader(path, 5, **STATISTICS)
        path.unlink()  # without its manifest it is not ulfast's, and not replaced
        write_beton(path, make_dataset(20))
        fmt.manifest_path(path).unlink()


def test_indices_and_sizes_are_checked(raw):
    for indices in ([], [50], [-1], [1, 1]):
        with pytest.raises(InputError, match="indices"):
            FFCVLoader(raw[0], 4, indices=np.array(indices, int), **STATISTICS)
    with pytest.raises(ValueError, match="batch_size"):
        FFCVLoader(raw[0], 0, **STATISTICS)


def test_projection_in_a_foreign_pipeline(raw):
    path, data = raw
    from ulfast.data.beton.loader import ffcv_project

    basis = basis_of(432)
    operation = ffcv_project(basis)
    threads = torch.get_num_threads()
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    loader = Loader(
        str(path),
        batch_size=10,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor(), operation]},
    )
    kept = [x for x, _ in loader]
    torch.set_num_threads(threads)
    from ulfast import ops

    want = ops.project(torch.from_numpy(data.images), basis)
    assert torch.equal(torch.cat(kept), want)
