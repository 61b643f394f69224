"""The CUDA kernels against their twins. They need a GPU and an extension built with nvcc."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops
from ulfast.data import Augment, MemoryLoader
from ulfast.ops import cuda, reference
from ulfast.profiling.check import TOLERANCE, deviation, samples

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]
SAMPLES = samples()


@pytest.mark.parametrize("name", list(SAMPLES))
def test_every_operator_is_its_twin(name):
    given = tuple(value.cuda() if isinstance(value, torch.Tensor) else value for value in SAMPLES[name])
    assert deviation(getattr(torch.ops.ulfast, name), getattr(reference, name), given) <= TOLERANCE


@pytest.mark.parametrize("d", [1, 3, 4, 5, 64, 3072])
def test_philox_is_bit_for_bit_the_cpus(d):
    for draw in (ops.philox_uniform, ops.philox_normal):
        assert torch.equal(draw(5, 2, 7, 300, d, device="cuda").cpu(), draw(5, 2, 7, 300, d))


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (7, 5, 3, 1), (64, 32, 32, 3), (0, 4, 4, 3)])
@pytest.mark.parametrize("truncate", [True, False])
def test_apply_perturbation_is_the_cpus(shape, truncate):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    delta = torch.randn(6, *shape[1:]) * 0.1
    index = torch.randint(0, 6, (shape[0],))
    got = ops.apply_perturbation(images.cuda(), delta.cuda(), index=index.cuda(), truncate=truncate)
    assert torch.equal(got.cpu(), ops.apply_perturbation(images, delta, index=index, truncate=truncate))


def test_an_index_out_of_range_leaves_the_image():
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)
    delta = torch.ones(2, 4, 4, 3)
    got = ops.apply_perturbation(images.cuda(), delta.cuda(), index=torch.tensor([0, 2, -1]).cuda())
    assert torch.equal(got[1:].cpu(), images[1:])
    assert (got[0] == 255).all()


def test_capture_in_a_graph():
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8).cuda()
    delta = torch.randn(8, 32, 32, 3).cuda() * 0.1
    ops.apply_perturbation(images, delta)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.apply_perturbation(images, delta)
    images.random_(0, 256)
    graph.replay()
    assert torch.equal(out, reference.apply_perturbation(images, delta))


# --- project, ingest and the linear classifier ----------------------------------------------------------------------

ROWS = {torch.uint8: 3e-6, torch.float32: 3e-6, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
HALF = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def draw(n, d, dtype=torch.float32, device="cuda"):
    x = torch.rand(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(n + d))
    return ((x * 255).to(torch.uint8) if dtype == torch.uint8 else x.to(dtype)).to(device)


def basis_rows(k, d, device="cuda"):
    """(k, d) float64, not orthonormal: the twins do not ask for it, and a decomposition of large ones takes seconds."""
    g = torch.Generator().manual_seed(k + d)
    rows = torch.nn.functional.normalize(torch.randn(k, d, generator=g, dtype=torch.float64), dim=1)
    return (rows / max(1, k) ** 0.5).to(device)


def batch(n, h, w, c, k, device="cuda", classes=0):
    """Arguments of `ingest` up to the dtype, and index, shift, flip."""
    g = torch.Generator().manual_seed(n + h + k)
    images = torch.randint(0, 256, (n, h, w, c), generator=g, dtype=torch.uint8)
    basis = basis_rows(k, h * w * c, "cpu").float() if k else None
    if classes and basis is not None:
        basis = torch.stack([basis.roll(i, 1) for i in range(classes)])
    mean, std = torch.rand(c, generator=g), torch.rand(c, generator=g) + 0.2
    index = torch.randint(0, n, (n + 3,), generator=g)
    shift = torch.randint(-4, 5, (n + 3, 2), generator=g, dtype=torch.int32)
    shift[0], shift[-1] = torch.tensor([-h, w]), torch.tensor([2**31 - 1, -(2**31)])
    flip = torch.arange(n + 3) % 3 != 1
    return [t if t is None else t.to(device) for t in (images, basis, mean, std, index, shift, flip)]


def near(got, want, dtype):
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert (got.float() - want.float()).abs().max() <= HALF[dtype] * want.float().abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", list(ROWS))
@pytest.mark.parametrize(("n", "d"), [(5, 15), (9, 16), (9, 17), (2000, 3072), (17, 3073), (4, 150528)])
@pytest.mark.parametrize("k", [1, 3, 10, 16, 17, 32, 100])
def test_project_is_its_twin(dtype, n, d, k):
    x, basis = draw(n, d, dtype), basis_rows(k, d)
    basis = basis if dtype == torch.float64 else basis.float()
    got, want = ops.project(x, basis), reference.project(x, basis)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, atol=10 * ROWS[dtype], rtol=ROWS[dtype])


def test_project_takes_strides_nothing_and_one_feature():
    x, basis = draw(2000, 40), basis_rows(3, 33).float()
    torch.testing.assert_close(ops.project(x[:, :33], basis), reference.project(x[:, :33], basis))
    assert ops.project(x[:0, :33], basis).shape == (0, 33)
    torch.testing.assert_close(ops.project(x[:, :1], torch.ones(1, 1).cuda()), torch.zeros(2000, 1).cuda())


@pytest.mark.parametrize("dtype", list(ROWS))
@pytest.mark.parametrize(("n", "d", "r"), [(2000, 3072, 1), (70, 17, 3), (9, 150528, 2)])
def test_project_classwise_is_its_twin_and_a_bad_label_a_nan(dtype, n, d, r):
    x, labels = draw(n, d, dtype), torch.arange(n, device="cuda") * 7 % 4
    labels[3], labels[5] = -1, 4
    bases = torch.stack([basis_rows(r, d).roll(i, 1) for i in range(4)])
    bases = bases if dtype == torch.float64 else bases.float()
    got, good = ops.project_classwise(x, bases, labels), (labels >= 0) & (labels < 4)
    assert got[~good].isnan().all()
    want = reference.project_classwise(x, bases, labels)[good]
    torch.testing.assert_close(got[good], want, atol=10 * ROWS[dtype], rtol=ROWS[dtype])


@pytest.mark.parametrize("dtype", list(HALF))
@pytest.mark.parametrize("size", [(1, 1, 1), (5, 7, 3), (32, 32, 3), (64, 64, 4), (3, 1500, 3), (224, 224, 3)])
@pytest.mark.parametrize("k", [0, 1, 9, 32, 40])
def test_ingest_is_its_twin(dtype, size, k):
    k = min(k, size[0] * size[1] * size[2])
    images, basis, mean, std, index, shift, flip = batch(9, *size, k)
    got = ops.ingest(images, basis, mean, std, dtype=dtype, index=index, shift=shift, flip=flip)
    near(got, reference.ingest(images, basis, mean, std, dtype, index, shift, flip), dtype)


@pytest.mark.parametrize("size", [(5, 7, 3), (32, 32, 3), (224, 224, 3)])
def test_ingest_classwise_large_batches_and_what_is_out_of_range(size):
    n = 1500 if size[0] < 200 else 60
    images, bases, mean, std, index, shift, flip = batch(n, *size, 3, classes=4)
    labels = torch.arange(n + 3, device="cuda") * 7 % 4
    index[2], index[7], labels[4], labels[9] = -1, n, 4, -1
    good = (labels >= 0) & (labels < 4) & (index >= 0) & (index < n)
    got = ops.ingest(images, bases, mean, std, index=index, shift=shift, flip=flip, labels=labels)
    assert got[~good].isnan().all()
    want = reference.ingest(images, bases, mean, std, torch.float32, index[good], shift[good], flip[good], labels[good])
    near(got[good].contiguous(memory_format=torch.channels_last), want, torch.float32)
    assert ops.ingest(images, bases, mean, std, index=index[:0], labels=labels[:0]).shape[0] == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (70, 15), (70, 17), (1024, 3072), (3000, 130), (9, 150528)])
@pytest.mark.parametrize("classes", [2, 10, 17, 100, 130])
def test_softmax_step_is_its_twin_and_repeats_itself(dtype, n, d, classes):
    x, labels = draw(n, d, dtype), torch.arange(n, device="cuda") * 7 % classes
    index = torch.arange(n, device="cuda").flip(0)[: n // 2 + 1]
    start = torch.randn(classes, d, generator=torch.Generator().manual_seed(0)).cuda() * 0.01
    ours, again, twin = start.clone(), start.clone(), start.double()
    got = ops.softmax_regression_step(x, labels, ours, 0.1, index=index)
    want = reference.softmax_regression_step(x, labels, twin, 0.1, index)
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.double(), twin, atol=2e-6, rtol=1e-5)
    assert abs(got[1] - want[1]) <= 1  # two logits may be equal but for rounding
    if classes <= 128:
        assert torch.equal(ops.softmax_regression_step(x, labels, again, 0.1, index=index), got)
        assert torch.equal(again, ours)


def test_softmax_step_out_of_range_is_not_a_number():
    for labels, index in (([0, 3], None), ([0, -1], None), ([0, 1], [0, 2])):
        weight, y = torch.zeros(3, 4).cuda(), torch.tensor(labels).cuda()
        rows = None if index is None else torch.tensor(index).cuda()
        assert ops.softmax_regression_step(draw(2, 4, torch.uint8), y, weight, 0.1, index=rows)[0].isnan()
        assert weight.isnan().all()


def calls(device="cuda", size=32):
    """Each operator on its own arguments: name to a function that gives new tensors, and the twin's."""
    images, basis, mean, std, index, shift, flip = batch(40, size, size, 3, 3, device)
    bases = torch.stack([basis, basis.roll(1, 1)])
    labels = torch.arange(43, device=device) % 2
    x, y = images.flatten(1), labels[:40]

    def step(module):
        weight = torch.full((2, x.shape[1]), 1e-3, device=device)
        module(x, y, weight, 0.1)
        return weight

    ours, twin = torch.ops.ulfast, reference
    return {
        "project": lambda m=ours: m.project(x, basis),
        "project_classwise": lambda m=ours: m.project_classwise(x, bases, y),
        "ingest": lambda m=ours: m.ingest(images, basis, mean, std, torch.float32, index, shift, flip),
        "ingest classwise": lambda m=ours: m.ingest(
            images, bases, mean, std, torch.float32, index, shift, flip, labels
        ),
        "softmax_regression_step": lambda m=ours: step(m.softmax_regression_step),
    }, twin


