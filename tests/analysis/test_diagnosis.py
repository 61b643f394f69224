from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch.nn import functional as F

import ulfast
from ulfast import InputError
from ulfast.analysis import evidence
from ulfast.analysis.border import BORDER, DARKER, dark_border
from ulfast.analysis.detail import _integrated, fine_detail, patterns
from ulfast.analysis.diagnosis import CONSTANT, PATCHES, conclude, constant_pixel, diagnose
from ulfast.analysis.evidence import DETAIL, LINEAR, MARKED, Evidence, linear_model
from ulfast.data import load_dataset
from ulfast.data.lazy import LazyImages
from ulfast.projection.patches import fit_patches
from ulfast.report import pictures


@pytest.fixture(scope="module")
def every():
    return load_dataset("sample")


@pytest.fixture(scope="module")
def clean(every):
    return every.balanced(1500)


@pytest.mark.parametrize(
    ("method", "verdict", "attack"),
    [
        (None, "clean", "none"),
        ("swrandom", "clean", "none"),
        ("lsp", "poisoned", "orthogonal-full"),
        ("regions-16", "poisoned", "orthogonal-full"),
        ("ops", "poisoned", "orthogonal-full"),
        ("cuda", "poisoned", "orthogonal-full"),
        ("ar", "poisoned", "orthogonal-patch"),
    ],
)
def test_diagnosis(tmp_path, clean, method, verdict, attack):
    data = clean if method is None else ulfast.poison(clean, method)
    found = diagnose(data)
    assert (found.verdict, found.suggested_attack) == (verdict, attack), found.to_dict()
    if method in (None, "ar"):
        pictures.save(pictures.diagnosis_figure(found, data), tmp_path / "d.png")
        assert (tmp_path / "d.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("method", "verdict", "attack"),
    [(None, "clean", "none"), pytest.param("lsp", "poisoned", "orthogonal-full", marks=pytest.mark.slow)],
)
def test_more_classes_do_not_change_what_counts(every, method, verdict, attack):
    """Every class in four orientations: forty, of 125 images."""
    turn = np.random.default_rng(0).integers(0, 4, len(every))
    images = np.stack([np.rot90(image, k) for image, k in zip(every.images, turn, strict=True)])
    data = ulfast.Dataset(images, every.labels * 4 + turn, tuple(map(str, range(40))))
    found = diagnose(data if method is None else ulfast.poison(data, method))
    assert (found.verdict, found.suggested_attack) == (verdict, attack), found.to_dict()


def test_constant_pixels_are_found_where_they_are(clean):
    images = clean.images.copy()
    images[clean.labels == 4, 5, 9] = (255, 0, 255)
    share, where, name = constant_pixel(ulfast.Dataset(images, clean.labels, clean.classes))
    assert share == pytest.approx(1 - 2 / 150**0.5, abs=0.01)  # less two standard errors
    assert (where, name) == ((5, 9), "deer")
    images[:, 5, 9] = 0  # the same in every class: no trace of a class-wise poison
    assert constant_pixel(ulfast.Dataset(images, clean.labels, clean.classes))[0] < CONSTANT[0]


@pytest.fixture(scope="module")
def digits():
    """Clean, and yet a linear model classifies 96 % of them."""
    bunch = sklearn.datasets.load_digits()
    x = torch.from_numpy(bunch.images / 16 * 255).float()[:, None]
    x = F.interpolate(x, size=(32, 32), mode="bilinear").round().byte()
    images = x.permute(0, 2, 3, 1).repeat(1, 1, 1, 3).contiguous().numpy()
    return ulfast.Dataset(images, bunch.target.astype(np.int64), tuple("0123456789"))


def test_image_content_is_not_poison(digits):
    found = diagnose(digits)
    assert found.evidence[0].value > 0.9
    assert (found.verdict, found.suggested_attack) == ("unknown", "none")
    assert "levels" in found.doubt
    assert found.to_dict()["evidence"][0]["finding"] == "unclear"
    few = digits.balanced(200)
    full = ulfast.attack(few, test=few, method="orthogonal-full", model="cnn", epochs=1)
    assert "rank" not in full.notes


