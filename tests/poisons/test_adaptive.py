from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import ulfast
from ulfast import InputError
from ulfast.poisons import poison
from ulfast.poisons.adaptive import seen_through, views_of
from ulfast.poisons.base import Workplace
from ulfast.poisons.jpeg import through_jpeg
from ulfast.poisons.surrogate import mean_loss, trained_surrogates

FAST = {"surrogate": "cnn", "epochs": 4, "steps": 24}


def pillow(images: np.ndarray, quality: int) -> np.ndarray:
    out = np.empty_like(images)
    for image, squeezed in zip(images, out, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.squeeze()).save(stream, "JPEG", quality=quality)
        squeezed[...] = np.asarray(Image.open(stream)).reshape(squeezed.shape)
    return out


@pytest.fixture(scope="module")
def photos():
    return ulfast.load_dataset("sample", limit=200)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 100])
@pytest.mark.parametrize("size", [(32, 32), (31, 17), (8, 25)])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_libjpeg_s_within_its_arithmetic(photos, quality, size, channels):
    images = np.ascontiguousarray(photos.images[:60, : size[0], : size[1], :channels])
    want = pillow(images, quality).astype(float)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    got = (through_jpeg(x, quality) * 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(got - want).mean() < 1
    assert np.abs(want - images).mean() > (3 if quality < 75 else 0)


def test_the_derivative_of_rounding_is_one_on_average_and_largest_between_steps(photos):
    x = torch.from_numpy(photos.images[:20].copy()).permute(0, 3, 1, 2).double() / 255
    x.requires_grad_()
    toward = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # At quality 100 all steps are 1, so that coefficients are anywhere between two; colour keeps half of its detail.
    (gradient,) = torch.autograd.grad((through_jpeg(x, 100) * toward).sum(), x)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert float((gradient * luma[:, None, None]).sum() / (toward * luma[:, None, None]).sum()) == pytest.approx(
        1, abs=0.1
    )
    # Flat gray: one coefficient per block, 8 x the level - 128 over the step of 16 x 5.
    for level, slope in ((128 + 10 * 3, 0.3), (128 + 10 * 3.5, 0.3 + 0.7 * 12 * 0.25)):
        flat = torch.full((1, 1, 8, 8), level / 255, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(through_jpeg(flat, 10).sum(), flat)
        assert float(gradient.sum()) == pytest.approx(64 * slope, rel=1e-6)


def test_the_noise_survives_what_it_was_made_through(photos):
    clean = photos
    work = Workplace(device="cpu")
    views = views_of("none,jpeg-10")
    (network,) = trained_surrogates("cnn", clean, 4, 0, work, on=seen_through(clean, views, torch.device("cpu")))
    network.model.eval()
    towards = torch.from_numpy((clean.labels + 1) % clean.num_classes)
    losses = {}
    for through in ("none", "none,jpeg-10"):
        made = poison(clean, "adaptive", through=through, device="cpu", **FAST)
        moved = np.abs(made.images.astype(int) - clean.images)
        assert 0 < moved.max() <= 8
        x = torch.from_numpy(pillow(made.images, 10)).permute(0, 3, 1, 2).float() / 255
        losses[through] = float(mean_loss([network], x, towards).mean())
    assert losses["none,jpeg-10"] < 0.8 * losses["none"]


def test_the_network_learns_from_every_view(photos):
    seen = seen_through(photos, views_of("none, jpeg-10"), torch.device("cpu"))
    assert len(seen) == 400
    np.testing.assert_array_equal(seen.images[:200], photos.images)
    np.testing.assert_array_equal(seen.labels, np.tile(photos.labels, 2))
    assert np.abs(seen.images[200:].astype(float) - pillow(photos.images, 10)).mean() < 1


def test_blur_is_scipy_s(photos):
    (view,) = views_of("blur-1.5")
    x = torch.from_numpy(photos.images[:5].copy()).permute(0, 3, 1, 2).double() / 255
    want = gaussian_filter(x.numpy(), (0, 0, 1.5, 1.5), mode="nearest")
    np.testing.assert_allclose(view(x).numpy(), want, atol=1e-6)


@pytest.mark.parametrize("through", ["", "jpeg", "jpeg-0", "jpeg-101", "none,,jpeg-10", "blur", "blur-0", "blur--1"])
def test_an_unknown_view_is_one_line(photos, through):
    with pytest.raises(InputError, match="list of none, jpeg-1 to jpeg-100"):
        poison(photos, "adaptive", through=through, **FAST)
    with pytest.raises(InputError, match="everywhere must be between 0 and 1"):
        poison(photos, "adaptive", everywhere=1.1, **FAST)
