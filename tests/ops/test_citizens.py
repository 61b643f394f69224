"""The operators behave like torch's own: autograd, versions, shared memory, the meta device."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops

BASIS = torch.linalg.qr(torch.randn(12, 2, generator=torch.Generator().manual_seed(0)))[0].T.contiguous()
BASES, LABELS = torch.stack([BASIS, BASIS.flip(1)]), torch.tensor([0, 1, 1, 0])

CHANGES = {
    "project_": lambda x: ops.project_(x, BASIS),
    "project out=": lambda x: ops.project(torch.ones(4, 12), BASIS, out=x),
    "project_classwise out=": lambda x: ops.project_classwise(torch.ones(4, 12), BASES, LABELS, out=x),
    "softmax_regression_step": lambda x: ops.softmax_regression_step(torch.ones(4, 12), LABELS, x, 0.1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_tensor_are_known_to_autograd(name):
    change = CHANGES[name]
    x = torch.rand(4, 12)
    change(x)
    assert x._version == 1
    leaf = torch.rand(4, 12, requires_grad=True)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        change(leaf)
    with pytest.raises(RuntimeError, match="has no derivative, but one of its arguments requires grad"):
        change(leaf * 1)
    with torch.no_grad():
        change(leaf)  # as an optimizer changes its parameters
    assert leaf._version == 1
    with torch.inference_mode():
        change(torch.rand(4, 12))


@pytest.mark.parametrize("name", CHANGES)
def test_a_backward_pass_notices_a_saved_tensor_that_was_changed(name):
    a = torch.rand(4, 12, requires_grad=True)
    x = a.detach() * 1
    y = (a * x).sum()
    CHANGES[name](x)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        y.backward()


def test_out_has_memory_of_its_own_or_is_x():
    memory = torch.rand(5, 12)
    with pytest.raises(ValueError, match="project: out shares memory with x"):
        ops.project(memory[:4], BASIS, out=memory[1:])
    with pytest.raises(ValueError, match="project_classwise: out shares memory with x"):
        ops.project_classwise(memory[:4], BASES, LABELS, out=memory[1:])
    square = torch.linalg.qr(torch.rand(12, 12))[0].contiguous()
    with pytest.raises(ValueError, match="project: out shares memory with basis"):
        ops.project(torch.rand(2, 12), square, out=square[3:5])
    with pytest.raises(ValueError, match="project_: x shares memory with basis"):
        ops.project_(square[3:5], square)
    x = torch.rand(4, 12)
    want = ops.project(x, BASIS)
    assert torch.equal(ops.project(x, BASIS, out=x), want)
    halves = torch.rand(8, 12)
    want = ops.project(halves[:4], BASIS)
    assert torch.equal(ops.project(halves[:4], BASIS, out=halves[4:]), want)


@pytest.mark.parametrize(
    "call",
    [
        lambda meta: ops.project(torch.ones(4, 12), meta(2, 12)),
        lambda meta: ops.project_classwise(torch.ones(4, 12), BASES, meta(4, dtype=torch.int64)),
        lambda meta: ops.softmax_regression_step(torch.ones(4, 12), LABELS, meta(2, 12), 0.1),
        lambda meta: ops.perturb_linear(torch.zeros(4, 12, dtype=torch.uint8), LABELS, meta(2, 12)),
        lambda meta: ops.perturb_convolution(torch.zeros(4, 8, 8, 3, dtype=torch.uint8), LABELS, meta(2, 3, 3)),
    ],
)
def test_one_argument_on_the_meta_device_is_an_error(call):
    with pytest.raises(ValueError, match="one argument is on the meta device, the others are on cpu"):
        call(lambda *shape, **options: torch.empty(*shape, device="meta", **options))
