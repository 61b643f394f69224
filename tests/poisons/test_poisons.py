from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ulfast
from ulfast import InputError
from ulfast.data import DatasetWriter, load_dataset
from ulfast.poisons import POISONS, Poisoning, get_poison, perturbation, poison, write_poisoned
from ulfast.poisons.lsp import default_patch, vertices

QUICK = [name for name, plain in POISONS.items() if name != "file" and not plain.trains]


@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (12, 3, 3), (33, 3, 5), (64, 1, 4)])
def test_every_method_on_every_shape(make_dataset, method, size, channels, classes):
    clean = make_dataset(40, size, channels, classes)
    got = poison(clean, method, seed=3)
    assert got.images.shape == clean.images.shape
    assert got.images.dtype == np.uint8
    assert np.array_equal(got.labels, clean.labels)
    assert (got.images != clean.images).any(axis=(1, 2, 3)).all()
    assert got.manifest["method"] == method
    assert got.manifest["source"]["sha256"] == clean.checksum()
    assert got.checksum() == poison(clean, method, seed=3).checksum()
    if method not in ("ops", "pil"):  # ops draws nothing, pil the order of images that here fit one batch
        assert got.checksum() != poison(clean, method, seed=4).checksum()


@pytest.mark.parametrize("method", QUICK)
def test_an_image_does_not_depend_on_its_neighbours(make_dataset, method, monkeypatch):
    """Image i's perturbation depends on (seed, method, i) alone: the same in chunks of any size."""
    clean = make_dataset(40)
    whole = poison(clean, method, seed=1)
    monkeypatch.setattr("ulfast.poisons.run.CHUNK_BYTES", 7 * clean.images[0].nbytes)
    assert poison(clean, method, seed=1).checksum() == whole.checksum()


@pytest.mark.parametrize("method", ["regions-4", "regions-16", "cwrandom", "swrandom"])
def test_the_bound_holds_after_rounding(make_dataset, method):
    clean = make_dataset(40)
    for eps, levels in ((8 / 255, 8), (4 / 255, 4), (0.0, 0)):
        difference = poison(clean, method, eps=eps).images.astype(int) - clean.images
        assert np.abs(difference).max() <= levels
    if method.startswith("regions"):
        inside = (clean.images > 8) & (clean.images < 247)
        difference = poison(clean, method).images.astype(int) - clean.images
        assert (np.abs(difference[inside]) == 8).all()


def test_lsp_lies_on_the_ball_before_rounding(make_dataset):
    from ulfast import ops

    centroids, mixing = 10 * vertices(0, 3, 48), ops.philox_uniform(0, 2, 9, 3, 48 * 48).view(3, 48, 48) * 2 - 1
    labels = torch.arange(30) % 3
    delta = ops.perturb_lsp(labels, centroids, mixing, seed=0, first=0, size=(32, 32, 3), patch=8, norm=1.3)
    norms = delta.flatten(1).double().norm(dim=1)
    assert (norms - 1.3).abs().max() < 1e-5
    blocks = delta.view(30, 4, 8, 4, 8, 3)
    assert (blocks == blocks[:, :, :1, :, :1]).all()
    poisoned = poison(make_dataset(30, 32))
    assert poisoned.manifest["parameters"] == {"eps": pytest.approx(6 / 255 * math.sqrt(3072)), "patch": 8}
    assert poisoned.manifest["statistics"]["l2_mean"] == pytest.approx(1.304, abs=0.1)


def test_lsp_has_the_statistics_of_make_classification():
    """Latent points: the class's vertex plus a normal times U(-1, 1), so a variance of m/3 around +-10."""
    from ulfast import ops

    m, n = 48, 4000
    centroids = 10 * vertices(0, 2, m)
    mixing = ops.philox_uniform(0, ops.philox.STREAM_LSP_CLASS, 1 << 48, 2, m * m).view(2, m, m) * 2 - 1
    assert abs(float(mixing.mean())) < 0.02
    assert float(mixing.var()) == pytest.approx(1 / 3, rel=0.05)
    options = {"seed": 0, "first": 0, "size": (4, 4, 3), "patch": 1, "norm": 1.0}
    delta = ops.perturb_lsp(torch.zeros(n, dtype=torch.long), centroids, mixing, **options).flatten(1)
    latent_scale = math.sqrt(m * 100 + m * m / 3)  # expected norm of a latent point
    mean, spread = delta.mean(0) * latent_scale, delta.std(0) * latent_scale
    assert torch.equal(mean.sign(), centroids[0].sign())
    assert float(mean.abs().mean()) == pytest.approx(10, rel=0.05)
    assert float(spread.pow(2).mean()) == pytest.approx(m / 3, rel=0.1)


