"""The CUDA kernels against their twins. They need a GPU and an extension built with nvcc."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops
from ulfast.ops import _extension, reference

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert hasattr(_extension.load(), "cuda"), "the extension was built without CUDA: build it where nvcc is"
    monkeypatch.setenv("ULFAST_CUDA_KERNELS", "1")


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
