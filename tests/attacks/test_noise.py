"""Noise along the class means: its covariance, its draws, and that every loader adds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import ulfast
from ulfast import InputError, MeanNoise, fit_mean_noise
from ulfast.attacks import Context, Plan, get_attack
from ulfast.attacks.snapshots import Examples
from ulfast.data import Augment, MemoryLoader
from ulfast.data.lazy import LazyImages
from ulfast.data.loaders.projected import ProjectedLoader, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.ops import reference
from ulfast.parameters import with_parameters
from ulfast.projection.patches import PatchProjection, fit_patches
from ulfast.training import Recipe

STATISTICS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def means_of(data):
    """The classes' means in units of [0, 1], minus their mean, (c, d) float64."""
    flat = data.images.reshape(len(data), -1) / 255
    means = np.stack([flat[data.labels == c].mean(0) for c in np.unique(data.labels)])
    return means - means.mean(0)


def random_basis(d, k=4):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(1)))[0].T.contiguous()


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_covariance_is_that_of_the_class_means(make_dataset, scale):
    data = make_dataset(60, 8)
    rows, means = fit_mean_noise(data, scale), means_of(data)
    assert rows.shape == (data.num_classes - 1, 8 * 8 * 3)
    np.testing.assert_allclose(rows.T @ rows, scale**2 * means.T @ means / len(means), atol=1e-6)
    products = rows @ rows.T
    assert (products - products.diag().diag()).abs().max() < 1e-5 * products.max()
    assert (products.diag().diff() <= 0).all()


def test_no_filter_tells_the_means_apart_by_more_than_the_noise(make_dataset):
    """For every filter, the deviation of the classes' mean responses is 1 / scale of the noise's."""
    data = make_dataset(60, 8)
    rows, means = fit_mean_noise(data, 3.0), torch.from_numpy(means_of(data)).float()
    filters = torch.cat([torch.randn(50, 192, generator=torch.Generator().manual_seed(0)), means, rows])
    answers, noise = (filters @ means.T).square().mean(1).sqrt(), (filters @ rows.T).norm(dim=1)
    torch.testing.assert_close(answers, noise / 3, rtol=1e-3, atol=1e-5)


def test_classes_count_the_same_and_empty_ones_do_not(make_dataset):
    data = make_dataset(60, 8)
    kept = np.flatnonzero((data.labels != 1) & ((data.labels != 0) | (np.arange(60) < 30)))
    some = ulfast.Dataset(data.images[kept], data.labels[kept], data.classes, "some")
    rows, means = fit_mean_noise(some, 1.0), means_of(some)
    np.testing.assert_allclose(rows.T @ rows, means.T @ means / len(means), atol=1e-6)


def test_equal_means_give_no_noise(make_dataset):
    data = make_dataset(20, 8)
    same = ulfast.Dataset(np.repeat(data.images[:1], 20, 0), data.labels, data.classes, "same")
    rows = fit_mean_noise(same)
    assert rows.abs().max() < 1e-6  # rounding of the mean
    batch, _ = next(iter(MemoryLoader(same, 5, noise=rows, **STATISTICS)))
    torch.testing.assert_close(batch, next(iter(MemoryLoader(same, 5, **STATISTICS)))[0])


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_wrong_scales(make_dataset, scale):
    with pytest.raises(InputError, match="must be 0 or more"):
        fit_mean_noise(make_dataset(20, 8), scale)


def test_the_scale_follows_the_largest_remaining_share():
    rows = torch.eye(4)[:3]
    assert ulfast.noise_scale(rows) == ulfast.noise_scale(rows[:0]) == 1
    assert ulfast.noise_scale(rows * torch.tensor([1, 0.5, 1.0])[:, None]) == 1.75
    assert ulfast.noise_scale(rows * 0) == 2
    assert ulfast.noise_scale(rows * 1.001) == 1  # rounding does not go below


