from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ulfast
from ulfast import InputError
from ulfast.analysis.diagnosis import PATCHES
from ulfast.analysis.evidence import DETAIL
from ulfast.data import load_dataset
from ulfast.data.loaders.augment import Augment
from ulfast.data.loaders.memory import MemoryLoader
from ulfast.data.loaders.removal import Removal
from ulfast.projection.patches import PatchProjection, estimator, fit_patches, spectrum, statistics


@pytest.fixture(scope="module")
def clean():
    return load_dataset("sample", limit=1500)


@pytest.fixture(scope="module")
def poisoned(clean):
    return ulfast.poison(clean, "ar", seed=1)


@pytest.fixture(scope="module")
def fitted(poisoned):
    """`fit_patches` of the poisoned images, for the same options once."""
    return functools.cache(lambda **options: fit_patches(poisoned, **options))


OPTIONS = {"epochs": 1, "model": "cnn"}


@pytest.fixture(scope="module")
def full_of_lsp(clean):
    """Images with a linear poison, and the result of `orthogonal-full`."""
    data = ulfast.poison(clean, "lsp")
    return data, ulfast.attack(data, method="orthogonal-full", test=clean.balanced(100), **OPTIONS)


def test_statistics_equal_numpys(make_dataset):
    data = make_dataset(200, 12)
    got = statistics(data, 3, np.arange(200))
    energies, by_class = [], []
    for c in range(3):
        x = torch.from_numpy(data.images[data.labels == c]).permute(0, 3, 1, 2).double() / 255
        patches = F.unfold(x, 3).transpose(1, 2).numpy()
        assert got.images[c] == len(x)
        sparse = patches.reshape(len(x), 10, 10, 27)[:, ::3, ::3].reshape(-1, 27)
        np.testing.assert_allclose(got.whole[c].numpy(), np.cov(sparse, rowvar=False, bias=True), atol=1e-5)
        by_class.append(patches.reshape(-1, 3, 9))
        energies.append(by_class[-1].var(2).sum(1) * 9)
    bound = np.sort(np.concatenate(energies))[round(0.1 * sum(map(len, energies))) - 1]
    for c in range(3):
        chosen = by_class[c][energies[c] <= bound + 1e-6].reshape(-1, 27)
        assert len(chosen) >= 20 * 27
        np.testing.assert_allclose(got.smooth[c].numpy(), np.cov(chosen, rowvar=False, bias=True), atol=3e-4)


def test_a_class_without_smooth_patches_still_has_a_covariance(make_dataset):
    data = make_dataset(90, 12)
    images = data.images.copy()
    images[data.labels == 1] //= 16  # all of the smooth patches are its own
    got = statistics(ulfast.Dataset(images, data.labels, data.classes), 3, np.arange(90))
    assert all(torch.linalg.matrix_rank(c) == 27 for c in got.smooth)


