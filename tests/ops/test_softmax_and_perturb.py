"""softmax_regression_step, apply_perturbation, Philox and perturb_lsp against their twins."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from ulfast import ops
from ulfast.ops import reference


@pytest.mark.pairs("level", "dtype")
@pytest.mark.parametrize("classes", [2, 5, 7, 10, 13, 100])
@pytest.mark.parametrize("d", [1, 47, 48, 3072, 3073])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_step_matches_its_twin(level, classes, d, dtype):
    g = torch.Generator().manual_seed(classes + d)
    x = torch.randint(0, 256, (70, d), generator=g, dtype=torch.uint8)
    x = x if dtype == torch.uint8 else x / 255
    labels, index = torch.randint(0, classes, (70,), generator=g), torch.randint(0, 70, (50,), generator=g)
    start = torch.randn(classes, d, generator=g) * 0.01
    ours, twin = start.clone(), start.double()
    got = ops.softmax_regression_step(x, labels, ours, 0.1, index=index)
    want = reference.softmax_regression_step(x, labels, twin, 0.1, index)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.double(), twin, atol=1e-6, rtol=1e-5)


def test_step_is_the_gradient_that_autograd_gives():
    x, labels = torch.rand(20, 12), torch.randint(0, 3, (20,))
    weight = torch.randn(3, 12, requires_grad=True)
    torch.nn.functional.cross_entropy(x @ weight.T, labels).backward()
    ours = weight.detach().clone()
    ops.softmax_regression_step(x, labels, ours, 0.5)
    torch.testing.assert_close(ours, weight.detach() - 0.5 * weight.grad)


def test_step_survives_large_logits_and_zero_rate(threads):
    x, labels = torch.full((4, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    weight = torch.tensor([[500.0, 500.0], [-500.0, -500.0]])
    before = weight.clone()
    loss, correct = ops.softmax_regression_step(x, labels, weight, 0.0).tolist()
    assert loss == pytest.approx(1000.0)
    assert correct == 2
    assert torch.equal(weight, before)
    for count in (1, 3):
        threads(count)
        w = torch.zeros(2, 2)
        ops.softmax_regression_step(x, labels, w, 0.1)
        assert w.abs().max() < 1e-8  # one image, both labels: the gradients cancel


@pytest.mark.parametrize(
    ("labels", "index", "message"),
    [
        (torch.tensor([0, 3]), None, r"label of row 1 is 3, outside \[0, 3\)"),
        (torch.tensor([0, -1]), torch.tensor([1]), "label of row 1 is -1"),
        (torch.tensor([0, 1]), torch.tensor([0, 2]), r"index\[1\] is 2, outside \[0, 2\)"),
    ],
)
def test_step_refuses_values_out_of_range(labels, index, message):
    weight = torch.zeros(3, 4)
    with pytest.raises(IndexError, match=message):
        ops.softmax_regression_step(torch.zeros(2, 4, dtype=torch.uint8), labels, weight, 0.1, index=index)
    assert not weight.any()


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("d", [1, 15, 16, 17, 3073])
def test_apply_is_exact(level, truncate, d):
    g = torch.Generator().manual_seed(d)
    images = torch.randint(0, 256, (9, d), generator=g, dtype=torch.uint8)
    delta, index = torch.randn(4, d, generator=g) * 0.3, torch.randint(0, 4, (9,), generator=g)
    delta[0] = 0.5 / 255  # exactly half a level: rounds to even
    got = ops.apply_perturbation(images, delta, index=index, truncate=truncate)
    assert torch.equal(got, reference.apply_perturbation(images, delta, index, truncate))
    assert torch.equal(ops.apply_perturbation(images, torch.zeros(9, d), truncate=truncate), images)


def test_apply_clamps_nan():
    images = torch.full((1, 3), 7, dtype=torch.uint8)
    delta = torch.tensor([[math.nan, math.inf, -math.inf]])
    assert ops.apply_perturbation(images, delta).tolist() == [[0, 255, 0]]
    with pytest.raises(IndexError, match=r"index\[0\] is 1"):
        ops.apply_perturbation(images, delta, index=torch.tensor([1]))


def test_philox_known_answers():
    """The published vectors of Random123 for philox4x32-10."""
    zero = ops.philox.words(0, 0, 0, 1, 4)[0].tolist()
    assert [f"{w:08x}" for w in zero] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = -1  # all ones
    assert ops.philox_uniform(0, 0, 0, 1, 4)[0].tolist() == [(w >> 8) / 2**24 for w in zero]
    assert torch.equal(
        ops.philox_uniform(ones, 7, 5, 2, 9), reference.philox_uniform(ones, 7, 5, 2, 9, device=torch.device("cpu"))
    )


@pytest.mark.parametrize("d", [1, 2, 3, 4, 63, 64, 65, 1000])
def test_philox_equals_its_twin_bit_for_bit(level, d, threads):
    for seed, first in ((0, 0), (-(2**63), 7), (2**63 - 1, 2**35)):
        for count in (1, 3):
            threads(count)
            assert torch.equal(
                ops.philox_normal(seed, 2, first, 300, d), reference.philox_normal(seed, 2, first, 300, d)
            )
            assert torch.equal(ops.philox_uniform(seed, 2, first, 9, d), reference.philox_uniform(seed, 2, first, 9, d))


def test_philox_rows_do_not_depend_on_the_batch_and_streams_differ():
    whole = ops.philox_normal(3, 1, 0, 50, 33)
    assert torch.equal(ops.philox_normal(3, 1, 20, 5, 33), whole[20:25])
    assert not torch.equal(ops.philox_normal(3, 2, 0, 50, 33), whole)
    assert not torch.equal(ops.philox_normal(4, 1, 0, 50, 33), whole)


def test_normals_are_normal():
    z = ops.philox_normal(11, 1, 0, 1000, 1000).double().flatten()
    assert abs(z.mean()) < 0.004
    assert abs(z.std() - 1) < 0.003
    assert abs((z**3).mean()) < 0.01
    assert abs((z**4).mean() - 3) < 0.03
    edges = torch.linspace(-3, 3, 25, dtype=torch.float64)
    empirical = torch.stack([(z <= e).double().mean() for e in edges])
    assert (empirical - 0.5 * (1 + torch.erf(edges / 2**0.5))).abs().max() < 0.002  # Kolmogorov-Smirnov, n = 1e6


@pytest.mark.parametrize("size", [(32, 32, 3), (30, 33, 3), (8, 8, 1)])
def test_lsp_matches_its_twin(level, size):
    patch = 8
    m = math.ceil(size[0] / patch) * math.ceil(size[1] / patch) * size[2]
    g = torch.Generator().manual_seed(0)
    centroids, mixing = torch.randn(10, m, generator=g) * 10, torch.rand(10, m, m, generator=g) * 2 - 1
    labels = torch.randint(0, 10, (100,), generator=g)
    got = ops.perturb_lsp(labels, centroids, mixing, seed=3, first=9, size=size, patch=patch, norm=1.3)
    torch.testing.assert_close(got, reference.perturb_lsp(labels, centroids, mixing, 3, 9, *size, patch, 1.3))
    torch.testing.assert_close(got.flatten(1).double().norm(dim=1), torch.full((100,), 1.3, dtype=torch.float64))
    part = ops.perturb_lsp(labels[40:50], centroids, mixing, seed=3, first=49, size=size, patch=patch, norm=1.3)
    assert torch.equal(part, got[40:50])


def test_lsp_bytes_are_pinned(level, threads):
    """The same bytes on every level, thread count and release: a poisoned data set can be made again from its seed."""
    m = 4 * 4 * 3
    centroids = ops.philox_uniform(1, 2, 0, 3, m) * 20 - 10
    mixing = (ops.philox_uniform(1, 2, 3, 3, m * m) * 2 - 1).view(3, m, m)
    for count in (1, 2):
        threads(count)
        labels = torch.tensor([0, 2, 1, 1])
        delta = ops.perturb_lsp(labels, centroids, mixing, seed=5, first=0, size=(32, 32, 3), patch=8, norm=1.304)
        digest = hashlib.sha256(delta.numpy().tobytes()).hexdigest()
        assert digest == "92e4bc90ab1deb23c8f8f17b284381777ad508379b8100370272bef6eaf88f62"


@pytest.mark.parametrize(("size", "patch"), [((32, 32, 3), 8), ((17, 11, 1), 4), ((9, 33, 3), 32)])
@pytest.mark.parametrize("truncate", [True, False])
def test_lsp_straight_onto_images_equals_two_steps(level, size, patch, truncate):
    m = -(-size[0] // patch) * -(-size[1] // patch) * size[2]
    labels = torch.tensor([0, 2, 1, 1, 0])
    centroids, mixing = torch.randn(3, m), torch.rand(3, m, m)
    images = torch.randint(0, 256, (5, *size), dtype=torch.uint8)
    options = {"seed": 5, "first": 3, "size": size, "patch": patch, "norm": 1.3}
    delta = ops.perturb_lsp(labels, centroids, mixing, **options)
    want = ops.apply_perturbation(images, delta, truncate=truncate)
    assert torch.equal(ops.perturb_lsp(labels, centroids, mixing, **options, images=images, truncate=truncate), want)
    with pytest.raises(ValueError, match="images must be"):
        ops.perturb_lsp(labels, centroids, mixing, **options, images=images[:4])


def test_lsp_errors():
    centroids, mixing, labels = torch.zeros(2, 3), torch.zeros(2, 3, 3), torch.tensor([0, 2])
    with pytest.raises(IndexError, match=r"labels\[1\] is 2"):
        ops.perturb_lsp(labels, centroids, mixing, seed=0, first=0, size=(8, 8, 3), patch=8, norm=1.0)
    with pytest.raises(ValueError, match=r"centroids must be \(c, 12\)"):
        ops.perturb_lsp(labels, centroids, mixing, seed=0, first=0, size=(16, 16, 3), patch=8, norm=1.0)


def test_opcheck():
    x, labels, weight = torch.rand(4, 6), torch.tensor([0, 1, 1, 0]), torch.zeros(2, 6)
    torch.library.opcheck(torch.ops.ulfast.softmax_regression_step.default, (x, labels, weight, 0.1))
    images = torch.zeros(4, 6, dtype=torch.uint8)
    torch.library.opcheck(torch.ops.ulfast.apply_perturbation.default, (images, torch.zeros(2, 6), labels))
    torch.library.opcheck(torch.ops.ulfast.philox_normal.default, (0, 1, 0, 3, 5))
    torch.library.opcheck(
        torch.ops.ulfast.perturb_lsp.default, (labels, torch.zeros(2, 3), torch.zeros(2, 3, 3), 0, 0, 8, 8, 3, 8, 1.0)
    )
