"""Filters that are redrawn in every pass, and those of the stored images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch

import ulfast
from ulfast import InputError, ops
from ulfast.attacks import Context, Plan, get_attack
from ulfast.data import Augment, MemoryLoader
from ulfast.data.dataset import Dataset
from ulfast.data.loaders.augment import EPOCH_BITS
from ulfast.data.loaders.projected import ProjectedLoader, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.parameters import with_parameters
from ulfast.projection.filters import (
    LowPass,
    PixelShift,
    RandomSharpening,
    SpectralNoise,
    class_spectra,
    repeat_border,
)
from ulfast.training import Recipe

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", None)
DRAWN = ["rsk", "ssk", "lowpass", "coin", "spectral-noise"]


@pytest.fixture(scope="module")
def data(bars):
    return bars(200, 40, 20)


def planned(name, data, **parameters):
    plan = Plan(data[0], data[2], RECIPE)
    for step in get_attack(name)[1]:
        fields = {key: value for key, value in parameters.items() if hasattr(step, key)}
        with_parameters(step, name, fields).apply(plan, Context(0, torch.device("cpu")))
    return plan


def pixels(n=6, h=16, w=16, c=3):
    return torch.rand(n, h, w, c, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("name", [*DRAWN, "rsk+lowpass", "coin+mean-noise"])
def test_every_image_has_draws_of_its_own_in_every_pass(name, data):
    """Equal whatever the batches, the device of the draws, and the number of processes."""
    removal = planned(name, data).removal
    loader = MemoryLoader(data[0], 32, removal=removal, augment=Augment(), shuffle=True)
    first = torch.cat([x for x, _ in loader])
    assert torch.equal(first, torch.cat([x for x, _ in loader]))
    small = MemoryLoader(data[0], 7, removal=removal, augment=Augment(), shuffle=True)
    torch.testing.assert_close(torch.cat([x for x, _ in small]), first, atol=1e-5, rtol=1e-5)
    parts = [MemoryLoader(data[0], 32, removal=removal, augment=Augment(), shuffle=True, part=(i, 2)) for i in (0, 1)]
    both = [torch.cat(pair) for pair in zip(*([x for x, _ in part] for part in parts), strict=True)]
    torch.testing.assert_close(torch.cat(both), first, atol=1e-5, rtol=1e-5)
    loader.set_epoch(1)
    loader.shuffle = False
    later = torch.cat([x for x, _ in loader])
    loader.set_epoch(2)
    if name not in ("ssk", "lowpass"):
        assert not torch.equal(later, torch.cat([x for x, _ in loader]))


def test_a_filter_of_the_loader_is_the_filter_of_the_images(data):
    """In the order of the pass, before the augmentation and the normalisation; uint8 and float pixels alike."""
    images = torch.from_numpy(np.array(data[0].images))
    step = RandomSharpening()
    loader = MemoryLoader(data[0], 64, removal=Removal(drawn=(step,)), mean=(0.5,) * 3, std=(0.25,) * 3, seed=3)
    loader.set_epoch(2)
    got = torch.cat([x for x, _ in loader]).permute(0, 2, 3, 1)
    want = (step(images, 3, 2 << EPOCH_BITS) - 0.5) / 0.25
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(step(images, 3, 0), step(images / 255, 3, 0), atol=1e-6, rtol=1e-6)


def test_lasting_changes_come_before_drawn_ones(data):
    rows = torch.linalg.qr(torch.randn(data[0].images[0].size, 3))[0].T.contiguous()
    images, labels = torch.from_numpy(np.array(data[0].images)), torch.from_numpy(data[0].labels)
    noise = 0.1 * torch.randn(2, rows.shape[1])
    removal = Removal(rows=rows, drawn=(PixelShift(1.0), LowPass(0.5)), noise=noise)
    got = removal.apply(images, labels, seed=4, first=7)
    want = LowPass(0.5)(PixelShift(1.0)(ops.project(images, rows), 4, 7), 4, 7)
    weights = ops.philox_normal(4, ops.philox.STREAM_NOISE, 7, len(images), 2)
    torch.testing.assert_close(got, want + (weights @ noise).view_as(want), atol=1e-5, rtol=1e-5)
    assert torch.equal(removal.apply(images, labels), ops.project(images, rows))


def test_filters_are_drawn_on_a_projected_set_too(data, tmp_path):
    rows = torch.linalg.qr(torch.randn(data[0].images[0].size, 3))[0].T.contiguous()
    removal = Removal(rows=rows, drawn=(RandomSharpening(),))
    write_projected(tmp_path / "p", data[0], removal)
    options = {"removal": removal, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for (x, _), (y, _) in zip(
        ProjectedLoader(tmp_path / "p", data[0], 32, **options), MemoryLoader(data[0], 32, **options), strict=True
    ):
        torch.testing.assert_close(x, y, atol=0.02, rtol=0)  # float16 on the disk, sharpened


def test_the_weights_of_a_sharpening_kernel_are_as_published():
    """Read from an image of isolated bright pixels, whose neighbourhoods then show the kernel."""
    x = torch.full((4000, 5, 5, 1), 0.5)
    x[:, 2, 2] = 0.51
    got = (RandomSharpening(2.5, 0.1)(x, 0, 0) - 0.5)[:, 1:4, 1:4, 0]
    base = RandomSharpening(2.5, 0.1)(torch.full((4000, 5, 5, 1), 0.5), 0, 0)[:, 2, 2, 0] - 0.5
    kernel = (got - base[:, None, None]) / 0.01
    centre, left = kernel[:, 1, 1], kernel[:, 1, 0]
    assert abs(centre.mean() - 2.5) < 0.01
    assert abs(centre.std() - 0.1) < 0.01
    assert abs(left.mean() + 1.5 / 4) < 0.01
    # Its mean follows the centre: sqrt(0.1^2 + (0.1 / 4)^2).
    assert abs(left.std() - 0.103) < 0.01
    assert kernel[:, ::2, ::2].abs().max() < 1e-3


def test_without_deviation_the_kernel_is_one(data):
    step = planned("ssk", data).removal.drawn[0]
    x = pixels()
    assert torch.equal(step(x, 0, 0)[3], step(x[3:4], 5, 9)[0])
    flat = scipy.ndimage.convolve(
        x[0, :, :, 1].double().numpy(), np.array([[0, -0.375, 0], [-0.375, 2.5, -0.375], [0, -0.375, 0]])
    )
    want = torch.from_numpy(flat).clamp(0, 1)[1:-1, 1:-1].float()
    torch.testing.assert_close(step(x, 0, 0)[0, 1:-1, 1:-1, 1], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16, 3), (9, 14, 1)])
@pytest.mark.parametrize("keep", [0.3, 0.75, 1.0])
def test_lowpass_keeps_the_first_coefficients_of_the_cosine_transform(shape, keep):
    x = pixels(3, *shape)
    coefficients = scipy.fft.dctn(x.double().numpy(), axes=(1, 2), norm="ortho")
    coefficients[:, int(keep * shape[0]) :] = 0
    coefficients[:, :, int(keep * shape[1]) :] = 0
    want = scipy.fft.idctn(coefficients, axes=(1, 2), norm="ortho").clip(0, 1)
    np.testing.assert_allclose(LowPass(keep)(x, 0, 0).numpy(), want, atol=1e-5)


def test_spectral_noise_is_a_filter_without_phase():
    """Every frequency of an image is multiplied by a positive number; the mean stays; without a scale, all does."""
    x, spectra = pixels(5), torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))
    spectra = (spectra + spectra.flip(1, 2).roll((1, 1), (1, 2))) / 2  # as of real images
    torch.testing.assert_close(SpectralNoise(spectra, 0.0)(x, 0, 0), x, atol=1e-5, rtol=1e-5)
    got = SpectralNoise(spectra, 1.0)(x, 2, 7)
    torch.testing.assert_close(got.mean((1, 2)), x.mean((1, 2)), atol=1e-5, rtol=1e-5)
    ratio = torch.fft.fft2(got - got.mean((1, 2), keepdim=True), dim=(1, 2)) / torch.fft.fft2(x, dim=(1, 2))
    weights = ops.philox_normal(2, ops.philox.STREAM_SPECTRUM, 7, 5, 4)
    want = (0.5 * weights @ spectra.flatten(1)).exp().view(5, 16, 16, 1).expand(-1, -1, -1, 3)
    torch.testing.assert_close(ratio.real[:, 1:, 1:], want[:, 1:, 1:], atol=2e-3, rtol=2e-3)
    assert ratio.imag[:, 1:, 1:].abs().max() < 1e-2


def test_class_spectra_are_means_of_logarithms(data):
    spectra = class_spectra(data[0])
    mine = np.asarray(data[0].images)[data[0].labels == 1] / 255
    power = np.log(np.maximum(np.abs(np.fft.fft2(mine, axes=(1, 2))) ** 2, 1e-12)).mean(3)
    want = (power - power.mean((1, 2), keepdims=True)).mean(0)
    np.testing.assert_allclose(spectra[1].numpy(), want, atol=0.02)


def test_a_convolution_poison_shows_in_the_spectra_of_its_classes():
    train = ulfast.load_dataset("sample", limit=1000)
    spread = [class_spectra(data).std(0)[8:, 8:].mean() for data in (train, ulfast.poison(train, "cuda", seed=0))]
    assert spread[1] > 1.3 * spread[0]


def test_the_border_gets_the_values_next_to_it():
    x = pixels(2, 6, 7)
    got = repeat_border(x.clone(), 1)
    assert torch.equal(got[:, 1:-1, 1:-1], x[:, 1:-1, 1:-1])
    assert torch.equal(got[:, 0, 1:-1], x[:, 1, 1:-1])
    assert torch.equal(got[:, -1, -1], x[:, -2, -2])
    assert torch.equal(repeat_border(x[:, :1].clone(), 3), x[:, :1])


@pytest.mark.parametrize(
    ("name", "filtered"),
    [
        ("median", lambda x: scipy.ndimage.median_filter(x, 3, mode="nearest")),
        ("dilate", lambda x: scipy.ndimage.maximum_filter(x, 3, mode="nearest")),
        ("erode", lambda x: scipy.ndimage.minimum_filter(x, 3, mode="nearest")),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_rank_filters_are_scipys(name, filtered, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 9, 11, channels), dtype=np.uint8)
    data = Dataset(images, np.arange(4) % 2, ("a", "b"))
    plan = Plan(data, data, RECIPE)
    get_attack(name)[1][0].apply(plan, Context(0, torch.device("cpu")))
    for i in range(4):
        for c in range(channels):
            assert np.array_equal(plan.train.images[i, :, :, c], filtered(images[i, :, :, c]))


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("lowpass", {"keep": 0.01}, "at least one of"),
        ("lowpass", {"keep": 1.5}, "at most 1"),
        ("coin", {"reach": 99.0}, "shorter side"),
        ("median", {"window": 2}, "must be odd"),
    ],
)
def test_what_a_filter_refuses(name, parameters, words, data):
    with pytest.raises(InputError, match=words):
        planned(name, data, **parameters)


def test_one_kind_of_sharpening_at_a_time():
    with pytest.raises(InputError, match="both sharpen"):
        get_attack("rsk+ssk")


@pytest.mark.parametrize("name", ["rsk+lowpass", "coin", "spectral-noise"])
def test_an_attack_by_filters_learns_and_is_reproducible(name, data, tmp_path):
    results = [
        ulfast.attack(data[0], test=data[2], method=name, model="cnn", epochs=2, seed=1, out=tmp_path / str(i))
        for i in range(2)
    ]
    assert results[0].test_accuracy == results[1].test_accuracy
    assert (tmp_path / "0" / "examples.npz").is_file()
    plain = ulfast.attack(data[0], test=data[2], method="none", model="cnn", epochs=2, seed=1)
    assert plain.history[-1] != results[0].history[-1]
    assert replace(data[0]).images.dtype == np.uint8
