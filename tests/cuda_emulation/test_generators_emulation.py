"""The CUDA kernels of the generators, emulated on the CPU, against their twins: edges, shards, labels out of range."""

from __future__ import annotations

import pytest
import torch

from ulfast.ops import cuda, cuda_generators, reference


def draw(n, h, w, c, classes):
    g = torch.Generator().manual_seed(n + h)
    images = torch.randint(0, 256, (n, h, w, c), generator=g, dtype=torch.uint8)
    return images, torch.randint(0, classes, (n,), generator=g)


SIZES = [(0, 8, 8, 3, 2), (1, 9, 8, 1, 2), (5, 8, 9, 3, 10), (1, 33, 32, 3, 2), (1, 40, 33, 1, 10)]


def near(got, want):
    """At most one level apart, in less than 1e-4 of the pixels: here in at most one."""
    gap = (got.int() - want.int()).abs()
    assert gap.sum() <= max(1, 1e-4 * gap.numel())


@pytest.mark.pairs
@pytest.mark.parametrize(("n", "h", "w", "c", "classes"), [*SIZES, (2, 42, 7, 3, 2)])
@pytest.mark.parametrize("kind", ["l2", "linf", "none"])
@pytest.mark.parametrize("shared", ["102400", "9000"])
def test_ar(kernels, n, h, w, c, classes, kind, shared):
    """Little shared memory makes strips of a few rows."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    images, labels = draw(n, h, w, c, classes)
    windows = torch.rand(classes, c, 3, 3, generator=torch.Generator().manual_seed(3)) / 8
    got = cuda_generators.perturb_ar(labels, windows, 5, 3, h, w, 0.7, kind)
    want = reference.perturb_ar(labels, windows, 5, 3, h, w, 0.7, kind)
    torch.testing.assert_close(got, want, rtol=0 if kind == "none" else 3e-7, atol=0)
    near(
        cuda_generators.perturb_ar(labels, windows, 5, 3, h, w, 0.7, kind, images),
        reference.perturb_ar(labels, windows, 5, 3, h, w, 0.7, kind, images),
    )


@pytest.mark.parametrize(("n", "h", "w", "c", "classes"), [*SIZES, (9, 32, 32, 3, 10), (3, 12, 28, 1, 2)])
def test_lsp(kernels, n, h, w, c, classes):
    m = -(-h // 8) * -(-w // 8) * c
    g = torch.Generator().manual_seed(0)
    centroids, mixing = torch.randn(classes, m, generator=g) * 10, torch.rand(classes, m, m, generator=g)
    images, labels = draw(n, h, w, c, classes)
    given = (labels, centroids, mixing, 3, 9, h, w, c, 8, 1.3)
    torch.testing.assert_close(cuda_generators.perturb_lsp(*given), reference.perturb_lsp(*given))
    for truncate in (True, False):
        got, want = (f.perturb_lsp(*given, images, truncate) for f in (cuda_generators, reference))
        near(got, want)
        wrong = labels.clone()
        wrong[:1] = classes
        other = cuda_generators.perturb_lsp(wrong, *given[1:], images, truncate)
        assert torch.equal(other[:1], images[:1])
        assert torch.equal(other[1:], got[1:])


@pytest.mark.pairs
@pytest.mark.parametrize(("n", "h", "w", "c", "classes"), SIZES)
@pytest.mark.parametrize("side", [1, 2, 3, 13])
def test_convolution_is_its_twin(kernels, n, h, w, c, classes, side):
    images, labels = draw(n, h, w, c, classes)
    images[:1] = images[:1] if n < 5 else 0
    filters = torch.rand(classes, side, side, generator=torch.Generator().manual_seed(1)) - 0.2
    got = cuda_generators.perturb_convolution(images, labels, filters)
    assert torch.equal(got, reference.perturb_convolution(images, labels, filters))


@pytest.mark.parametrize(("h", "w", "c"), [(5, 4, 1), (4, 8, 3), (8, 64, 1), (16, 32, 3)])
def test_convolution_of_more_images_than_blocks(kernels, h, w, c):
    """A block takes image after image; a filter of tiny or huge weights leaves the range of the short division."""
    kernels.setenv("ULFAST_EMULATED_SMS", "1")
    images, labels = draw(40, h, w, c, 5)
    images[17] = 0
    filters = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(1)) - 0.2
    filters[2:] *= torch.tensor([1e-30, 1e30])[:, None, None]
    keep = labels < 4
    got = cuda_generators.perturb_convolution(images, labels, filters)
    assert torch.equal(got[~keep], images[~keep])
    assert torch.equal(got[keep], reference.perturb_convolution(images[keep], labels[keep], filters))


@pytest.mark.parametrize(
    ("n", "h", "w", "c", "classes"),
    [*SIZES, (1030, 3, 3, 1, 3), (1030, 3, 3, 1, 40), (700, 4, 33, 1, 31), (90, 9, 8, 3, 32)],
)
def test_moments_are_exact(kernels, n, h, w, c, classes):
    images, labels = draw(n, h, w, c, classes)
    for got, want in zip(
        cuda_generators.class_moments(images, labels, classes + 1),
        reference.class_moments(images, labels, classes + 1),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("n", "d", "classes"), [(0, 12, 2), (1, 12, 2), (5, 300, 10), (9, 65, 33), (4, 700, 8)])
def test_linear(kernels, n, d, classes):
    """The sign of a slope that is zero up to rounding is arbitrary: a few values may go the other way."""
    g = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    labels, weight = torch.randint(0, classes, (n,), generator=g), torch.randn(classes, d, generator=g) / 10
    given = (images, labels, weight, 7, 2 / 255, 8 / 255, 0.9)
    got, want = cuda_generators.perturb_linear(*given), reference.perturb_linear(*given)
    assert (got != want).sum() <= 0.003 * got.numel()
    assert (got.int() - images.int()).abs().max() <= 8 if n else len(got) == 0
    wrong = labels.clone()
    wrong[:1] = classes
    other = cuda_generators.perturb_linear(images, wrong, *given[2:])
    assert torch.equal(other[:1], images[:1])
    assert torch.equal(other[1:], got[1:])


@pytest.mark.parametrize(("n", "d"), [(1, 4), (3, 1028), (9, 2048), (4, 33)])
@pytest.mark.parametrize("truncate", [True, False])
def test_apply_perturbation(kernels, n, d, truncate):
    """By index and one each; an index out of range leaves its image."""
    g = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, d), generator=g, dtype=torch.uint8)
    delta, index = torch.randn(n + 2, d, generator=g), torch.randint(0, n + 2, (n,), generator=g)
    for given in ((images, delta, index, truncate), (images, delta[:n].contiguous(), None, truncate)):
        assert torch.equal(cuda.apply_perturbation(*given), reference.apply_perturbation(*given))
    wrong = index.clone()
    wrong[-1] = n + 2
    got = cuda.apply_perturbation(images, delta, wrong, truncate)
    assert torch.equal(got[-1], images[-1])
    assert torch.equal(got[:-1], reference.apply_perturbation(images, delta, index, truncate)[:-1])


def test_labels_out_of_range_and_shards(kernels):
    images, labels = draw(5, 9, 8, 3, 2)
    g = torch.Generator().manual_seed(4)
    windows, filters = torch.rand(2, 3, 3, 3, generator=g) / 8, torch.rand(2, 3, 3, generator=g)
    centroids, mixing = torch.randn(2, 6, generator=g), torch.rand(2, 6, 6, generator=g)

    def all_of(labels, part, first):
        ar, lsp = (labels, windows, 1, first, 9, 8, 1.0, "l2"), (labels, centroids, mixing, 1, first, 9, 8, 3, 8, 1.0)
        made = [cuda_generators.perturb_ar(*ar, part), cuda_generators.perturb_lsp(*lsp, part)]
        made.append(cuda_generators.perturb_convolution(part, labels, filters))
        return made, [cuda_generators.perturb_ar(*ar), cuda_generators.perturb_lsp(*lsp)]

    whole = all_of(labels, images, 7)
    part = all_of(labels[2:], images[2:], 9)
    for a, b in zip(whole[0] + whole[1], part[0] + part[1], strict=True):
        assert torch.equal(a[2:], b)
    wrong = labels.clone()
    wrong[1], wrong[3] = -1, 2
    onto, alone = all_of(wrong, images, 7)
    for got, good in zip(onto, whole[0], strict=True):
        assert torch.equal(got[[1, 3]], images[[1, 3]])
        assert torch.equal(got[[0, 2, 4]], good[[0, 2, 4]])
    for got, good in zip(alone, whole[1], strict=True):
        assert got[[1, 3]].isnan().all()
        assert torch.equal(got[[0, 2, 4]], good[[0, 2, 4]])
    keep = [0, 2, 4]
    for got, want in zip(
        cuda_generators.class_moments(images, wrong, 2),
        reference.class_moments(images[keep], labels[keep], 2),
        strict=True,
    ):
        assert torch.equal(got, want)