def test_the_spectrum_finds_planted_directions():
    """One class with a doubled variance along one direction: 0.9, the square of what differs, summed over classes."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    base = a @ a.T + torch.eye(12)
    direction = torch.randn(12, generator=generator, dtype=torch.float64)
    by_class = base.repeat(10, 1, 1)
    by_class[3] += 5 * torch.outer(direction, direction)
    values, directions, whiten, colour = spectrum(by_class)
    assert float(values[0]) > 10 * float(values[1].clamp_min(1e-9))
    assert torch.allclose(whiten @ colour, torch.eye(12, dtype=torch.float64), atol=1e-6)
    planted = whiten @ direction
    assert float((directions[:, 0] @ planted / planted.norm()).abs()) > 0.999


def test_a_class_of_few_images_is_shrunk_to_the_mean_and_empty_directions_do_not_count():
    by_class = torch.eye(6, dtype=torch.float64).repeat(10, 1, 1)
    by_class[:, 5, 5] = 0  # of gray images, say
    by_class[2, 0, 0] = 4
    values, directions, _, _ = spectrum(by_class, torch.tensor([600.0] * 10))
    few, _, _, _ = spectrum(by_class, torch.tensor([600.0, 600.0, 50.0] + [600.0] * 7))
    assert float(directions[0, 0].abs()) == pytest.approx(1.0)
    assert float(few[0]) < 0.4 * float(values[0])
    assert float(values[1:].abs().max()) < 1e-6


def test_the_estimator_is_unbiased_and_the_quietest():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    covariance = a @ a.T
    noise = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    best = estimator(noise, covariance)
    torch.testing.assert_close(best @ noise.T, torch.eye(3, dtype=torch.float64), atol=1e-6, rtol=0)
    plain = torch.linalg.pinv(noise.T)
    assert float((best @ covariance @ best.T).trace()) < float((plain @ covariance @ plain.T).trace())


def test_the_rule_removes_from_ar_and_leaves_clean_data_alone(clean, fitted):
    there, none = fitted(), fit_patches(clean)
    assert there.metadata["largest"] > 2 * PATCHES[1]
    assert 20 < there.rank < 90
    assert none.metadata["largest"] < PATCHES[0] / 2
    assert none.rank == 0
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(PatchProjection(none)(x), x)


@pytest.mark.parametrize("size", [(32, 32), (9, 20), (7, 7), (13, 40)])
def test_the_projection_is_the_mean_over_covering_patches(fitted, size):
    basis = fitted(rank=15)
    x = torch.rand(3, 3, *size)
    a, s = basis.analysis.flatten(1), basis.synthesis.flatten(1)
    assert (a @ s.T - torch.eye(15)).abs().max() < 1e-5
    patches = F.unfold(x, 7)
    kept = patches - s.T @ (a @ patches)
    want = F.fold(kept, size, 7) / F.fold(torch.ones_like(patches), size, 7)
    torch.testing.assert_close(PatchProjection(basis)(x), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="sides of at least 7"):
        PatchProjection(basis)(x[..., :5])


def test_it_removes_more_from_the_noise_than_from_the_image(clean, poisoned, fitted):
    projection = PatchProjection(fitted())
    image, both = (torch.from_numpy(d.images).permute(0, 3, 1, 2).float() / 255 for d in (clean, poisoned))
    noise = both - image
    from_noise = (projection(noise) - noise).norm() / noise.norm()
    from_image = (projection(image) - image).norm() / image.norm()
    # The class-specific part is a share of the noise, and a far smaller share of the image.
    assert float(from_noise) > 5 * float(from_image)
    assert float(from_image) < 0.1


def test_state_dict_and_gradient(poisoned):
    basis = fit_patches(poisoned, rank=4, patch=3)
    layer = PatchProjection(basis)
    assert set(layer.state_dict()) == {"analysis", "synthesis"}
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.double(), x)


def test_errors(poisoned):
    with pytest.raises(InputError, match="a patch of 40 px does not fit"):
        fit_patches(poisoned, patch=40)
    with pytest.raises(InputError, match="27 directions, 28 were requested"):
        fit_patches(poisoned, patch=3, rank=28)


def test_kept_and_new_batches_agree(poisoned, fitted, monkeypatch):
    small = poisoned.balanced(100)
    removal = Removal(patches=PatchProjection(fitted(rank=15)))
    options = {
        "removal": removal,
        "mean": (0.5,) * 3,
        "std": (0.2,) * 3,
        "augment": Augment(),
        "seed": 3,
        "shuffle": True,
    }
    kept = MemoryLoader(small, 32, **options)
    monkeypatch.setattr("ulfast.data.loaders.memory.KEEP_BYTES", 0)
    fresh = MemoryLoader(small, 32, **options)
    for (x, y), (u, v) in zip(kept, fresh, strict=True):
        torch.testing.assert_close(x, u, atol=0.005, rtol=0)
        assert torch.equal(y, v)


@pytest.mark.parametrize("method", ["orthogonal-patch", "orthogonal-full", "auto"])
def test_attacks_run_and_say_what_they_removed(tmp_path, poisoned, method):
    small = poisoned.balanced(700)
    out = tmp_path / "run"
    result = ulfast.attack(small, test=small, method=method, epochs=1, out=out, materialize=True)
    assert result.notes["patch_rank"] > 10
    if method == "orthogonal-full":  # fine detail says no more of the class here than in clean images
        assert result.notes["detail_accuracy"] < DETAIL[0]
        assert "rank" not in result.notes
    if method == "auto":
        assert result.notes["diagnosis"]["suggested_attack"] == "orthogonal-patch"
    assert np.load(out / "projected" / "images-00000.npy").shape == (700, 32, 32, 3)


@pytest.mark.parametrize(
    ("method", "settings", "same", "same_settings"),
    [
        ("lsp", {}, "orthogonal+mean-noise", {"partial": True}),
        pytest.param("lsp", {"noise_scale": 0}, "orthogonal", {}, marks=pytest.mark.slow),
        (None, {}, "none", {}),
    ],
)
def test_full_removes_only_what_the_data_shows(clean, full_of_lsp, method, settings, same, same_settings):
    """On a linear poison it is a partial `orthogonal+mean-noise`, and on clean images it is bit for bit `none`."""
    options = OPTIONS | {"test": clean.balanced(100)}
    data, full = full_of_lsp if method else (clean, None)
    if settings or not method:
        full = ulfast.attack(data, method="orthogonal-full", **settings, **options)
    if "noise_scale" in full.notes:
        same_settings = same_settings | {"noise_scale": full.notes["noise_scale"]}
    other = ulfast.attack(data, method=same, **same_settings, **options)
    assert full.notes["patch_rank"] == 0
    assert full.notes.get("rank") == other.notes.get("rank")
    assert [row["train_loss"] for row in full.history] == [row["train_loss"] for row in other.history]


@pytest.mark.parametrize(
    ("method", "least", "most"), [("ops", 1.0, 1.001), pytest.param("regions-4", 1.6, 2.0, marks=pytest.mark.slow)]
)
def test_the_noise_scale_follows_what_remains(clean, method, least, most):
    """1 if every direction is removed entirely, towards 2 if most of one stays; `noise_scale` overrides it."""
    data = ulfast.poison(clean, method)
    options = {"test": clean.balanced(100), "epochs": 1, "model": "cnn", "method": "orthogonal-full"}
    notes = ulfast.attack(data, **options).notes
    assert least <= notes["noise_scale"] <= most
    fixed = ulfast.attack(data, noise_scale=0.5, **options).notes
    assert "noise_scale" not in fixed
    assert fixed["noise_norm"] == pytest.approx(notes["noise_norm"] * 0.5 / notes["noise_scale"], rel=1e-4)


def test_individual_noise_is_not_hidden_under_more_noise(clean, monkeypatch):
    """If fine detail shows noise made with a network, directions are removed in part and no noise is added."""
    monkeypatch.setattr("ulfast.analysis.evidence.NOT_LINEAR", -1.0)
    monkeypatch.setattr("ulfast.analysis.evidence.OWN_MARKED", 2.0)
    monkeypatch.setattr("ulfast.analysis.evidence.OWN_DETAIL", 2.0)
    data = ulfast.poison(clean, "lsp")
    options = {"test": clean.balanced(100), "epochs": 1, "model": "cnn"}
    full = ulfast.attack(data, method="orthogonal-full", **options)
    part = ulfast.attack(data, method="orthogonal", partial=True, **options)
    assert full.notes["noise_scale"] == 0
    assert [row["train_loss"] for row in full.history] == [row["train_loss"] for row in part.history]


def test_auto_diagnoses_once(clean, full_of_lsp, monkeypatch):
    """The suggested attack does not repeat the diagnosis's measurements; the result is the same."""
    data, full = full_of_lsp
    options = OPTIONS | {"test": clean.balanced(100)}
    for again in ("full.linear_model", "full.fine_detail", "patch.fit_patches"):
        monkeypatch.delattr(f"ulfast.attacks.{again}")
    auto = ulfast.attack(data, method="auto", **options)
    assert auto.notes["diagnosis"]["suggested_attack"] == "orthogonal-full"
    assert {name: auto.notes[name] for name in full.notes} == full.notes
    assert [row["train_loss"] for row in auto.history] == [row["train_loss"] for row in full.history]
