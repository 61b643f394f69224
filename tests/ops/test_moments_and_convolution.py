"""class_moments and perturb_convolution: equal to their twins to the last bit, every level; edges; errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st

from ulfast import ops
from ulfast.ops import reference


def draw(n, shape, classes, seed=0):
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), generator=g, dtype=torch.uint8)
    return images, torch.randint(0, classes, (n,), generator=g)


@pytest.mark.parametrize("d", [1, 15, 16, 17, 64, 3072, 3073, 4099])
def test_moments_are_exact(level, d):
    images, labels = draw(700, (d,), 3)
    labels[labels == 1] = 0  # a class of more than 256 rows, and one of none
    for got, want in zip(ops.class_moments(images, labels, 4), reference.class_moments(images, labels, 4), strict=True):
        assert torch.equal(got, want)


def test_moments_do_not_overflow_a_float():
    images = torch.full((5000, 33), 255, dtype=torch.uint8)
    sums, squares = ops.class_moments(images, torch.zeros(5000, dtype=torch.int64), 1)
    assert (sums == 5000 * 255).all()
    assert (squares == 5000 * 255**2).all()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(0, 40), d=st.integers(1, 200), classes=st.integers(1, 6), threads=st.integers(1, 4))
def test_moments_of_any_shape(n, d, classes, threads):
    images, labels = draw(n, (d,), classes, n + d)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = ops.class_moments(images, labels, classes)
    finally:
        torch.set_num_threads(before)
    want = reference.class_moments(images, labels, classes)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.pairs
@pytest.mark.parametrize("shape", [(8, 8, 3), (32, 32, 3), (9, 13, 1), (1, 1, 3), (5, 40, 3), (64, 64, 3)])
@pytest.mark.parametrize("side", [1, 2, 3, 9])
def test_convolution_equals_its_twin(level, shape, side):
    images, labels = draw(9, shape, 4)
    images[2] = 0  # black stays black
    kernels = torch.rand(4, side, side, generator=torch.Generator().manual_seed(1)) * 0.3
    got = ops.perturb_convolution(images, labels, kernels)
    assert torch.equal(got, reference.perturb_convolution(images, labels, kernels))
    assert (got[2] == 0).all()
    if side == 3:
        assert got[0].max() == 255 or images[0].max() == 0


def test_convolution_is_conv2d():
    images, labels = draw(6, (20, 24, 3), 3)
    kernels = torch.rand(3, 3, 3) * 0.3
    y = torch.stack(
        [
            torch.nn.functional.conv2d(
                image.permute(2, 0, 1)[:, None].double(), kernels[c][None, None].double(), padding=1
            )
            for image, c in zip(images, labels.tolist(), strict=True)
        ]
    )[:, :, 0]
    want = (y / y.flatten(1).amax(1)[:, None, None, None] * 255).permute(0, 2, 3, 1)
    got = ops.perturb_convolution(images, labels, kernels).double()
    assert ((want - got) > -1e-3).all()
    assert ((want - got) < 1 + 1e-3).all()


def test_negative_weights_clip_at_black():
    images, labels = draw(3, (8, 8, 3), 1)
    kernels = torch.tensor([[[0.0, -0.5, 0.0], [-0.5, 1.0, -0.5], [0.0, 0.0, 0.0]]])
    got = ops.perturb_convolution(images, labels, kernels)
    assert torch.equal(got, reference.perturb_convolution(images, labels, kernels))
    assert (got == 0).any()


def test_threads_and_strides(threads):
    images, labels = draw(50, (16, 16, 3), 5)
    kernels = torch.rand(5, 3, 3)
    threads(1)
    one = ops.perturb_convolution(images, labels, kernels), ops.class_moments(images, labels, 5)
    threads(3)
    assert torch.equal(ops.perturb_convolution(images, labels, kernels), one[0])
    assert torch.equal(ops.perturb_convolution(images[::2], labels[::2], kernels), one[0][::2])
    wide = torch.zeros(50, 16, 16, 6, dtype=torch.uint8)
    wide[..., :3] = images
    assert torch.equal(ops.class_moments(wide[..., :3], labels, 5)[0], one[1][0])


def test_opcheck():
    images, labels = draw(5, (6, 6, 3), 2)
    torch.library.opcheck(torch.ops.ulfast.class_moments.default, (images, labels, 2))
    torch.library.opcheck(torch.ops.ulfast.perturb_convolution.default, (images, labels, torch.rand(2, 3, 3)))


def test_errors():
    images, labels = draw(4, (6, 6, 3), 2)
    with pytest.raises(IndexError, match=r"labels\[0\] is 7, outside \[0, 2\)"):
        ops.class_moments(images, torch.tensor([7, 0, 0, 0]), 2)
    with pytest.raises(IndexError, match=r"labels\[1\] is -1"):
        ops.perturb_convolution(images, torch.tensor([0, -1, 0, 0]), torch.rand(2, 3, 3))
    with pytest.raises(ValueError, match=r"kernels must be \(c, side, side\)"):
        ops.perturb_convolution(images, labels, torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match="labels must be"):
        ops.class_moments(images, labels[:2], 2)
    with pytest.raises(TypeError, match="uint8"):
        ops.class_moments(images.float(), labels, 2)
    with pytest.raises(TypeError, match=r"\(n, H, W, C\) uint8"):
        ops.perturb_convolution(images.flatten(1), labels, torch.rand(2, 3, 3))
