"""CUDA kernels run on the CPU by cuda_runtime.h beside this file: every index and dtype against the twins, forwards and
backwards through the threads. It cannot detect speed, alignment faults or memory order."""

from __future__ import annotations

import pytest
import torch

from ulfast.ops import _extension, cuda, cuda_generators, reference

TOLERANCE = {torch.uint8: 3e-6, torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def draw(n, d, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, d), generator=g, dtype=dtype)
    return torch.rand(n, d, generator=g, dtype=torch.float64).to(dtype)


def rows(d, k, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(k, d, generator=g, dtype=torch.float64), dim=1) / max(1, k) ** 0.5


def check(got, want, dtype):
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("n", "d", "k"), [(1, 1, 1), (3, 15, 3), (5, 16, 9), (17, 17, 10), (19, 1030, 17), (9, 40, 32)]
)
@pytest.mark.parametrize("shared", ["102400", "9000"])
def test_project(kernels, dtype, n, d, k, shared):
    """Small shared memory and L2 cut the rows in pieces and the batch in chunks."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_L2", "20000")
    x, basis = draw(n, d, dtype), rows(d, k).to(torch.float64 if dtype == torch.float64 else torch.float32)
    check(cuda.project(x, basis), reference.project(x, basis), dtype)


def test_project_takes_strides_and_works_in_place(kernels):
    for width, wide in ((17, 20), (16, 20), (16, 17)):
        x, basis = draw(21, wide, torch.float32), rows(width, 4).float()
        check(cuda.project(x[:, :width], basis), reference.project(x[:, :width], basis), torch.float32)
        y = x[:, :width].contiguous()
        want = reference.project(y, basis)
        cuda.project_(y, basis)
        check(y, want, torch.float32)
    assert cuda.project(x[:0, :16], basis).shape == (0, 16)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shared", ["102400", "9000"])
def test_classwise_and_labels_out_of_range(kernels, dtype, shared):
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_L2", "20000")
    for n, d, r in ((23, 18, 1), (40, 1030, 3)):
        x, labels = draw(n, d, dtype), torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(n))
        labels[5], labels[11] = -1, 4
        bases = torch.stack([rows(d, r, seed) for seed in range(4)])
        bases = bases if dtype == torch.float64 else bases.float()
        got = cuda.project_classwise(x, bases, labels)
        assert got[5].isnan().all()
        assert got[11].isnan().all()
        good = (labels >= 0) & (labels < 4)
        check(got[good], reference.project_classwise(x, bases, labels)[good], dtype)


HALF = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def pictures(n, h, w, c, k, classes=0):
    """Images, their basis (a basis a class with `classes`), mean, std, and what the augmentation does to eleven."""
    g = torch.Generator().manual_seed(n + h + w + c + k)
    images = torch.randint(0, 256, (n, h, w, c), generator=g, dtype=torch.uint8)
    basis = torch.stack([rows(h * w * c, k, seed) for seed in range(max(1, classes))]).float()
    mean, std = torch.rand(c, generator=g), torch.rand(c, generator=g) + 0.2
    index = torch.randint(0, n, (11,), generator=g)
    edges = [[0, 0], [4, -4], [-1, 2], [h, 0], [0, -w], [h - 1, w - 1], [1 - h, 1 - w], [2**31 - 1, -(2**31)], [-3, 1]]
    shift = torch.tensor([*edges, [-h, 1], [2, w]], dtype=torch.int32)
    return images, basis if classes else basis[0], mean, std, index, shift, torch.arange(11) % 3 != 1


def close(got, want, dtype):
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    scale = want.float().abs().max().clamp_min(1)
    assert (got.float() - want.float()).abs().max() <= HALF[dtype] * scale


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("size", "k"),
    [
        ((1, 1, 1), 1),
        ((3, 5, 1), 3),
        ((1, 17, 1), 10),
        ((9, 8, 3), 17),
        ((5, 7, 3), 16),
        ((6, 4, 4), 32),
        ((3, 5, 3), 0),
    ],
)
@pytest.mark.parametrize("shared", ["102400", "2400"])
def test_ingest(kernels, size, k, shared):
    """Small shared memory and L2 cut the images in pieces and the batch in chunks; the shift reaches every border."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_L2", "2000")
    images, basis, mean, std, index, shift, flip = pictures(5, *size, k)
    basis, dtype = basis if k else None, list(HALF)[(size[0] + k) % 3]
    for options in ((index, shift, flip), (None, shift[:5], None), (index, None, flip), (None, None, None)):
        got = cuda.ingest(images, basis, mean, std, dtype, *options)
        close(got, reference.ingest(images, basis, mean, std, dtype, *options), dtype)


