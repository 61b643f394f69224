"""Every operator that has a CUDA kernel, emulated on the CPU, on the registry's small inputs."""

from __future__ import annotations

import types

import pytest
import torch

from ulfast.ops import cuda, cuda_generators, reference, trials
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
    """Rows that are not whole blocks, with and without the clamp."""
    g = torch.Generator().manual_seed(1)
    x, grad = torch.rand(shape, generator=g), torch.randn(shape, generator=g)
    for clamp in (True, False):
        given = (x + 0.01, grad, x, 0.1, 0.05, norm, clamp)
        assert deviation(cuda.pgd_step, reference.pgd_step, given) <= 1e-6


LONG = ("project", "project_classwise", "ingest", "softmax_regression_step", "perturb_linear")


@pytest.mark.parametrize(
    "operator", [pytest.param(o, marks=pytest.mark.slow) if o in LONG else o for o in trials.TRIALS if o in FUNCTIONS]
)
def test_passes_its_trial(kernels, operator):
    """The trials of `ulfast.ops.verification`, without streams and graphs; with enough shared memory for the kernels
    that keep the basis in it, and few multiprocessors to fill.
    """
    kernels.setenv("ULFAST_EMULATED_SHARED", str(227 << 10))
    kernels.setenv("ULFAST_EMULATED_SMS", "4")
    kernels.setattr(trials, "ENOUGH", 12)
    assert trials.wrong(operator, torch.device("cpu"), types.SimpleNamespace(**FUNCTIONS)) is None


def test_a_basis_without_classes_says_so(kernels, emulated):
    """`classes` determines how much shared memory the basis takes, and so which kernel runs."""
    told = []

    def ingest(**fields):
        told.append(fields["classes"])
        return emulated.ingest(**fields)

    fake = types.SimpleNamespace(**{**{name: getattr(emulated, name) for name in dir(emulated)}, "ingest": ingest})
    kernels.setattr(cuda._extension, "load", lambda: types.SimpleNamespace(cuda=fake))
    images, basis, mean, std, *_ = SAMPLES["ingest"]
    labels = torch.arange(len(images)) % 2
    cuda.ingest(images, basis, mean, std, torch.float32)
    cuda.ingest(images, torch.stack([basis, basis]), mean, std, torch.float32, labels=labels)
    cuda.ingest(images, None, mean, std, torch.float32)
    assert told == [0, 2, 0]
