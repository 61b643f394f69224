from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast.data import Augment, MemoryLoader, channel_statistics, load_dataset, write_dataset
from ulfast.data.loaders import projected
from ulfast.data.loaders.augment import resized_crop
from ulfast.data.loaders.projected import ProjectedLoader, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.errors import InputError
from ulfast.ops import reference


def gather(loader):
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_plain_batches_are_the_normalised_images(make_dataset):
    data = make_dataset(50)
    loader = MemoryLoader(data, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert len(loader) == 4
    x, y = gather(loader)
    want = (torch.from_numpy(data.images) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(x, want.permute(0, 3, 1, 2))
    assert next(iter(loader))[0].is_contiguous(memory_format=torch.channels_last)
    assert y.tolist() == data.labels.tolist()


def test_statistics_are_exact(make_dataset):
    data = make_dataset(50)
    mean, std = channel_statistics(data)
    pixels = data.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-10)
    x, _ = gather(MemoryLoader(data, 50))
    assert x.mean((0, 2, 3)).abs().max() < 1e-5
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-3


@settings(deadline=None, max_examples=25)
@given(
    padding=st.integers(0, 5),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 100),
    batch=st.integers(1, 40),
    rank=st.integers(0, 4),
)
def test_augmentation_equals_its_plain_form(make_dataset, padding, flip, channels, seed, epoch, batch, rank):
    data = make_dataset(37, 11, channels)
    d = 11 * 11 * channels
    basis = torch.linalg.qr(torch.randn(d, 4, generator=torch.Generator().manual_seed(1)))[0].T[:rank].contiguous()
    augment = Augment(padding, flip)
    options = {"basis": basis if rank else None, "augment": augment, "shuffle": True, "seed": seed}
    loader = MemoryLoader(data, batch, mean=(0.5,) * channels, std=(0.25,) * channels, **options)
    loader.set_epoch(epoch)
    x, y = gather(loader)
    shift, flipped = augment.draw(37, seed, epoch)
    order = torch.randperm(37, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63)))
    half = torch.full((channels,), 0.5)
    want = reference.ingest(
        torch.from_numpy(data.images),
        basis if rank else None,
        half,
        half / 2,
        torch.float32,
        shift=shift,
        flip=flipped,
    )
    torch.testing.assert_close(x, want[order], atol=2e-5, rtol=1e-5)
    assert y.tolist() == data.labels[order.numpy()].tolist()
    if padding:
        assert -padding <= int(shift.min())
        assert int(shift.max()) <= padding


def test_draws_cover_their_range_evenly():
    shift, flip = Augment(2, True).draw(20_000, 3, 5)
    counts = torch.bincount((shift[:, 0] + 2).long(), minlength=5)
    assert (counts / 20_000 - 0.2).abs().max() < 0.02
    assert abs(float(flip.float().mean()) - 0.5) < 0.02
    again, _ = Augment(2, True).draw(20_000, 3, 6)
    assert not torch.equal(shift, again)


def test_epochs_and_seeds_differ_and_repeat(make_dataset):
    data = make_dataset(50)

    def one(seed, epoch):
        loader = MemoryLoader(data, 16, augment=Augment(), shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        return gather(loader)[0]

    assert torch.equal(one(1, 2), one(1, 2))
    assert not torch.equal(one(1, 2), one(1, 3))
    assert not torch.equal(one(1, 2), one(2, 2))


def test_drop_last_and_dtype(make_dataset):
    loader = MemoryLoader(make_dataset(50), 16, drop_last=True, dtype=torch.bfloat16)
    x, y = gather(loader)
    assert (len(loader), loader.images_per_epoch, len(y)) == (3, 48, 48)
    assert x.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="batch_size"):
        MemoryLoader(make_dataset(50), 0)


def test_a_memory_mapped_set_gives_the_same(tmp_path, make_dataset):
    data = make_dataset(50)
    write_dataset(tmp_path / "out", data)
    mapped = load_dataset(tmp_path / "out")
    options = {"augment": Augment(), "shuffle": True, "seed": 4}
    assert torch.equal(gather(MemoryLoader(data, 7, **options))[0], gather(MemoryLoader(mapped, 7, **options))[0])


def test_leaving_early_leaves_nothing_running(make_dataset):
    import threading

    before = threading.active_count()
    for _ in range(20):
        for _ in MemoryLoader(make_dataset(50), 4, shuffle=True):
            break
    assert threading.active_count() == before