def test_lsp_is_linearly_separable():
    from sklearn.linear_model import LogisticRegression

    clean = load_dataset("sample", limit=2000)
    delta = perturbation(clean, poison(clean, "lsp")).flatten(1).numpy()
    model = LogisticRegression(max_iter=200).fit(delta, clean.labels)
    assert model.score(delta, clean.labels) >= 0.999
    images = clean.images.reshape(len(clean), -1) / 255
    weak = LogisticRegression(max_iter=50, C=1e-3).fit(images, clean.labels)  # so that it converges
    assert weak.score(images, clean.labels) < 0.6


def test_patch_sizes_and_vertices():
    assert [default_patch((s, s, 3)) for s in (1, 3, 8, 16, 32, 56, 64, 96, 224, 256)] == [
        1,
        1,
        2,
        4,
        8,
        8,
        16,
        16,
        32,
        64,
    ]
    v = vertices(0, 1000, 16)
    assert len({row.numpy().tobytes() for row in v}) == 1000
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(vertices(0, 10, 48), vertices(0, 20, 48)[:10])


def test_sample_wise_noise_differs_and_class_wise_does_not(make_dataset):
    clean = make_dataset(12)
    flat = np.full_like(clean.images, 128)
    gray = ulfast.Dataset(flat, clean.labels, clean.classes)
    by_class = poison(gray, "cwrandom").images.astype(int)
    assert (by_class[0] == by_class[3]).all()
    assert (by_class[0] != by_class[1]).any()
    by_image = poison(gray, "swrandom").images.astype(int)
    assert (by_image[0] != by_image[3]).any()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_rate_poisons_its_share_of_every_class(make_dataset, rate):
    clean = make_dataset(60)
    got = poison(clean, "lsp", rate=rate)
    touched = (got.images != clean.images).any(axis=(1, 2, 3))
    assert np.bincount(clean.labels[touched], minlength=3).tolist() == [round(20 * rate)] * 3
    whole = poison(clean, "lsp")
    assert np.array_equal(got.images[touched], whole.images[touched])
    smaller = (poison(clean, "lsp", rate=rate / 2).images != clean.images).any(axis=(1, 2, 3))
    assert (touched | ~smaller).all()
    assert got.manifest["statistics"]["images"] == touched.sum()


def test_statistics_equal_the_plain_formulas(make_dataset):
    clean = make_dataset(60)
    got = poison(clean, "lsp")
    delta = (got.images.astype(float) - clean.images) / 255
    about = got.manifest["statistics"]
    norms = np.sqrt((delta**2).sum(axis=(1, 2, 3)))
    assert about["l2_mean"] == pytest.approx(norms.mean())
    assert about["l2_max"] == pytest.approx(norms.max())
    assert about["linf_max"] == pytest.approx(np.abs(delta).max())
    assert about["l0_mean"] == pytest.approx((delta != 0).any(axis=3).sum(axis=(1, 2)).mean())
    assert about["psnr_db"] == pytest.approx(-10 * math.log10((delta**2).mean()))
    ended = (delta != 0) & np.isin(got.images, (0, 255))
    assert about["clipped_share"] == pytest.approx(ended.sum() / (delta != 0).sum())
    np.testing.assert_allclose(perturbation(clean, got).numpy(), delta, atol=1e-6)


def test_streamed_to_disk_is_the_same(tmp_path, make_dataset):
    clean = make_dataset(60)
    with DatasetWriter(tmp_path / "out") as writer:
        split = writer.split("train", clean.image_shape, clean.classes, source="tiny")
        write_poisoned(Poisoning(clean, "lsp", seed=2), split)
    got, want = load_dataset(tmp_path / "out"), poison(clean, "lsp", seed=2)
    assert got.checksum() == want.checksum()
    assert got.manifest == want.manifest


def test_names_parameters_and_errors(make_dataset):
    clean = make_dataset()
    assert get_poison("LSP")[0] == "lsp"
    assert get_poison("linearly_separable")[0] == "lsp"
    with pytest.raises(InputError, match="did you mean 'regions-16'"):
        get_poison("region-16")
    with pytest.raises(InputError, match="has no parameter 'patches': it takes eps, patch"):
        poison(clean, "lsp", patches=3)
    with pytest.raises(InputError, match="eps must be at least 0"):
        poison(clean, "lsp", eps=-1.0)
    with pytest.raises(InputError, match="rate must be between"):
        poison(clean, "lsp", rate=1.5)
    with pytest.raises(InputError, match="60 and 30 images"):
        perturbation(clean, make_dataset(30))


def test_progress_is_reported(make_dataset):
    seen = []
    poison(make_dataset(), progress=lambda *a: seen.append(a))
    assert seen[-1] == ("poison", 60, 60)
