"""pgd_step: against its twin and the defining properties, every level and layout; opcheck; errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast import ops
from ulfast.ops import reference


def draw(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    start = torch.rand(shape, generator=g)
    x = (start + 0.02 * torch.randn(shape, generator=g)).clamp(0, 1)
    grad = torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) > 0.1)  # some are exactly zero
    return x, grad, start


@pytest.mark.pairs("level", "norm")
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("d", [1, 15, 16, 17, 1024, 1040, 3072, 3073, 12288])
@pytest.mark.parametrize("clamp", [True, False])
def test_equals_its_twin(level, norm, d, clamp):
    for alpha, eps in ((0.01, 8 / 255), (0.5, 0.1), (-0.01, 8 / 255), (0.01, 0.0)):
        x, grad, start = draw((5, d))
        twin = x.clone()
        reference.pgd_step(twin, grad, start, alpha, eps, norm, clamp)
        assert ops.pgd_step(x, grad, start, alpha=alpha, eps=eps, norm=norm, clamp=clamp) is x
        torch.testing.assert_close(x, twin, atol=2e-7, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 20), d=st.integers(1, 200), norm=st.sampled_from(["linf", "l2"]), threads=st.integers(1, 4))
def test_any_shape(n, d, norm, threads):
    x, grad, start = draw((n, d))
    twin, before = x.clone(), torch.get_num_threads()
    reference.pgd_step(twin, grad, start, 0.05, 0.1, norm)
    torch.set_num_threads(threads)
    try:
        ops.pgd_step(x, grad, start, alpha=0.05, eps=0.1, norm=norm)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(x, twin, atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_many_steps_end_on_the_ball_and_ascend(norm):
    eps = 8 / 255 if norm == "linf" else 0.5
    x, grad, start = draw((6, 3, 8, 8))
    x = start.clone()
    for _ in range(40):
        ops.pgd_step(x, grad, start, alpha=eps / 4, eps=eps, norm=norm, clamp=False)
    delta = (x - start).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    torch.testing.assert_close(size, torch.full((6,), eps), atol=1e-6, rtol=1e-5)
    assert ((delta * grad.flatten(1)).sum(1) > 0).all()
    bounded = start.clone()
    for _ in range(5):
        ops.pgd_step(bounded, grad, start, alpha=1.0, eps=1.0, norm="linf")
    assert bounded.min() == 0
    assert bounded.max() == 1


def test_layouts():
    x, grad, start = draw((4, 3, 8, 8))
    want = ops.pgd_step(x.clone(), grad, start, alpha=0.01, eps=0.03)
    last = x.clone().to(memory_format=torch.channels_last)
    got = ops.pgd_step(last, grad, start.to(memory_format=torch.channels_last), alpha=0.01, eps=0.03)
    assert got.data_ptr() == last.data_ptr()
    assert torch.equal(got, want)
    wide = torch.zeros(4, 3, 8, 10)
    wide[..., :8] = x
    ops.pgd_step(wide[..., :8], grad, start, alpha=0.01, eps=0.03)
    assert torch.equal(wide[..., :8], want)
    assert (wide[..., 8:] == 0).all()


def test_a_gradient_of_nothing_or_nan_does_not_step():
    start = torch.full((2, 20), 0.5)
    x = start.clone()
    grad = torch.zeros(2, 20)
    ops.pgd_step(x, grad, start, alpha=0.1, eps=0.2, norm="l2")
    assert torch.equal(x, start)
    grad[0, 3] = float("nan")
    ops.pgd_step(x, grad, start, alpha=0.1, eps=0.2, norm="linf")
    assert torch.equal(x, start)


def test_opcheck():
    x, grad, start = draw((3, 11))
    torch.library.opcheck(torch.ops.ulfast.pgd_step.default, (x, grad, start, 0.1, 0.2, "linf"))
    compiled = torch.compile(
        lambda a, b, c: ops.pgd_step(a, b, c, alpha=0.01, eps=0.1) + 0, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(
        compiled(x.clone(), grad, start), ops.pgd_step(x.clone(), grad, start, alpha=0.01, eps=0.1)
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm": "l1"}, ValueError, "l2, linf"),
        ({"eps": -1.0}, ValueError, "negative"),
        ({"grad": torch.zeros(3, 5)}, ValueError, r"grad must be \(n, \.\.\.\) like x \(3, 4\)"),
        ({"start": torch.zeros(3, 4, dtype=torch.float64)}, TypeError, "start must be float32"),
    ],
)
def test_errors(change, error, message):
    given_ = {"x": torch.zeros(3, 4), "grad": torch.zeros(3, 4), "start": torch.zeros(3, 4), "alpha": 0.1, "eps": 0.1}
    with pytest.raises(error, match=message):
        ops.pgd_step(**(given_ | change))


def test_autograd_knows_that_x_changes():
    x, other = torch.rand(4, 12), torch.ones(4, 12)
    ops.pgd_step(x, other, other, alpha=0.1, eps=0.1)
    assert x._version == 1
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        ops.pgd_step(x.requires_grad_(), other, other, alpha=0.1, eps=0.1)
    with pytest.raises(ValueError, match="one argument is on the meta device, the others are on cpu"):
        ops.pgd_step(x.detach(), other.to("meta"), other, alpha=0.1, eps=0.1)
