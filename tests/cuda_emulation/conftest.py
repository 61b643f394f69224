"""The CUDA kernels compiled for the CPU by cuda_runtime.h beside this file, in the place of the extension's."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import types
from pathlib import Path

import pytest
import torch

from ulfast.ops import cuda

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The files of csrc/cuda, compiled by g++ on the stand-in for CUDA: once, whoever comes first."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    here = Path(__file__).parent
    files = [here / "cuda_runtime.h", here / "emulated.cpp", *sorted((ROOT / "csrc").rglob("*.*"))]
    state = hashlib.sha256(b"".join(f.read_bytes() for f in files) + pybind11.__version__.encode()).hexdigest()[:16]
    folder = tmp_path_factory.getbasetemp().parent / f"emulated-{state}"
    folder.mkdir(exist_ok=True)
    target = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            done = subprocess.run(
                ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{here}",
                 f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}", "-x", "c++",
                 str(here / "emulated.cpp"), *map(str, sorted((ROOT / "csrc/cuda").glob("*.cu"))),
                 "-o", f"{target}.part"],
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-2000:]
            Path(f"{target}.part").rename(target)
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
    monkeypatch.setattr(cuda, "stream", lambda device: 0)
    monkeypatch.setattr(cuda._extension, "load", lambda: types.SimpleNamespace(cuda=emulated))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield monkeypatch
    torch.use_deterministic_algorithms(False)
