"""Every operator that has a CUDA kernel, emulated on the CPU, on the registry's small inputs."""

from __future__ import annotations

import pytest
import torch

from ulfast.ops import cuda, cuda_generators, reference
from ulfast.profiling.check import TOLERANCE, deviation, samples

SAMPLES = samples()
FUNCTIONS = {**vars(cuda_generators), **vars(cuda)}


@pytest.mark.parametrize("name", [name for name in SAMPLES if name in FUNCTIONS])
def test_is_its_twin(kernels, name):
    assert deviation(FUNCTIONS[name], getattr(reference, name), SAMPLES[name]) <= TOLERANCE


@pytest.mark.parametrize("name", ["philox_uniform", "philox_normal"])
@pytest.mark.parametrize("d", [1, 4, 50])
def test_philox(kernels, emulated, name, d):
    out = torch.empty(9, d)
    getattr(emulated, name)(out=out.data_ptr(), seed=-7, stream=1, first=3, n=9, d=d, cuda_stream=0)
    assert torch.equal(out, getattr(reference, name)(-7, 1, 3, 9, d))


@pytest.mark.parametrize("shape", [(3, 5), (4, 8), (2, 700), (2, 9001), (1, 9000), (0, 4)])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pgd_step(kernels, shape, norm):
    """Rows that are no whole blocks, with and without the clamp."""
    g = torch.Generator().manual_seed(1)
    x, grad = torch.rand(shape, generator=g), torch.randn(shape, generator=g)
    for clamp in (True, False):
        given = (x + 0.01, grad, x, 0.1, 0.05, norm, clamp)
        assert deviation(cuda.pgd_step, reference.pgd_step, given) <= 1e-6