def want(data, rows, basis, augment, epoch, seed=3, change=None):
    """All images of a pass by the readable operators: project, change, add noise by place, augment."""
    n = len(data)
    order = torch.randperm(n, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63)))
    x = reference.project(torch.from_numpy(data.images[order.numpy()]), basis)
    if change is not None:
        x = change(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    weights = ulfast.ops.philox_normal(seed, ulfast.ops.philox.STREAM_NOISE, epoch << 40, n, len(rows))
    x = x + (weights @ rows).view_as(x)
    shift, flip = augment.draw(n, seed, epoch)
    mean, std = (torch.tensor(STATISTICS[name]) for name in ("mean", "std"))
    return reference.augment(x, mean, std, torch.float32, shift[order], flip[order])


@pytest.mark.parametrize("kind", ["memory", "lazy", "kept", "fresh", "projected"])
def test_every_loader_adds_the_same_noise(make_dataset, tmp_path, monkeypatch, kind):
    data, augment = make_dataset(37, 16), Augment(2)
    rows, basis = fit_mean_noise(data), random_basis(16 * 16 * 3)
    options = {"augment": augment, "shuffle": True, "seed": 3, **STATISTICS}
    change = PatchProjection(fit_patches(data, patch=3, rank=2))
    if kind == "memory":
        change, loader = None, MemoryLoader(data, 8, basis=basis, noise=rows, **options)
    elif kind == "lazy":
        for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = tmp_path / "pngs" / f"class{label}" / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        lazy = ulfast.load_dataset(tmp_path / "pngs", stream=True)
        assert isinstance(lazy.images, LazyImages)
        data = ulfast.load_dataset(tmp_path / "pngs", stream=False)
        change, loader = None, MemoryLoader(lazy, 8, basis=basis, noise=rows, **options)
    elif kind == "projected":
        write_projected(tmp_path / "projected", data, Removal(basis, patches=change))
        loader = ProjectedLoader(tmp_path / "projected", data, 8, removal=Removal(noise=rows), **options)
    else:
        if kind == "fresh":
            monkeypatch.setattr("ulfast.data.loaders.memory.KEEP_BYTES", 0)
        loader = MemoryLoader(data, 8, removal=Removal(basis, change, noise=rows), **options)
    for epoch in (0, 5, 0):
        loader.set_epoch(epoch)
        got = torch.cat([x for x, _ in loader])
        rounding = 0 if kind in ("memory", "lazy", "fresh") else 0.003  # float16 pixels over the deviation
        torch.testing.assert_close(
            got, want(data, rows, basis, augment, epoch, change=change), atol=1e-5 + rounding, rtol=1e-5
        )


def test_draws_do_not_depend_on_batches_or_parts(make_dataset):
    data = make_dataset(50, 8)
    options = {"noise": fit_mean_noise(data), "seed": 1, "shuffle": True, "augment": Augment(1), **STATISTICS}
    whole = torch.cat([x for x, _ in MemoryLoader(data, 50, **options)])
    small = torch.cat([x for x, _ in MemoryLoader(data, 7, **options)])
    torch.testing.assert_close(small, whole)
    parts = [list(MemoryLoader(data, 7, part=(i, 3), **options)) for i in range(3)]
    joined = torch.cat([x for batch in zip(*parts, strict=True) for x, _ in batch])
    torch.testing.assert_close(joined, whole)


def test_the_module_adds_noise_only_in_training(make_dataset):
    data = make_dataset(60, 8)
    basis = random_basis(192)
    noise = MeanNoise(fit_mean_noise(data), basis)
    assert (noise.rows @ basis.T).abs().max() < 1e-6
    x = torch.rand(2000, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    added = (noise(x) - x).permute(0, 2, 3, 1).flatten(1)
    expected = noise.rows.T @ noise.rows
    assert ((added.T @ added) / 2000 - expected).norm() < 0.1 * expected.norm()
    assert (added @ basis.T).abs().max() < 1e-5
    assert noise(x.half()).dtype == torch.float16
    assert noise.eval()(x) is x
    assert set(noise.state_dict()) == {"rows"}
    with pytest.raises(ValueError, match="192 values per image"):
        noise.train()(torch.rand(2, 3, 9, 9))
    with pytest.raises(ValueError, match=r"must be \(k, d\)"):
        MeanNoise(torch.rand(3))


@pytest.mark.parametrize("name", ["mean-noise+orthogonal", "orthogonal+mean-noise"])
def test_with_a_projection_the_noise_has_nothing_of_what_is_removed(make_dataset, name):
    data = make_dataset(60, 8)
    plan = Plan(data, data, Recipe("test", 1, 8, "adamw", 1e-3, 0.0, "one-cycle", None))
    for step in get_attack(name)[1]:
        step.apply(plan, Context(0, torch.device("cpu")))
    basis, rows = plan.removal.rows, plan.removal.settled(data.image_shape).noise
    assert (rows @ basis.T).abs().max() < 1e-5
    torch.testing.assert_close(rows, reference.project(fit_mean_noise(data), basis))


def test_noise_goes_through_the_patch_projection(make_dataset):
    data = make_dataset(60, 16)
    noise, projection = fit_mean_noise(data), PatchProjection(fit_patches(data, patch=3, rank=2))
    want = projection(noise.view(-1, 16, 16, 3).permute(0, 3, 1, 2))
    settled = Removal(patches=projection, noise=noise).settled(data.image_shape)
    torch.testing.assert_close(settled.noise.view(-1, 16, 16, 3), want.permute(0, 2, 3, 1))


def test_the_attack_and_its_scale(make_dataset, tmp_path):
    data = make_dataset(60, 16)
    runs = {
        scale: ulfast.attack(
            data, test=data, method="mean-noise", noise_scale=scale, epochs=1, out=tmp_path / str(scale)
        )
        for scale in (0.0, 2.0, 4.0)
    }
    seen = {scale: Examples.load(tmp_path / str(scale) / "examples.npz") for scale in runs}
    assert np.array_equal(seen[0.0].learned, seen[0.0].given)
    change = {scale: np.abs(s.learned.astype(float) - s.given).mean() for scale, s in seen.items()}
    assert 1.5 * change[2.0] < change[4.0] < 2.5 * change[2.0]
    plain = ulfast.attack(data, test=data, method="none", epochs=1)
    losses = {scale: run.history[0]["train_loss"] for scale, run in runs.items()}
    assert losses[0.0] == pytest.approx(plain.history[0]["train_loss"], rel=1e-4)
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    assert runs[4.0].notes["noise_norm"] == pytest.approx(2 * runs[2.0].notes["noise_norm"])
    with pytest.raises(InputError, match="noise_scale must be at least 0"):
        with_parameters(get_attack("mean-noise")[1][0], "mean-noise", {"noise_scale": -1.0})
    with pytest.raises(InputError, match="the noise fills what each class has lost"):
        get_attack("orthogonal-classwise+mean-noise")
