"""The CUDA kernels of the generators against the CPU's kernels. They need a GPU and an extension built with nvcc."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops, poison
from ulfast.poisons import POISONS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
SHAPES = [(0, 8, 8, 3), (1, 9, 8, 1), (5, 8, 9, 3), (64, 32, 32, 3), (3, 33, 40, 3), (2, 224, 224, 3)]


def calls(shape, classes=4):
    """name -> (operator of tensors, its tensors): the images come first, the labels second."""
    n, h, w, c = shape
    g = torch.Generator().manual_seed(n + h)
    images = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    labels = torch.randint(0, classes, (n,), generator=g)
    patch = 32 if h > 100 else 8
    m = -(-h // patch) * -(-w // patch) * c
    centroids, mixing = torch.randn(classes, m, generator=g) * 10, torch.rand(classes, m, m, generator=g) * 2 - 1
    windows, filters = torch.rand(classes, c, 3, 3, generator=g) / 8, torch.rand(classes, 9, 9, generator=g)

    def lsp(x, y, a, b):
        return ops.perturb_lsp(y, a, b, seed=3, first=9, size=(h, w, c), patch=patch, norm=1.3, images=x)

    def ar(x, y, a):
        return ops.perturb_ar(y, a, seed=3, first=9, size=(h, w), images=x)

    return {
        "lsp": (lsp, [images, labels, centroids, mixing]),
        "ar": (ar, [images, labels, windows]),
        "convolution": (ops.perturb_convolution, [images, labels, filters]),
        "moments": (lambda x, y: torch.stack(ops.class_moments(x, y, classes)), [images, labels]),
    }


def near(got, want):
    """uint8: at most a level apart in less than 1e-4 of the pixels (one pixel of a few); sums: equal."""
    gap = (got.cpu().long() - want.long()).abs()
    if want.dtype == torch.int64:
        assert not gap.any()
    else:
        assert gap.sum() <= max(1, 1e-4 * gap.numel())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["lsp", "ar", "convolution", "moments"])
def test_is_the_cpus(name, shape):
    op, tensors = calls(shape)[name]
    near(op(*(t.cuda() for t in tensors)), op(*tensors))


@pytest.mark.parametrize("name", ["lsp", "ar", "convolution"])
def test_a_label_out_of_range_leaves_the_image(name):
    op, tensors = calls((5, 9, 8, 3))[name]
    tensors[1][2], tensors[1][4] = -1, 4
    got = op(*(t.cuda() for t in tensors)).cpu()
    assert torch.equal(got[[2, 4]], tensors[0][[2, 4]])


def test_moments_leave_out_labels_out_of_range():
    op, (images, labels) = calls((64, 8, 8, 3))["moments"]
    wrong = labels.clone()
    wrong[5], wrong[6] = -1, 4
    keep = (wrong >= 0) & (wrong < 4)
    near(op(images.cuda(), wrong.cuda()), op(images[keep], labels[keep]))


@pytest.mark.parametrize("name", ["lsp", "ar", "convolution", "moments"])
def test_it_waits_for_nothing_and_can_be_captured(name):
    op, tensors = calls((8, 32, 32, 3))[name]
    there = [t.cuda() for t in tensors]
    op(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        op(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(*there)
    there[0].random_(0, 256)
    graph.replay()
    near(out, op(there[0].cpu(), *tensors[1:]))


@pytest.mark.parametrize(("n", "d", "classes"), [(0, 12, 2), (5, 300, 10), (64, 3072, 10), (3, 3073, 100)])
def test_linear(n, d, classes):
    """The sign of a slope that is zero up to rounding is arbitrary: a few values may go the other way."""
    g = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    labels, weight = torch.randint(0, classes, (n,), generator=g), torch.randn(classes, d, generator=g) / 10
    given = (7, 2 / 255, 8 / 255, 0.9)
    op = torch.ops.ulfast.perturb_linear
    got, want = op(images.cuda(), labels.cuda(), weight.cuda(), *given).cpu(), op(images, labels, weight, *given)
    assert (got != want).sum() <= 0.003 * got.numel()
    labels[:1] = classes
    other = op(images.cuda(), labels.cuda(), weight.cuda(), *given).cpu()
    assert torch.equal(other[:1], images[:1])
    assert torch.equal(other[1:], got[1:])


@pytest.mark.parametrize("size", [12, 40])
@pytest.mark.parametrize("method", [name for name, one in POISONS.items() if not one.trains and name != "file"])
def test_a_poison_has_the_cpus_bytes(make_dataset, method, size):
    dataset = make_dataset(90, size)
    got, want = (poison(dataset, method, seed=3, device=device) for device in ("cuda", "cpu"))
    gap = torch.from_numpy(got.images).int() - torch.from_numpy(want.images)
    if method == "pil":
        assert gap.count_nonzero() <= 0.003 * gap.numel()
    elif method == "ar":
        assert gap.abs().max() <= 1
        assert gap.count_nonzero() <= max(1, 1e-4 * gap.numel())
    else:
        assert not gap.any()
