"""The CUDA kernels compiled for the CPU with cuda_runtime.h beside this file, in place of the extension's."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ulfast.ops import cuda

ROOT = Path(__file__).resolve().parents[2]


def compiled() -> Path:
    """The files of csrc/cuda, compiled by g++ with the stand-in for CUDA: once until a file changes, by the first
    process that needs them (`make test` compiles ahead).
    """
    import pybind11

    here = Path(__file__).resolve().parent
    files = [Path(__file__), here / "cuda_runtime.h", here / "emulated.cpp", *sorted((ROOT / "csrc").rglob("*.*"))]
    versions = pybind11.__version__ + str(sysconfig.get_config_var("EXT_SUFFIX"))
    state = hashlib.sha256(b"".join(f.read_bytes() for f in files) + versions.encode()).hexdigest()[:16]
    folder = ROOT / "build" / f"emulated-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            sources = [here / "emulated.cpp", *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
            command = [
                "g++",
                "-std=c++20",
                "-O1",
                "-fPIC",
                "-ffp-contract=off",
                f"-I{ROOT / 'csrc'}",
                f"-I{here}",
                f"-I{pybind11.get_include()}",
                f"-I{sysconfig.get_paths()['include']}",
                "-x",
                "c++",
            ]

            def run(words: list[str]) -> None:
                done = subprocess.run(words, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr[-2000:]

            objects = [str(folder / f"{source.stem}.o") for source in sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = ([*command, "-c", str(source), "-o", o] for source, o in zip(sources, objects, strict=True))
                list(pool.map(run, jobs))
            run(["g++", "-shared", *objects, "-o", f"{target}.part"])
            Path(f"{target}.part").rename(target)
    return target


@pytest.fixture(scope="session")
def emulated():
    """The result of `compiled`, as a module."""
    pytest.importorskip("pybind11")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    target = compiled()
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
    monkeypatch.setattr(cuda, "enabled", lambda operator, device: True)
    monkeypatch.setattr(cuda, "stream", lambda device: 0)
    monkeypatch.setattr(cuda._extension, "load", lambda: types.SimpleNamespace(cuda=emulated))
    monkeypatch.setattr(cuda, "guard", lambda device: contextlib.nullcontext())
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    yield monkeypatch
    torch.use_deterministic_algorithms(False)


if __name__ == "__main__" and shutil.which("g++"):
    print(f"the CUDA kernels for the CPU: {compiled().relative_to(ROOT)}")