@pytest.mark.parametrize(
    "method",
    ["lsp", "regions-16", "pil", *(pytest.param(m, marks=pytest.mark.slow) for m in ("regions-4", "cwrandom"))],
)
def test_few_images_are_enough_to_tell(every, method):
    """Found by the marked images: the accuracy of the linear model is about that on clean images."""
    found = diagnose(ulfast.poison(every, method, rate=0.2 if method == "lsp" else 0.1))
    assert found.verdict == "poisoned", found.to_dict()
    assert found.evidence[2].value > MARKED[1]


def test_no_image_of_clean_ones_is_marked(every, clean):
    for data in (every, clean, ulfast.poison(clean, "swrandom")):
        assert fine_detail(data).marked == 0.0


def test_marked_images_are_the_poisoned_ones_and_show_the_pattern(every):
    poisoned = ulfast.poison(every, "regions-16", rate=0.2)
    found = fine_detail(poisoned)
    touched = (poisoned.images != every.images).any(axis=(1, 2, 3))
    assert touched[found.images].mean() > 0.98
    assert len(found.images) > 0.4 * touched.sum()
    shown = patterns(poisoned, found)
    many = [c for c in shown if (every.labels[found.images] == c).sum() >= 40]
    assert len(many) >= 5
    for c in many:
        pattern = shown[c]
        rows = np.flatnonzero(touched & (every.labels == c))
        true = (poisoned.images[rows].astype(np.float32) - every.images[rows]).mean(0)
        assert np.corrcoef(pattern.ravel(), true.ravel())[0, 1] > 0.5


def test_a_black_corner_of_four_images_of_seven_is_no_constant_pixel(clean):
    own = np.flatnonzero(clean.labels == 3)
    data = clean.subset(np.delete(np.arange(len(clean)), own[7:]))
    images, few = data.images.copy(), np.flatnonzero(data.labels == 3)
    images[few[:4], 0, 0] = 0
    assert constant_pixel(ulfast.Dataset(images, data.labels, data.classes))[0] < CONSTANT[0]


@pytest.mark.parametrize("strength", [20, 40])
def test_a_class_that_lies_off_as_a_whole_has_no_marked_images(every, strength):
    """Goldfish are orange in the middle, all of them more or less: no pattern in some of them."""
    rng, own = np.random.default_rng(0), np.flatnonzero(every.labels == 0)
    y, x = np.mgrid[:32, :32] - 15.5
    orange = np.exp(-(x**2 + y**2) / (2 * 7**2))[..., None] * np.array([1, -0.4, -0.6])
    images = every.images.copy()
    added = rng.normal(strength, strength, (len(own), 1, 1, 1)) * orange
    images[own] = (images[own] + added).clip(0, 255).round().astype(np.uint8)
    assert fine_detail(ulfast.Dataset(images, every.labels, every.classes)).marked < MARKED[1]


def test_no_pattern_without_marked_images(clean):
    assert patterns(clean, fine_detail(clean)) == {}


def test_an_image_comes_back_from_its_differences():
    image = torch.randn(3, 10, 13)
    back = _integrated(image.diff(dim=2), image.diff(dim=1)).permute(2, 0, 1)
    torch.testing.assert_close(back, image - image.mean((1, 2), keepdim=True), rtol=0, atol=1e-4)


def test_marks_in_large_images_and_few_classes(every):
    """In large images tiles are drawn at random and also taken from shrunk versions, which show large regions'
    edges.
    """
    rows = np.flatnonzero(every.labels < 5)
    x = torch.from_numpy(every.images[rows]).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=(72, 64), mode="bicubic").round().clamp(0, 255).byte()
    large = ulfast.Dataset(x.permute(0, 2, 3, 1).contiguous().numpy(), every.labels[rows], every.classes[:5])
    assert fine_detail(large).marked < MARKED[0]
    assert fine_detail(ulfast.poison(large, "regions-4", rate=0.5)).marked > MARKED[1]


