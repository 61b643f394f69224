"""perturb_linear: against its twin, every level; the bound, the objective, its derivative; errors."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast import ops
from ulfast.ops import reference

EPS = 8 / 255


def draw(n, d, classes, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    return images, torch.randint(0, classes, (n,), generator=g), 0.3 * torch.randn(classes, d, generator=g)


def objective(images, poisoned, labels, weight, share=0.9):
    """The two terms in float64, of the noise as it was published (images far from black and white)."""
    noise, w = (images.double() - poisoned.double()) / 255, weight.double()
    own = torch.nn.functional.cross_entropy(noise @ w.T, labels)
    rest = (poisoned.double() / 255 @ w.T).log_softmax(1)
    return float(share * own - (1 - share) * (rest.mean(1) + torch.tensor(float(w.shape[0])).log()).mean())


@pytest.mark.pairs
@pytest.mark.parametrize("d", [1, 15, 16, 17, 64, 513, 3072, 3073])
@pytest.mark.parametrize("classes", [2, 10, 17])
def test_equals_its_twin(level, d, classes):
    images, labels, weight = draw(11, d, classes)
    got = ops.perturb_linear(images, labels, weight, steps=6, alpha=EPS / 10, eps=EPS)
    want = reference.perturb_linear(images, labels, weight, 6, EPS / 10, EPS, 0.9)
    # Signs of gradients that are zero but for rounding may differ, and with them later steps of that image.
    assert (got != want).float().mean() < 2e-3


@settings(max_examples=25, deadline=None)
@given(n=st.integers(0, 13), d=st.integers(1, 70), classes=st.integers(1, 6), threads=st.integers(1, 4))
def test_any_shape(n, d, classes, threads):
    images, labels, weight = draw(n, d, classes, n + d)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.perturb_linear(images, labels, weight, steps=3)
    finally:
        torch.set_num_threads(before)
    assert got.shape == images.shape
    if classes > 1:
        want = reference.perturb_linear(images, labels, weight, 3, 0.8 / 255, EPS, 0.9)
        assert (got != want).sum() <= 2


@pytest.mark.parametrize(("eps", "levels"), [(8 / 255, 8), (0.03, 7), (0.5 / 255, 0), (0.0, 0), (1.0, 255)])
def test_the_bound_holds_after_rounding(level, eps, levels):
    images, labels, weight = draw(9, 300, 4)
    got = ops.perturb_linear(images, labels, weight, steps=20, alpha=eps / 4, eps=eps)
    assert (got.int() - images.int()).abs().max() <= levels
    if levels == 8:
        inside = (images > 8) & (images < 247)
        assert ((got.int() - images.int()).abs()[inside] == 8).float().mean() > 0.5


def test_every_step_goes_down(level):
    images, labels, weight = draw(40, 192, 5)
    images = images // 2 + 60
    losses = [
        objective(images, ops.perturb_linear(images, labels, weight, steps=s, alpha=1 / 255, eps=EPS), labels, weight)
        for s in range(9)
    ]
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_the_first_step_is_the_sign_of_autograd():
    images, labels, weight = draw(20, 96, 4)
    images = images // 2 + 60
    noise = torch.zeros(20, 96, dtype=torch.float64, requires_grad=True)
    w, x = weight.double(), images.double() / 255
    own = torch.nn.functional.cross_entropy(noise @ w.T, labels, reduction="sum")
    rest = ((x - noise) @ w.T).log_softmax(1)
    uniform = torch.full_like(rest, 1 / 4)
    loss = 0.7 * own + 0.3 * torch.nn.functional.kl_div(rest, uniform, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, noise)
    got = ops.perturb_linear(images, labels, weight, steps=1, alpha=2 / 255, eps=EPS, share=0.7)
    assert torch.equal(got.int() - images.int(), 2 * gradient.sign().int())


def test_opcheck():
    images, labels, weight = draw(3, 12, 3)
    arguments = (images, labels, weight, 2, 0.01, 0.03, 0.9)
    torch.library.opcheck(torch.ops.ulfast.perturb_linear.default, arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(3, 4)}, TypeError, "uint8"),
        ({"weight": torch.zeros(2, 5)}, ValueError, r"weight must be \(c, 4\)"),
        ({"labels": torch.tensor([0, 1])}, ValueError, r"labels must be \(3,\)"),
        ({"labels": torch.tensor([0, 2, 1])}, IndexError, r"labels\[1\] is 2, outside \[0, 2\)"),
        ({"share": 1.5}, ValueError, "share between 0 and 1"),
        ({"steps": -1}, ValueError, "must not be negative"),
    ],
)
def test_errors(change, error, message):
    given_ = {
        "images": torch.zeros(3, 4, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 1]),
        "weight": torch.zeros(2, 4),
    }
    with pytest.raises(error, match=message):
        ops.perturb_linear(**(given_ | change))