def test_a_random_resized_crop_is_the_enlarged_slice():
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2)
    torch.testing.assert_close(resized_crop(x, whole), x, atol=1e-5, rtol=0)
    left = torch.tensor([[0.0, 0.25, 0.5, 0.5], [0.5, 0.0, 0.5, 1.0]])  # 6 x 4 pixels from row 2, and the right half
    got = resized_crop(x, left)
    blown = torch.nn.functional.interpolate(x[:1, :, 2:6, :6], (8, 12), mode="bilinear")
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # at its border it mixes in what lies beside
    torch.testing.assert_close(got[:1][inner], blown[inner], atol=1e-5, rtol=0)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert resized_crop(x.bfloat16(), left).dtype == torch.bfloat16


def test_boxes_are_inside_and_of_the_requested_size():
    boxes = Augment(area=(0.25, 0.5)).boxes(5000, (20, 30), 3, 1)
    left, top, w, h = boxes.double().unbind(1)
    assert min(left.min(), top.min()) >= 0
    assert max((left + w).max(), (top + h).max()) <= 1 + 1e-6
    ratio, area = w * 30 / (h * 20), w * h
    cut = (w == 1) | (h == 1)
    assert not cut.all()
    assert 0.749 < ratio[~cut].min() < ratio[~cut].max() < 1.334
    assert 0.249 < area[~cut].min() < 0.27
    assert 0.47 < area[~cut].max() < 0.501
    assert min(left.std(), top.std()) > 0.05
    assert not torch.equal(boxes, Augment(area=(0.25, 0.5)).boxes(5000, (20, 30), 3, 2))
    with pytest.raises(ValueError, match="two shares"):
        Augment(area=(0.5, 0.25))


def test_resized_crops_do_not_depend_on_the_batches(make_dataset):
    data = make_dataset(30)
    options = {"augment": Augment(0, True, (0.3, 1.0)), "seed": 2, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    one, other = (gather(MemoryLoader(data, batch, **options))[0] for batch in (30, 7))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    plain = gather(MemoryLoader(data, 30, **{**options, "augment": Augment(0, True)}))[0]
    boxes = options["augment"].boxes(30, (12, 12), 2, 0)
    torch.testing.assert_close(one, resized_crop(plain, boxes))
    assert (one - plain).abs().mean() > 0.1


def _projected(make_dataset, monkeypatch):
    monkeypatch.setattr(projected, "SHARD_BYTES", 20 * 2 * 432)  # 20 images of 12 x 12 x 3
    basis = torch.linalg.qr(torch.randn(432, 3, generator=torch.Generator().manual_seed(1)))[0].T.contiguous()
    return make_dataset(50), basis


def test_a_projected_set_on_disk_trains_identically(tmp_path, make_dataset, monkeypatch):
    data, basis = _projected(make_dataset, monkeypatch)
    write_projected(tmp_path / "p", data, Removal(basis))
    options = {"augment": Augment(), "shuffle": True, "seed": 4, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    there = gather(ProjectedLoader(tmp_path / "p", data, 7, **options))[0]
    direct = gather(MemoryLoader(data, 7, basis=basis, **options))[0]
    torch.testing.assert_close(there, direct, atol=0.005, rtol=0)
    shards = [np.load(file) for file in sorted((tmp_path / "p").glob("images-*.npy"))]
    assert [(shard.dtype, len(shard)) for shard in shards] == [(np.float16, 20), (np.float16, 20), (np.float16, 10)]


def test_an_interrupted_projected_set_resumes_and_a_complete_one_is_kept(tmp_path, make_dataset, monkeypatch):
    data, basis = _projected(make_dataset, monkeypatch)

    def stop(stage, done, total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_projected(tmp_path / "p", data, Removal(basis), progress=stop)
    first = tmp_path / ".p.part" / "images-00000.npy"
    kept = first.stat().st_ino
    assert not (tmp_path / "p").exists()
    write_projected(tmp_path / "p", data, Removal(basis))
    files = {file.name: file.stat().st_ino for file in (tmp_path / "p").iterdir()}
    assert files["images-00000.npy"] == kept
    assert not (tmp_path / ".p.part").exists()
    write_projected(tmp_path / "p", data, Removal(basis))
    assert {file.name: file.stat().st_ino for file in (tmp_path / "p").iterdir()} == files
    write_projected(tmp_path / "p", data, Removal(basis[:2]))  # another projection
    other = np.load(tmp_path / "p" / "images-00000.npy").reshape(20, -1).astype(np.float32)
    assert np.abs(other @ basis[:2].T.numpy()).max() < 0.02 < np.abs(other @ basis[2].numpy()).max()


def test_a_projected_set_with_a_missing_shard_says_so(tmp_path, make_dataset, monkeypatch):
    data, basis = _projected(make_dataset, monkeypatch)
    write_projected(tmp_path / "p", data, Removal(basis))
    (tmp_path / "p" / "images-00001.npy").unlink()
    with pytest.raises(InputError, match=r"images-00001\.npy"):
        ProjectedLoader(tmp_path / "p", data, 7)