@pytest.mark.parametrize("shared", ["102400", "9000"])
def test_ingest_of_cifar_images(kernels, shared):
    """d = 3072, eight images a group; in pieces of a few image rows with little shared memory."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_SMS", "1")
    kernels.setenv("ULFAST_EMULATED_L2", str(8 * 3072 * 2))
    images, basis, mean, std, index, shift, flip = pictures(5, 32, 32, 3, 10)
    got = cuda.ingest(images, basis, mean, std, torch.bfloat16, index, shift, flip)
    close(got, reference.ingest(images, basis, mean, std, torch.bfloat16, index, shift, flip), torch.bfloat16)


@pytest.mark.parametrize("shared", ["102400", "3600"])
def test_ingest_classwise_and_what_is_out_of_range(kernels, shared):
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_SMS", "1")
    images, bases, mean, std, index, shift, flip = pictures(5, 6, 10, 3, 3, classes=3)
    labels = torch.arange(11) * 2 % 3
    index[2], index[7], labels[4], labels[9] = -1, 5, 3, -1
    bad = torch.tensor([2, 4, 7, 9])
    good = torch.tensor([i for i in range(11) if i not in bad])
    got = cuda.ingest(images, bases, mean, std, torch.float32, index, shift, flip, labels)
    assert got[bad].isnan().all()
    close(
        got[good].contiguous(memory_format=torch.channels_last),
        reference.ingest(images, bases, mean, std, torch.float32, index[good], shift[good], flip[good], labels[good]),
        torch.float32,
    )


def test_ingest_of_strided_no_and_too_wide_images(kernels):
    images, basis, mean, std, index, shift, flip = pictures(5, 4, 6, 3, 2)
    strided = images.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not strided.is_contiguous()
    want = reference.ingest(images, basis, mean, std, torch.float32, index, shift, flip)
    close(cuda.ingest(strided, basis, mean, std, torch.float32, index, shift, flip), want, torch.float32)
    assert cuda.ingest(images, basis, mean, std, torch.float32, index[:0]).shape == (0, 3, 4, 6)
    for size, k in (((1, 2000, 3), 1), ((2, 3, 65), 1), ((6, 6, 3), 40)):  # these use the library
        images, basis, mean, std, index, shift, flip = pictures(5, *size, k)
        got = cuda.ingest(images, basis, mean, std, torch.float32, index, shift, flip)
        close(got, reference.ingest(images, basis, mean, std, torch.float32, index, shift, flip), torch.float32)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("n", "d", "classes", "shared"),
    [
        (1, 1, 2, 102400),
        (9, 15, 3, 102400),
        (19, 130, 10, 3000),
        (70, 5, 4, 102400),
        (12, 17, 33, 102400),
        (6, 260, 17, 102400),
    ],
)
def test_softmax_regression_step(kernels, dtype, n, d, classes, shared):
    """With 3000 bytes the rows are cut in pieces, whose logits are added."""
    kernels.setenv("ULFAST_EMULATED_SHARED", str(shared))
    g = torch.Generator().manual_seed(n)
    x, labels = draw(n, d, dtype), torch.randint(0, classes, (n,), generator=g)
    index = torch.randint(0, n, (2 * n // 3 + 1,), generator=g)
    start = torch.randn(classes, d, generator=g) * 0.1
    for rows_ in (None, index):
        ours, twin = start.clone(), start.double()
        got = cuda.softmax_regression_step(x, labels, ours, 0.1, rows_)
        want = reference.softmax_regression_step(x, labels, twin, 0.1, rows_)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.double(), twin, atol=1e-6, rtol=1e-5)


def test_softmax_of_cifar_rows_large_logits_and_nothing(kernels):
    x, labels = draw(18, 3072, torch.uint8), torch.arange(18) % 10
    for shared in ("102400", "9000"):
        kernels.setenv("ULFAST_EMULATED_SHARED", shared)
        ours, twin = torch.full((10, 3072), 1e-3), torch.full((10, 3072), 1e-3, dtype=torch.float64)
        got = cuda.softmax_regression_step(x, labels, ours, 0.1)
        torch.testing.assert_close(
            got[0], reference.softmax_regression_step(x, labels, twin, 0.1)[0], atol=1e-6, rtol=0
        )
        torch.testing.assert_close(ours.double(), twin, atol=1e-6, rtol=1e-5)
    weight = torch.tensor([[500.0, 500.0], [-500.0, -500.0]])
    before = weight.clone()
    full, y = torch.full((4, 2), 255, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    assert cuda.softmax_regression_step(full, y, weight, 0.0).tolist() == [pytest.approx(1000.0), 2]
    assert torch.equal(weight, before)
    assert cuda.softmax_regression_step(full, y, weight, 1.0, torch.empty(0, dtype=torch.int64)).tolist() == [0, 0]
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("labels", "index"), [([0, 3], None), ([0, -1], None), ([0, 1], [0, 2]), ([0, 1], [-1, 0])])
def test_softmax_out_of_range_is_not_a_number(kernels, labels, index):
    weight = torch.zeros(3, 4)
    got = cuda.softmax_regression_step(
        draw(2, 4, torch.uint8), torch.tensor(labels), weight, 0.1, None if index is None else torch.tensor(index)
    )
    assert got[0].isnan()
    assert weight.isnan().all()


# The kernels that keep the basis in shared memory (csrc/cuda/resident.cuh): rows of 512 values and more.
HOPPER = str(227 << 10)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "d", "k"), [(9, 3072, 10), (5, 784, 1), (18, 1028, 7), (7, 6144, 3), (3, 3072, 32)])
@pytest.mark.parametrize("shared", [HOPPER, "60000", "20000"])
def test_resident_project(kernels, dtype, n, d, k, shared):
    """In one launch, or, with little shared memory or wide rows, in three over slices of the features."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    x, basis = draw(n, d, dtype), rows(d, k).float()
    check(cuda.project(x, basis), reference.project(x, basis), dtype)