NAMES = ["project", "project_classwise", "ingest", "ingest classwise", "softmax_regression_step"]


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", NAMES)
def test_captured_in_a_graph(name, size):
    call = calls(size=size)[0][name]
    want = call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call()
    got.zero_()
    for _ in range(2):
        graph.replay()
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_operators_never_wait_for_the_device(name):
    call = calls()[0][name]
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", NAMES)
def test_compiled_equals_eager(name):
    call = calls()[0][name]
    torch._dynamo.reset()
    assert torch.equal(torch.compile(lambda: call() * 2, fullgraph=True)(), call() * 2)


@pytest.mark.parametrize("name", NAMES)
def test_follows_the_current_stream(name):
    """On its own stream a call sees what that stream has done before, though it took long."""
    table, twin = calls()
    want, stream = table[name](twin), torch.cuda.Stream()
    held = torch.zeros_like(want)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        table[name]()  # its memory is there from now on
        torch.cuda._sleep(200_000_000)
        held.copy_(table[name]())
    assert not stream.query(), "the call waited for the stream"
    stream.synchronize()
    torch.testing.assert_close(held, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_second_device(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    table, twin = calls("cuda:1")
    got = table[name]()
    assert got.device == torch.device("cuda:1")
    torch.testing.assert_close(got, table[name](twin), atol=1e-4, rtol=1e-4)


def test_arguments_on_different_devices_are_refused():
    images, basis, mean, std, *_ = batch(4, 8, 8, 3, 2)
    with pytest.raises(ValueError, match="basis must be on cuda"):
        ops.ingest(images, basis.cpu(), mean, std)
    with pytest.raises(ValueError, match="labels must be on cuda"):
        ops.softmax_regression_step(draw(2, 4), torch.tensor([0, 1]), torch.zeros(2, 4).cuda(), 0.1)


# --- the caller's state, and waiting for the device -------------------------------------------------------------------


@pytest.fixture
def kernels_off(monkeypatch):
    monkeypatch.setattr(cuda, "enabled", lambda *_: False)


def test_a_number_out_of_range_does_not_end_the_context(kernels_off):
    """Indexing with it is an assertion on the device, after which every call of the process fails."""
    bad = torch.tensor([0, 5, -1]).cuda()
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8).cuda()
    bases, delta, one = basis_rows(2, 48).float().view(2, 1, 48), torch.ones(2, 4, 4, 3).cuda(), torch.ones(3).cuda()
    assert ops.project_classwise(images, bases, bad)[1:].isnan().all()
    assert ops.ingest(images, bases, one, one, labels=bad)[1:].isnan().all()
    assert ops.ingest(images, None, one, one, index=bad)[1:].isnan().all()
    assert torch.equal(ops.apply_perturbation(images, delta, index=bad)[1:], images[1:])
    assert ops.softmax_regression_step(images, bad, torch.zeros(2, 48).cuda(), 0.1)[0].isnan()
    assert not ops.class_moments(images, bad, 2)[0][1].any()
    assert torch.equal(ops.perturb_convolution(images, bad, torch.ones(2, 3, 3).cuda())[1:], images[1:])
    torch.cuda.synchronize()


@pytest.mark.parametrize("k", [10, 100])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_products_have_full_precision(dtype, k, kernels_off):
    """With TF32 for float32's products, and within autocast."""
    x, basis = draw(300, 3072, dtype), basis_rows(k, 3072)
    exact = reference.project(reference.unit(x, torch.float64), basis)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            got = ops.project(x, basis if dtype == torch.float64 else basis.float())
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (got.double() - exact).abs().max() < 1e-5


@pytest.mark.parametrize("on", [True, False])
def test_no_batch_waits_for_the_device(on, monkeypatch, make_dataset):
    monkeypatch.setattr(cuda, "enabled", lambda *_: on)
    data, rows = make_dataset(60), basis_rows(3, 432).float()
    classwise = torch.stack([rows, rows.roll(1, 1), rows.roll(2, 1)])
    for basis in (None, rows, classwise):
        batches = iter(MemoryLoader(data, 10, basis=basis, augment=Augment(), shuffle=True, device="cuda"))
        next(batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert len(list(batches)) == 5
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_numbers_for_the_statistics_are_copied_once():
    images = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="cuda")
    ops.ingest(images, None, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.ingest(images, None, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_raw_stream_is_the_current_one():
    with torch.cuda.stream(torch.cuda.Stream()):
        device = torch.device("cuda", torch.cuda.current_device())
        assert cuda.stream(device) == torch.cuda.current_stream().cuda_stream != 0