def test_marks_of_classes_too_small_to_judge(clean):
    few = clean.subset(np.arange(60))
    assert fine_detail(few).marked == 0.0


def test_classes_that_are_easy_to_tell_are_no_poison(every):
    """Airplanes and frogs: a linear model tells them apart by the sky."""
    rows = np.flatnonzero(np.isin(every.labels, (0, 6)))
    pair = ulfast.Dataset(every.images[rows], (every.labels[rows] == 6).astype(np.int64), ("airplane", "frog"))
    found = diagnose(pair)
    assert found.evidence[0].value > 0.8
    assert found.verdict == "unknown"
    found = diagnose(ulfast.poison(pair, "lsp"))
    assert (found.verdict, found.suggested_attack) == ("poisoned", "orthogonal-full")


def test_classes_without_images(clean):
    """A subset that keeps all class names is judged by the classes present."""
    rows = np.flatnonzero(clean.labels < 5)
    some = ulfast.Dataset(clean.images[rows], clean.labels[rows], clean.classes)
    same = ulfast.Dataset(clean.images[rows], clean.labels[rows], clean.classes[:5])
    assert [e.clean_below for e in diagnose(some).evidence] == [e.clean_below for e in diagnose(same).evidence]
    assert fit_patches(some).metadata["largest"] == pytest.approx(fit_patches(same).metadata["largest"])


def test_one_class_leaves_nothing_to_compare(clean):
    rows = np.flatnonzero(clean.labels == 3)
    one = ulfast.Dataset(clean.images[rows], np.zeros(len(rows), dtype=np.int64), ("cat",))
    with pytest.raises(InputError, match="one class"):
        diagnose(one)


def test_conclusions():
    def conclusion(
        linear=0.4, detail=0.2, marked=0.0, smooth=8, whole=8, constant=0.0, border=0.0, doubt="", classes=10
    ):
        values = (
            (linear, (LINEAR, None)),
            (detail, DETAIL),
            (marked, MARKED),
            (smooth, PATCHES),
            (whole, PATCHES),
            (constant, CONSTANT),
        )
        measured = tuple(Evidence("", value, *bounds, "", doubt) for value, bounds in values)
        return conclude((*measured, Evidence("", border, *BORDER, "")), classes)

    assert conclusion() == ("clean", "none")
    assert conclusion(doubt="digits") == ("clean", "none")
    for unclear in ({"linear": 0.9}, {"detail": 0.4}, {"marked": 0.007}, {"smooth": 15}):
        assert conclusion(**unclear) == ("unknown", "orthogonal-full")
        assert conclusion(**unclear, doubt="digits") == ("unknown", "none")
    for pattern in ({"linear": 0.9, "detail": 0.9}, {"detail": 0.4, "marked": 0.2}, {"linear": 0.9, "marked": 0.2}):
        assert conclusion(**pattern) == ("poisoned", "orthogonal-full")
        assert conclusion(**pattern, smooth=80) == ("poisoned", "orthogonal-full")
        assert conclusion(**pattern, smooth=80, doubt="digits") == ("unknown", "none")
    assert conclusion(linear=0.5, detail=0.9) == ("poisoned", "iss-jpeg")
    assert conclusion(linear=0.8, detail=0.9) == ("poisoned", "orthogonal-full")
    assert conclusion(linear=0.667, detail=0.924, marked=0.454) == ("poisoned", "iss-jpeg")  # em, of a ResNet
    assert conclusion(linear=0.421, detail=0.703, marked=0.114) == ("poisoned", "iss-jpeg")  # tap, of a ResNet
    assert conclusion(linear=0.663, detail=1.0, marked=0.929) == ("poisoned", "orthogonal-full")  # em-classwise
    assert conclusion(linear=0.526, detail=0.961, marked=0.285) == ("poisoned", "orthogonal-full")  # lsp, 40 classes
    assert conclusion(linear=0.25, detail=0.926, classes=100) == ("poisoned", "orthogonal-full")  # lsp, 100 classes
    assert conclusion(linear=0.2, detail=0.5, classes=100) == ("poisoned", "iss-jpeg")
    assert conclusion(linear=0.5, detail=0.9, marked=0.6) == ("poisoned", "orthogonal-full")
    assert conclusion(border=0.06) == ("unknown", "orthogonal-full")
    for other in ({}, {"doubt": "digits"}, {"smooth": 80}, {"linear": 0.5, "detail": 0.9}):
        assert conclusion(border=0.9, **other) == ("poisoned", "orthogonal-full")
    assert conclusion(smooth=80) == ("poisoned", "orthogonal-patch")
    assert conclusion(detail=0.9, whole=80, constant=1.0) == ("poisoned", "orthogonal-full")
    assert conclusion(whole=40) == ("poisoned", "orthogonal")
    assert conclusion(marked=0.05) == ("poisoned", "orthogonal-full")