def test_resident_project_in_place_of_strided_and_of_unaligned_rows(kernels):
    kernels.setenv("ULFAST_EMULATED_SHARED", HOPPER)
    x, basis = draw(9, 800, torch.float32), rows(768, 5).float()
    want = reference.project(x[:, :768], basis)
    check(cuda.project(x[:, :768], basis), want, torch.float32)
    y = x[:, :768].contiguous()
    cuda.project_(y, basis)
    check(y, want, torch.float32)
    shifted = torch.empty(9 * 768 + 1)[1:].view(9, 768).copy_(x[:, :768])  # 4 bytes from 16: the other kernel
    check(cuda.project(shifted, basis), want, torch.float32)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [HOPPER, "30000"])
def test_resident_classwise(kernels, dtype, shared):
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    n, d, r, classes = 13, 1032, 2, 4
    x, labels = draw(n, d, dtype), torch.arange(n) * 3 % classes
    labels[5], labels[11] = -1, classes
    bases = torch.stack([rows(d, r, seed) for seed in range(classes)]).float()
    got = cuda.project_classwise(x, bases, labels)
    assert got[5].isnan().all()
    assert got[11].isnan().all()
    good = (labels >= 0) & (labels < classes)
    check(got[good], reference.project_classwise(x, bases, labels)[good], dtype)


