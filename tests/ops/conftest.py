"""Shared by the operator tests: every CPU level that this machine can run, and the float64 oracle."""

from __future__ import annotations

import os

import pytest
import torch

from ulfast.ops import _extension, verification

LEVELS = [name for name, supported in _extension.load().cpu_levels() if supported]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest):
    """Runs the test once with the kernels of each instruction level."""
    _extension.set_cpu_level(request.param)
    yield request.param
    _extension.set_cpu_level("auto")


@pytest.fixture
def threads():
    """Sets torch's thread count, and restores it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def gpu(monkeypatch, request):
    """Skips without a GPU; turns the CUDA kernels on. An error of a kernel stays with the process, so none of its tests
    would pass after that: a worker of xdist ends, and another takes over; without xdist all ends."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    assert hasattr(_extension.load(), "cuda"), "the extension was built without CUDA: build it where nvcc is"
    monkeypatch.setenv("ULFAST_CUDA_KERNELS", "1")
    verification.forget()
    yield
    verification.forget()
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(70)
        pytest.exit(f"the GPU answers no more after {request.node.nodeid}: {error}", returncode=3)