def test_a_convolution_leaves_dark_borders(every):
    """At every rate that leaves more dark borders than photographs have, a hundredth here."""
    assert dark_border(every).share < BORDER[0]
    for rate in (1.0, 0.2, 0.1):
        poisoned = ulfast.poison(every, "cuda", seed=0, rate=rate)
        found = dark_border(poisoned)
        assert found.share > BORDER[1]
        assert found.width == 1
        changed = (poisoned.images != every.images).any(axis=(1, 2, 3))
        assert changed[found.images].mean() > 0.85
    assert dark_border(ulfast.poison(every, "lsp", seed=0)).share < BORDER[0]


def test_a_border_is_as_wide_as_the_filter_reaches(every):
    images = np.repeat(np.repeat(every.images[:200], 3, axis=1), 3, axis=2)
    large = ulfast.Dataset(images, every.labels[:200], every.classes)
    assert dark_border(ulfast.poison(large, "cuda", seed=0, size=9, blur=0.06)).width == 4


def test_neither_a_frame_nor_a_bright_object_is_a_dark_border():
    digits = sklearn.datasets.load_digits()
    images = (digits.images / 16 * 255).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    names = tuple(map(str, range(10)))
    assert dark_border(ulfast.Dataset(images[..., None], labels, names)).share == 0  # too small for a border
    large = np.repeat(np.repeat(images, 3, axis=1), 3, axis=2)
    framed = np.pad(large, ((0, 0), (2, 2), (2, 2)))
    assert dark_border(ulfast.Dataset(framed[..., None], labels, names)).share < BORDER[0]
    bright = np.full((100, 16, 16, 3), 200, np.uint8)
    bright[:, 1:-1, 1:-1] = 100  # lighter outside
    assert dark_border(ulfast.Dataset(bright, np.arange(100) % 2, ("a", "b"))).share == 0
    bright[:, 1:-1, 1:-1] = np.uint8(200 / DARKER + 5)
    assert dark_border(ulfast.Dataset(bright, np.arange(100) % 2, ("a", "b"))).share == 1


def test_the_linear_model_decodes_an_image_once(clean, monkeypatch):
    """Its thousand steps read each image many times. Sets beyond its bytes give a sample."""
    small = clean.balanced(300)
    times = np.zeros(len(small), int)

    def read(i, out):
        times[i] += 1
        out[:] = small.images[i]

    lazy = replace(small, images=LazyImages(small.images.shape, read))
    found = linear_model(lazy)
    assert times.max() == times.min() == 1
    assert found.basis == linear_model(small).basis
    monkeypatch.setattr(evidence, "LINEAR_BYTES", 100 * 32 * 32 * 3)
    linear_model(lazy)
    assert times.sum() == 400
