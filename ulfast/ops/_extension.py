"""Loads the compiled kernels at their first use, and says what is wrong when that fails."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ExtensionError, InputError

REBUILD = "pip install --no-build-isolation -e . (in a checkout), or pip install --force-reinstall --no-deps ulfast"


@functools.cache
def load() -> ModuleType:
    """The extension module.

    Raises:
        ExtensionError: it is missing or cannot be loaded; names what was looked for, what was found, and the remedy.
    """
    try:
        module = importlib.import_module("ulfast._C")
    except ImportError as error:
        folder = Path(__file__).resolve().parent.parent
        expected = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        found = ", ".join(sorted(p.name for p in folder.glob("_C.*"))) or "none"
        raise ExtensionError(
            f"the compiled kernels of ulfast could not be loaded ({error}); looked for {expected} in {folder},"
            f" found {found}. Build them with: {REBUILD}"
        ) from error
    wanted = os.environ.get("ULFAST_CPU_LEVEL")
    if wanted:
        set_cpu_level(wanted, module)
    return module


def set_cpu_level(name: str, module: ModuleType | None = None) -> None:
    """Use the kernels of one instruction level ("baseline", "v3", "v4"), or the best ("auto").

    Raises:
        InputError: a level that this build or this processor does not have.
    """
    module = module or load()
    if not module.set_cpu_level(name):
        usable = ", ".join(level for level, supported in module.cpu_levels() if supported)
        raise InputError(f"CPU level {name!r} is not usable here: set ULFAST_CPU_LEVEL to one of auto, {usable}")


def cuda_problem() -> str | None:
    """Why the CUDA kernels of this build cannot run on the current GPU, with the remedy; None: nothing is known, or it
    has none."""
    kernels = getattr(load(), "cuda", None)
    problem = kernels.device_problem() if kernels is not None else None
    if problem is None:
        return None
    return f"{problem}. Update the NVIDIA driver, or build with the CUDA version that nvidia-smi shows: {REBUILD}"


def describe() -> dict[str, Any]:
    """Where the extension is, its levels, and the one in use (for `ulfast doctor`)."""
    module = load()
    return {
        "path": module.__file__,
        "compiler": module.compiler,
        "cpu_levels": dict(module.cpu_levels()),
        "cpu_level": module.cpu_level(),
        "cuda": hasattr(module, "cuda"),
        "cuda_problem": cuda_problem(),
    }
