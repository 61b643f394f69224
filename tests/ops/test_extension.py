"""The extension: levels, and the message where it is missing."""

from __future__ import annotations

import inspect
import os
import platform
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

from ulfast.errors import ExtensionError, InputError
from ulfast.ops import _extension, verification


def test_describe_names_levels_and_the_one_in_use():
    about = _extension.describe()
    assert about["cpu_levels"]["baseline"] is True
    assert about["cpu_level"] in about["cpu_levels"]


def test_unknown_level_is_refused():
    with pytest.raises(InputError, match="auto, baseline"):
        _extension.set_cpu_level("v9")


def test_the_level_comes_from_the_environment(monkeypatch):
    """As it is read on first use in a process."""
    try:
        monkeypatch.setenv("ULFAST_CPU_LEVEL", "baseline")
        _extension.load.cache_clear()
        assert _extension.load().cpu_level() == "baseline"
        monkeypatch.setenv("ULFAST_CPU_LEVEL", "v9")
        _extension.load.cache_clear()
        with pytest.raises(InputError, match="ULFAST_CPU_LEVEL"):
            _extension.load()
    finally:
        monkeypatch.undo()
        _extension.load.cache_clear()
        _extension.set_cpu_level("auto")


def test_a_missing_extension_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ulfast._C", None)
    _extension.load.cache_clear()
    try:
        with pytest.raises(ExtensionError, match=r"looked for _C.*found .*Repair it with: pip install --no-build"):
            _extension.load()
    finally:
        _extension.load.cache_clear()


def test_from_a_wheel_it_names_what_works_without_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "ROOT", tmp_path)
    assert "-e ." not in _extension.reinstall()
    assert "--no-binary ulfast ulfast==" in _extension.reinstall()
    assert "--no-binary" not in _extension.reinstall(from_source=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF")
def test_the_kernels_bring_no_openmp_library_of_their_own():
    """The process has torch's alone. Clang's code needs clang's."""
    module = _extension.load()
    if "clang" in module.compiler.lower() or "ULFAST_SANITIZED" in os.environ:
        pytest.skip("linked to one")
    assert b"libgomp.so" not in Path(module.__file__).read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
def test_levels_are_those_that_the_processor_has():
    """As the system counts its features."""
    flags = set(re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    v3 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"} <= flags
    v4 = v3 and {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= flags
    assert _extension.describe()["cpu_levels"] == {"baseline": True, "v3": v3, "v4": v4}


@pytest.mark.parametrize("problem", [None, "CUDA driver version is insufficient for CUDA runtime version"])
def test_kernels_that_cannot_run_on_the_gpu_are_off_and_say_so_once(monkeypatch, problem):
    library = types.SimpleNamespace(device_problem=lambda: problem)
    monkeypatch.setattr(_extension, "load", lambda: types.SimpleNamespace(cuda=library))
    monkeypatch.setenv("ULFAST_CUDA_KERNELS", "1")
    gpu = torch.device("cuda", 0)
    verification.forget()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(2):
                assert verification.enabled("project", gpu) == (problem is None)
        assert len(told) == (problem is not None)
        if told:
            assert f"are off: {problem}. Update the NVIDIA driver, or build" in str(told[0].message)
    finally:
        verification.forget()


def test_a_build_without_cuda_has_no_problem_with_it(monkeypatch):
    monkeypatch.setattr(_extension, "load", types.SimpleNamespace)
    assert _extension.cuda_problem() is None


def fields(out):
    return {"out": out.data_ptr(), "seed": 3, "stream": 1, "first": 0, "n": 2, "d": 5, "threads": 1}


def test_a_kernel_takes_its_fields_by_name_in_any_order():
    library = _extension.load()
    assert list(inspect.signature(library.philox_uniform).parameters) == list(fields(torch.empty(0)))
    assert "out" not in inspect.signature(library.philox_uniform_scratch).parameters  # a size takes no addresses
    out, other = torch.empty(2, 5), torch.empty(2, 5)
    given = fields(out)
    assert library.philox_uniform(**given) == -1
    given = fields(other)
    assert library.philox_uniform(**{name: given[name] for name in reversed(given)}) == -1
    assert torch.equal(out, other)
    assert out.min() >= 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seed": None}, TypeError, "philox_uniform: field seed: .*int"),
        ({"n": 2.0}, TypeError, "field n: .*float"),
        ({"n": 2**63}, OverflowError, "field n"),
        ({"out": -1}, OverflowError, "field out"),
        ({"threads": 2**31}, OverflowError, "field threads: 2147483648 is too large"),
        ({"sead": 1}, TypeError, "philox_uniform has no field 'sead'"),
    ],
)
def test_a_wrong_or_unknown_field_is_refused(change, error, message):
    out = torch.zeros(2, 5)
    with pytest.raises(error, match=message):
        _extension.load().philox_uniform(**(fields(out) | change))
    assert not out.any()


@pytest.mark.parametrize("name", ["out", "d", "threads"])
def test_a_missing_field_is_refused(name):
    given = fields(torch.empty(2, 5))
    del given[name]
    with pytest.raises(TypeError, match=f"philox_uniform lacks the field {name}"):
        _extension.load().philox_uniform(**given)
    with pytest.raises(TypeError, match="takes keywords only"):
        _extension.load().philox_uniform(*fields(torch.empty(2, 5)).values())


def test_names_and_flags_are_not_numbers():
    labels, out = torch.zeros(0, dtype=torch.int64), torch.empty(0)
    given = {
        "labels": labels.data_ptr(),
        "coefficients": 0,
        "scratch": 0,
        "images": 0,
        "out": out.data_ptr(),
        "seed": 0,
        "first": 0,
        "n": 0,
        "classes": 1,
        "h": 4,
        "w": 4,
        "channels": 3,
        "norm": 1.0,
        "kind": "l2",
        "truncate": False,
        "threads": 1,
    }
    kernel = _extension.load().perturb_ar
    assert kernel(**given) == -1
    for change, error, message in (
        ({"kind": "l3"}, ValueError, "field kind: 'l3'"),
        ({"kind": 1}, TypeError, "field kind: a name"),
        ({"truncate": 1}, TypeError, "field truncate: a bool"),
        ({"norm": "0.1"}, TypeError, "field norm"),
    ):
        with pytest.raises(error, match=message):
            kernel(**(given | change))


@pytest.mark.skipif("ULFAST_SANITIZED" not in os.environ, reason="for the sanitised build")
def test_the_sanitised_kernels_are_the_ones_under_test():
    assert "sanitize" in _extension.describe()["path"]
