"""Loads the compiled kernels on first use, and explains a failure."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch  # noqa: F401  whose OpenMP library the kernels use

from ..errors import ExtensionError, InputError
from ..version import __version__

ROOT = Path(__file__).resolve().parents[2]


def reinstall(*, from_source: bool = True) -> str:
    """The command that rebuilds the kernels of this installation; for a wheel it may also fetch another."""
    if (ROOT / "csrc").is_dir():
        return f"pip install --no-build-isolation -e . (in {ROOT})"
    source = " --no-binary ulfast" if from_source else ""
    compiles = " (compiles: needs g++ 10 or clang 14, or newer)" if from_source else ""
    return f"pip install --force-reinstall --no-deps{source} ulfast=={__version__}{compiles}"


@functools.cache
def load() -> ModuleType:
    """The extension module.

    Raises:
        ExtensionError: it is missing or cannot be loaded; names what was looked for, what was found, and the remedy.
    """
    try:
        module = _imported()
    except ImportError as error:
        folder = Path(__file__).resolve().parent.parent
        expected = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        found = ", ".join(sorted(p.name for p in folder.glob("_C.*"))) or "none"
        raise ExtensionError(
            f"the compiled kernels of ulfast could not be loaded ({error}); looked for {expected} in {folder},"
            f" found {found}. Repair it with: {reinstall(from_source=False)}"
        ) from error
    wanted = os.environ.get("ULFAST_CPU_LEVEL")
    if wanted:
        set_cpu_level(wanted, module)
    return module


def _imported() -> ModuleType:
    try:
        return importlib.import_module("ulfast._C")
    except ImportError as error:
        if "GOMP" not in str(error):
            raise
    # If torch hides its OpenMP library, or has another one, the compiler's is loaded.
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(f"{error}; Debian, Ubuntu: apt-get install libgomp1") from error
    return importlib.import_module("ulfast._C")


def set_cpu_level(name: str, module: ModuleType | None = None) -> None:
    """Use the kernels of one instruction level ("baseline", "v3", "v4"), or the best ("auto").

    Raises:
        InputError: this build or this processor does not have the level.
    """
    module = module or load()
    if not module.set_cpu_level(name):
        usable = ", ".join(level for level, supported in module.cpu_levels() if supported)
        raise InputError(f"CPU level {name!r} is not usable here: set ULFAST_CPU_LEVEL to one of auto, {usable}")


def cuda_problem() -> str | None:
    """Why the CUDA kernels of this build cannot run on the current GPU, with the remedy. None: no reason is known, or
    the build has no CUDA kernels.
    """
    kernels = getattr(load(), "cuda", None)
    problem = kernels.device_problem() if kernels is not None else None
    if problem is None:
        return None
    return f"{problem}. Update the NVIDIA driver, or build with the CUDA version that nvidia-smi shows: {reinstall()}"


def describe() -> dict[str, Any]:
    """The extension's path, its levels, and the level in use (for `ulfast doctor`)."""
    module = load()
    return {
        "path": module.__file__,
        "compiler": module.compiler,
        "cpu_levels": dict(module.cpu_levels()),
        "cpu_level": module.cpu_level(),
        "cuda": hasattr(module, "cuda"),
        "cuda_problem": cuda_problem(),
    }
