"""CUDA kernels run on the CPU by cuda_runtime.h beside this file: every index and dtype against the twins, forwards and
backwards through the threads. What it cannot see: speed, alignment faults, memory order."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest
import torch

from ulfast.ops import cuda, reference

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {torch.uint8: 3e-6, torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
pybind11 = pytest.importorskip("pybind11")

BINDING = r"""
#include <pybind11/pybind11.h>
#include "ulfast.h"
using namespace ulfast;
PYBIND11_MODULE(emulated, m) {
  m.def("project", [](uintptr_t x, uintptr_t b, uintptr_t c, uintptr_t o, int64_t n, int64_t d, int64_t k, int64_t s,
                      int t, uintptr_t l, uintptr_t r, int64_t classes, uintptr_t) {
    cuda::project({(void*)x, (void*)b, (void*)c, (void*)o, n, d, k, s, (DType)t, (int64_t*)l, (int64_t*)r, classes}, 0);
  });
  m.def("project_scratch", [](int64_t n, int64_t d, int64_t k, int t) {
    return cuda::project_scratch({0, 0, 0, 0, n, d, k, d, (DType)t, 0, 0, 0});
  });
}
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """csrc/cuda/project.cu, compiled by g++ on the stand-in for CUDA."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "binding.cpp").write_text(BINDING)
    target = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    done = subprocess.run(
        ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", f"-I{ROOT / 'csrc'}",
         f"-I{Path(__file__).parent}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}",
         "-x", "c++", str(folder / "binding.cpp"), str(ROOT / "csrc/cuda/project.cu"), "-o", str(target)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    spec = importlib.util.spec_from_file_location("emulated", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["forwards", "backwards"])
def kernels(request, emulated, monkeypatch):
    """ulfast.ops.cuda on CPU tensors and the emulated kernels; fresh memory is NaN."""
    monkeypatch.setenv("ULFAST_EMULATED_ORDER", "1" if request.param == "backwards" else "0")
    monkeypatch.setattr(cuda, "enabled", lambda: True)
    monkeypatch.setattr(cuda, "_stream", lambda device: 0)
    monkeypatch.setattr(cuda._extension, "load", lambda: types.SimpleNamespace(cuda=emulated))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield monkeypatch
    torch.use_deterministic_algorithms(False)


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


def test_gpu_script_fails_loudly_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", str(ROOT / "benchmarks/gpu.sh")], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.sh: ")
    assert done.stdout == ""
