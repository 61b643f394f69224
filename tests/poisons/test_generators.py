"""Each method against its published definition."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ulfast import InputError, ops
from ulfast.data import Dataset, load_dataset
from ulfast.data.class_moments import class_moments
from ulfast.ops import _extension, reference
from ulfast.poisons import ar, perturbation, poison
from ulfast.poisons.ops import choose

SHAPES = [((9, 13), 3, 37), ((8, 8), 1, 16), ((33, 5), 2, 3), ((8, 8), 3, 0)]
LEVELS = [name for name, supported in _extension.load().cpu_levels() if supported]


@pytest.mark.pairs("level", "kind")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("size", "channels", "n"), SHAPES)
@pytest.mark.parametrize("kind", ["none", "l2", "linf"])
def test_ar_kernel_equals_its_twin_bit_for_bit(level, size, channels, n, kind):
    windows = torch.randn(4, channels, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.3
    labels = torch.arange(n) % 4
    images = torch.randint(0, 256, (n, *size, channels), dtype=torch.uint8)
    _extension.set_cpu_level(level)
    try:
        for some in (None, images):
            got = ops.perturb_ar(labels, windows, seed=5, first=3, size=size, norm=0.7, kind=kind, images=some)
            want = reference.perturb_ar(labels, windows, 5, 3, *size, 0.7, kind, some)
            if kind == "l2":  # the sums of squares run in another order: the scale may differ in its last bit
                torch.testing.assert_close(got.float(), want.float(), atol=1.0 if some is not None else 1e-7, rtol=1e-6)
            else:
                assert torch.equal(got, want)
    finally:
        _extension.set_cpu_level("auto")


def test_ar_rows_do_not_depend_on_the_batch_or_the_threads():
    windows = ar.find_coefficients(3, 0)
    labels = torch.arange(40) % 3
    whole = ops.perturb_ar(labels, windows, seed=1, first=0, size=(32, 32))
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert torch.equal(ops.perturb_ar(labels[7:30], windows, seed=1, first=7, size=(32, 32)), whole[7:30])
    finally:
        torch.set_num_threads(before)


def test_ar_errors_and_opcheck():
    windows, labels = torch.zeros(2, 3, 3, 3), torch.tensor([0, 2])
    with pytest.raises(IndexError, match=r"labels\[1\] is 2, outside \[0, 2\)"):
        ops.perturb_ar(labels, windows, seed=0, first=0, size=(8, 8))
    with pytest.raises(ValueError, match="kind must be one of"):
        ops.perturb_ar(labels, windows, seed=0, first=0, size=(8, 8), kind="l1")
    with pytest.raises(ValueError, match="coefficients must be"):
        ops.perturb_ar(labels, windows[0], seed=0, first=0, size=(8, 8))
    images = torch.zeros(2, 8, 8, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images must be"):
        ops.perturb_ar(labels, windows, seed=0, first=0, size=(8, 8), images=images)
    arguments = (labels.clamp_max(1), torch.rand(2, 3, 3, 3) * 0.2, 0, 0, 8, 8, 1.0, "l2")
    torch.library.opcheck(torch.ops.ulfast.perturb_ar.default, arguments)


def test_ar_filters_are_blind_only_to_their_own_class():
    windows = ar.find_coefficients(10, 3)
    assert (windows[..., 2, 2] == 0).all()
    torch.testing.assert_close(windows.sum((2, 3)), torch.ones(10, 3))
    delta = ops.perturb_ar(torch.arange(10), windows, seed=9, first=0, size=(32, 32), kind="none").permute(0, 3, 1, 2)
    answers = ar.response(delta.contiguous(), windows)
    assert answers.diagonal().max() < 1e-2
    assert (answers + torch.eye(10) * 1e9).min() > 1
    assert torch.equal(ar.find_coefficients(10, 3), windows)
    assert not torch.equal(ar.find_coefficients(10, 4), windows)


def test_ar_response_adds_the_channels_up_first():
    """One convolution over all channels, then what is positive, as published; channel by channel is more."""
    windows = ar.find_coefficients(4, 0, (16, 16))
    signals = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    want = torch.zeros(5, 4)
    for k, window in enumerate(windows):
        taps = window.clone()
        taps[:, 2, 2] = -1
        want[:, k] = (signals.unfold(2, 3, 1).unfold(3, 3, 1) * taps[:, None, None]).sum((1, 4, 5)).relu().sum((1, 2))
    torch.testing.assert_close(ar.response(signals, windows), want, rtol=1e-4, atol=1e-3)
    by_channel = ar._channel_response(signals, windows)
    assert 1.2 < float((by_channel / want).mean()) < 2


def test_ar_windows_by_the_published_test(make_dataset):
    """Those found by it are accepted, two alike are not, and `ar` finds others by its own."""
    published = ar.find_coefficients(4, 1, (16, 16), accept="published")
    assert ar.judge(published, (16, 16))["accepted"]
    assert not torch.equal(published, ar.find_coefficients(4, 1, (16, 16)))
    twins = published[[0, 1, 2, 0]]
    assert not ar.judge(twins, (16, 16))["accepted"]
    clean = make_dataset(12, 16, 3, 4)
    made = poison(clean, "ar", seed=1, accept="published")
    assert made.manifest["parameters"]["accept"] == "published"
    assert made.checksum() != poison(clean, "ar", seed=1).checksum()
    with pytest.raises(InputError, match="accept must be one of"):
        poison(clean, "ar", accept="all")


@pytest.mark.parametrize(("norm", "eps"), [("l2", None), ("linf", None), ("l2", 0.5)])
def test_ar_budget(make_dataset, norm, eps):
    gray = Dataset(np.full((32, 32, 32, 3), 128, np.uint8), np.arange(32) % 4, tuple("abcd"))
    delta = perturbation(gray, poison(gray, "ar", norm=norm, eps=eps)).flatten(1)
    if norm == "linf":
        assert delta.abs().max() <= 8 / 255 + 1e-6
        assert delta.abs().amax(1).min() >= 8 / 255 - 1e-6
    else:
        torch.testing.assert_close(delta.norm(dim=1), torch.full((32,), eps or 1.0), atol=0.1, rtol=0)


def test_ar_is_not_linearly_separable_but_lsp_is():
    from sklearn.linear_model import LogisticRegression

    clean = load_dataset("sample", limit=1500)
    scores = {}
    for method in ("ar", "lsp"):
        delta = perturbation(clean, poison(clean, method)).flatten(1).numpy()
        fit = LogisticRegression(max_iter=100).fit(delta[:1000] * 10, clean.labels[:1000])
        scores[method] = fit.score(delta[1000:] * 10, clean.labels[1000:])
    assert scores["lsp"] > 0.99
    assert scores["ar"] < 0.5


def test_ar_coefficient_files(tmp_path, make_dataset):
    windows = ar.find_coefficients(3, 5)
    ar.save_coefficients(windows, tmp_path / "a.json")
    np.save(tmp_path / "a.npy", windows.numpy())
    torch.save(list(windows), tmp_path / "a.pt")
    clean = make_dataset()
    sums = {poison(clean, "ar", coefficients=str(tmp_path / f"a.{s}")).checksum() for s in ("json", "npy", "pt")}
    assert len(sums) == 1
    with pytest.raises(InputError, match="there is no coefficient file"):
        poison(clean, "ar", coefficients=str(tmp_path / "none"))
    (tmp_path / "b.json").write_text(json.dumps({"coefficients": [[1, 2]]}))
    with pytest.raises(InputError, match=r"must hold \(3, 3, 3, 3\)"):
        poison(clean, "ar", coefficients=str(tmp_path / "b.json"))
    (tmp_path / "c.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read as coefficient windows"):
        poison(clean, "ar", coefficients=str(tmp_path / "c.pt"))


def published_search(images: np.ndarray, labels: np.ndarray, classes: int) -> list[tuple[int, tuple[int, ...]]]:
    """Position by position and colour by colour, in float64, as its authors search."""
    used: set[tuple[int, tuple[int, ...]]] = set()
    found = []
    corners = [(r, g, b) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
    for c in range(classes):
        x = images[labels == c].reshape((labels == c).sum(), -1, 3) / 255
        best, score = None, -1.0
        for position in range(x.shape[1]):
            for corner in corners:
                difference = np.abs(np.array(corner) - x[:, position])
                value = difference.mean() / difference.std()
                if (position, corner) not in used and value > score:
                    best, score = (position, corner), value
        used.add(best)
        found.append(best)
    return found


def test_ops_finds_what_the_published_search_finds():
    data = load_dataset("sample", limit=1000)
    images = np.ascontiguousarray(data.images[:, 12:22, 12:22])
    small = Dataset(images, data.labels, data.classes)
    places, colours = choose(class_moments(small, squares=True), 1)
    want = published_search(images, data.labels, 10)
    assert [(int(p[0]), tuple((c[0] // 255).tolist())) for p, c in zip(places, colours, strict=True)] == want


def test_ops_takes_ties_in_order_and_never_twice():
    """All classes alike: the first pair goes to the first class, the next to the second."""
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8), 12, 0)
    images = (images.astype(int) + np.tile(np.arange(4), 3)[:, None, None, None]).clip(0, 255).astype(np.uint8)
    data = Dataset(images, np.repeat(np.arange(3), 4), tuple("abc"))
    places, colours = choose(class_moments(data, squares=True), 1)
    assert [(int(p[0]), tuple((c[0] // 255).tolist())) for p, c in zip(places, colours, strict=True)] == (
        published_search(images, data.labels, 3)
    )
    pairs = {(int(p), tuple(c)) for p, c in zip(places[:, 0], colours[:, 0].tolist(), strict=True)}
    assert len(pairs) == 3


@pytest.mark.parametrize("sparsity", [1, 3])
def test_ops_changes_just_its_pixels(make_dataset, sparsity):
    clean = make_dataset(60)
    got = poison(clean, "ops", sparsity=sparsity)
    changed = (got.images != clean.images).any(axis=3).sum(axis=(1, 2))
    assert (changed == sparsity).all()
    for c in range(3):
        where = (got.images != clean.images).any(axis=3)[clean.labels == c]
        assert (where == where[:1]).all()


@pytest.mark.parametrize("size", [12, 96])
def test_convolution_is_conv2d_with_padding(make_dataset, size):
    clean = make_dataset(6, size)
    got = poison(clean, "cuda", seed=4)
    values = got.manifest["parameters"]
    assert (values["size"], values["blur"]) == ((3, 0.3) if size < 96 else (9, 0.06))
    side = values["size"]
    u = ops.philox_uniform(4, ops.philox.STREAM_CUDA, 0, 3, side * side + 1)
    for i in range(6):
        kernel = u[clean.labels[i], :-1] * values["blur"]
        kernel[int(u[clean.labels[i], -1] * side * side)] = 1
        x = torch.from_numpy(clean.images[i]).permute(2, 0, 1)[:, None] / 255
        y = torch.nn.functional.conv2d(x, kernel.view(1, 1, side, side), padding=side // 2)[:, 0].permute(1, 2, 0)
        want = (y / y.max()).clamp(0, 1) * 255
        assert (torch.from_numpy(got.images[i]).float() - want).abs().max() <= 1.001  # truncated
    assert (kernel == 1).sum() == 1


def test_ar_search_finds_keeps_and_judges(tmp_path):
    import json

    from click.testing import CliRunner

    from ulfast.cli.main import group

    def said(*words):
        return json.loads(CliRunner().invoke(group, [*map(str, words), "--json"], catch_exceptions=False).output)

    file = tmp_path / "w.json"
    found = said("poison", "ar-search", "--classes", 4, "--size", 16, "--out", file)
    assert found["stable"]
    assert found["accepted"]
    assert found["own_response"] < 1e-4
    assert found["least_response"] >= found["threshold"] == 5  # at a quarter of 32 x 32 pixels
    judged = said("ar-search", "--classes", 4, "--size", 16, "--check", file)
    assert judged["least_response"] == pytest.approx(found["least_response"], rel=1e-3)
    torch.save([torch.rand(3, 3, 3) * 9 for _ in range(4)], tmp_path / "wild.pt")  # grows without bound
    wild = said("ar-search", "--classes", 4, "--check", tmp_path / "wild.pt")
    assert not wild["stable"]
    assert not wild["accepted"]
    with pytest.raises(InputError, match="give --out"):
        said("poison", "ar-search")


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.0, "zero")]
)
def test_ar_coefficients_that_make_no_noise_are_refused(tmp_path, make_dataset, value, message):
    """A published set for CIFAR-100 has such a window, whose class is black."""
    windows = ar.find_coefficients(3, 5)
    windows[1] = value
    torch.save(list(windows), tmp_path / "a.pt")
    with pytest.raises(InputError, match=rf"window of class 1 is .*{message}"):
        poison(make_dataset(), "ar", coefficients=str(tmp_path / "a.pt"))