@pytest.mark.pairs
@pytest.mark.parametrize(("size", "k"), [((32, 32, 3), 9), ((28, 28, 1), 4), ((24, 64, 3), 3), ((16, 20, 3), 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [HOPPER, "130000", "40000"])
def test_resident_ingest(kernels, size, k, dtype, shared):
    """Whole images, two a group, and slices of image rows; the shift reaches every border."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    images, basis, mean, std, index, shift, flip = pictures(5, *size, k)
    basis = basis if k else None
    for options in ((index, shift, flip), (None, shift[:5], None), (index, None, flip), (None, None, None)):
        got = cuda.ingest(images, basis, mean, std, dtype, *options)
        close(got, reference.ingest(images, basis, mean, std, dtype, *options), dtype)


@pytest.mark.pairs
@pytest.mark.parametrize("size", [(32, 32, 3), (18, 32, 3), (9, 64, 3), (6, 96, 3)])
@pytest.mark.parametrize("k", [1, 7, 9, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [HOPPER, "120000"])
@pytest.mark.parametrize("length", [1e-3, 1.0, 300.0])
def test_ingest_on_tensor_cores(kernels, size, k, dtype, shared, length):
    """Image rows of one or several units of 32 pixels, in one launch and in three; a basis of any length."""
    kernels.setenv("ULFAST_EMULATED_SHARED", shared)
    kernels.setenv("ULFAST_EMULATED_SMS", "3")
    images, basis, mean, std, index, shift, flip = pictures(5, *size, k)
    basis = basis * torch.linspace(length, 1, k)[:, None]
    for options in ((index, shift, flip), (None, shift[:5], None), (index, None, flip)):
        got = cuda.ingest(images, basis, mean, std, dtype, *options)
        close(got, reference.ingest(images, basis.double(), mean, std, torch.float32, *options), dtype)
    index[2], index[7] = -1, 5
    got = cuda.ingest(images, basis, mean, std, dtype, index, shift, flip)
    assert got[[2, 7]].isnan().all()
    assert not got[[0, 1, 3, 4, 5, 6, 8, 9, 10]].isnan().any()


# The kernel of `project` on the tensor cores (csrc/cuda/project_mma.cu): from 16 rows of 512 values on, and k of 17 for
# float32. Against float64: 2e-6 of values up to 1 (float32 itself is as far off), half a unit in the last place of what
# half precision stores and a little more.
EXACT = {torch.uint8: (2e-6, 0), torch.float32: (2e-6, 0), torch.float16: (1e-5, 2**-11), torch.bfloat16: (3e-5, 2**-8)}


def check_exactly(got, x, basis, dtype):
    absolute, relative = EXACT[dtype]
    want = reference.project(x if dtype == torch.uint8 else x.double(), basis.double()).double()
    assert got.dtype == reference.projected_dtype(dtype)
    off = (got.double() - want).abs()
    assert off.max() > 0
    assert (off <= absolute + relative * want.abs()).all(), off.max()


@pytest.fixture
def tensor_cores(kernels):
    """A GPU small enough to be filled by so few rows."""
    kernels.setenv("ULFAST_EMULATED_SHARED", HOPPER)
    kernels.setenv("ULFAST_EMULATED_SMS", "1")
    return kernels


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize(
    ("n", "d", "k"), [(16, 1024, 1), (37, 520, 8), (21, 784, 17), (33, 536, 33), (20, 1032, 100), (17, 544, 128)]
)
@pytest.mark.parametrize("shared", [HOPPER, "60000"])
def test_project_on_tensor_cores(tensor_cores, dtype, n, d, k, shared):
    """Odd rows and basis rows, the last step cut short; in one launch, or, of many basis rows or with little shared
    memory, in three."""
    tensor_cores.setenv("ULFAST_EMULATED_SHARED", shared)
    x, basis = draw(n, d, dtype), rows(d, k).float()
    assert cuda._takes_tensor_cores(x, x, d, k) == (dtype != torch.float32 or k > 16)
    check_exactly(cuda.project(x, basis), x, basis, dtype)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("k", [12, 24, 65])
@pytest.mark.parametrize("shared", [HOPPER, "60000"])
@pytest.mark.parametrize("multiprocessors", ["1", "3", "7"])
def test_project_on_tensor_cores_in_place_of_strided_and_of_unaligned_rows(
    tensor_cores, dtype, k, shared, multiprocessors
):
    tensor_cores.setenv("ULFAST_EMULATED_SHARED", shared)
    tensor_cores.setenv("ULFAST_EMULATED_SMS", multiprocessors)
    n, d = 75, 776
    basis, x = rows(d, k).float(), draw(n, d + 24, dtype)[:, :d]
    assert cuda._takes_tensor_cores(x, x, d, k) == (dtype != torch.float32 or k > 16)
    check_exactly(cuda.project(x, basis), x, basis, dtype)
    shifted = torch.empty(n * d + 1, dtype=dtype)[1:].view(n, d).copy_(x)
    assert not cuda._takes_tensor_cores(shifted, shifted, d, k)
    check(cuda.project(shifted, basis), reference.project(x, basis), dtype)
    if dtype != torch.uint8:
        y = x.contiguous()
        cuda.project_(y, basis)
        check_exactly(y, x, basis, dtype)


@pytest.mark.pairs
@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("length", [1e-18, 1e-3, 100.0])
@pytest.mark.parametrize("size", [1e-4, 200.0])
@pytest.mark.parametrize("shared", [HOPPER, "60000"])
def test_project_on_tensor_cores_of_any_size(tensor_cores, dtype, length, size, shared):
    """Rows and basis rows of any length, of very different ones side by side; what is not a number stays in its row."""
    tensor_cores.setenv("ULFAST_EMULATED_SHARED", shared)
    x, basis = draw(18, 520, dtype), rows(520, 18).float() * torch.logspace(0, -6, 18)[:, None]
    basis[::2] *= length
    if dtype != torch.uint8:
        size = min(size, 1.0) if dtype == torch.float16 else size  # which ends at 65504
        x = (x.double() * torch.logspace(0, 1, 18)[:, None] * size).to(dtype)
    got = cuda.project(x, basis).double()
    want = reference.project(x if dtype == torch.uint8 else x.double(), basis.double()).double()
    scale = want.abs().amax(1, keepdim=True)
    absolute, relative = EXACT[dtype]
    assert (
        (got - want).abs() <= absolute * scale + relative * want.abs() + (2**-25 if dtype == torch.float16 else 0)
    ).all()
    if dtype == torch.uint8:
        return
    x[3, 100] = torch.nan
    got = cuda.project(x, basis)
    assert got[3].isnan().all()
    assert got.isnan().sum() == 520


def test_project_on_tensor_cores_of_more_rows_than_go_together(tensor_cores):
    tensor_cores.setenv("ULFAST_EMULATED_SHARED", "30000")
    x, basis = draw(8192 + 21, 512, torch.uint8), rows(512, 3).float()
    out = torch.empty(8192 + 21, 512)
    cuda.project_out(x, basis, out)
    check_exactly(out, x, basis, torch.uint8)


def test_resident_ingest_classwise_and_what_is_out_of_range(kernels):
    kernels.setenv("ULFAST_EMULATED_SHARED", HOPPER)
    images, bases, mean, std, index, shift, flip = pictures(5, 16, 20, 3, 3, classes=3)
    labels = torch.arange(11) * 2 % 3
    index[2], index[7], labels[4], labels[9] = -1, 5, 3, -1
    bad = torch.tensor([2, 4, 7, 9])
    good = torch.tensor([i for i in range(11) if i not in bad])
    got = cuda.ingest(images, bases, mean, std, torch.bfloat16, index, shift, flip, labels)
    assert got[bad].isnan().all()
    close(
        got[good].contiguous(memory_format=torch.channels_last),
        reference.ingest(images, bases, mean, std, torch.bfloat16, index[good], shift[good], flip[good], labels[good]),
        torch.bfloat16,
    )


def test_a_device_that_cannot_be_read(kernels, emulated):
    """With an old driver, the runtime's message is raised instead of sizes of zero, by which some kernels divide."""
    assert emulated.device_problem() is None
    kernels.setenv("ULFAST_EMULATED_OLD_DRIVER", "1")
    assert emulated.device_problem() == "CUDA driver version is insufficient for CUDA runtime version"
    assert _extension.cuda_problem().startswith(emulated.device_problem())
    images, labels = torch.randint(0, 256, (9, 40), dtype=torch.uint8), torch.arange(9) % 3
    got, want = (run(images, labels, 3) for run in (cuda_generators.class_moments, reference.class_moments))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    check(cuda.project(images, rows(40, 3).float()), reference.project(images, rows(40, 3).float()), torch.uint8)
