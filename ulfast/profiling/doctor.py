"""The checks of `ulfast doctor`. A check is {"name", "ok" (None: optional and absent), "text"}."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ExtensionError, InputError
from ..runtime import environment
from ..version import __version__

if TYPE_CHECKING:
    from ..ops.verification import Verdict

# The dependencies of pyproject.toml; a test compares them.
REQUIRED = (
    "torch",
    "numpy",
    "click",
    "rich",
    "pyyaml",
    "requests",
    "pillow",
    "simplejpeg",
    "safetensors",
    "matplotlib",
    "scipy",
    "jinja2",
)
# Extra of the same name: its purpose.
OPTIONAL = {"kornia": "attack ueraser", "timm": "models timm:NAME"}


def examine() -> dict[str, Any]:
    """All checks; "ok" is False if any of them failed."""
    checks: list[dict[str, Any]] = []

    def add(name: str, ok: bool | None, text: str) -> None:
        checks.append({"name": name, "ok": ok, "text": text})

    where = environment.commit()
    add("ulfast", True, f"{__version__}{f', commit {where}' if where else ''}, Python {platform.python_version()}")
    versions, missing = [], []
    for name in REQUIRED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    add(
        "packages",
        not missing,
        f"missing: {', '.join(missing)}; pip install {' '.join(missing)}" if missing else ", ".join(versions),
    )
    if "torch" in missing:
        return {"ok": False, "checks": checks}
    import torch

    recent = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)
    add(
        "torch",
        recent,
        f"{torch.__version__}, {torch.get_num_threads()} threads" + ("" if recent else "; 2.6 is needed"),
    )
    _extension(add)
    if torch.cuda.is_available():
        add("gpu", True, f"{torch.cuda.get_device_name()}, driver's CUDA {torch.version.cuda}")
    else:
        add("gpu", None, "none that torch can use")
    for name, use in OPTIONAL.items():
        try:
            importlib.import_module(name)
            add(name, True, f"for {use}")
        except ImportError as error:
            add(name, None, f"not usable ({error}); for {use}: pip install {name}")
    _ffcv(add)
    return {"ok": all(check["ok"] is not False for check in checks), "checks": checks}


def _ffcv(add: Callable[[str, bool | None, str], None]) -> None:
    """Checks FFCV, imported with the guard that restores torch's number of threads."""
    from ..data.beton import engine

    try:
        engine.load()
    except InputError as error:
        add("ffcv", None, str(error))
    else:
        add("ffcv", True, f"{engine.version()}, for the FFCV loader of .beton files (read and written without it too)")


def _extension(add: Callable[[str, bool | None, str], None]) -> None:
    from ..ops import _extension
    from .check import samples, wrong_operators

    try:
        about = _extension.describe()
    except ExtensionError as error:
        add("kernels", False, str(error))
        return
    add("kernels", True, f"{about['path']} ({about['compiler']})")
    levels = ", ".join(
        f"{name}{'' if usable else ' (not on this processor)'}{' in use' if name == about['cpu_level'] else ''}"
        for name, usable in about["cpu_levels"].items()
    )
    add("cpu levels", True, levels)
    add("cuda kernels", *_cuda_kernels(about["cuda"]))
    names = sorted(samples())
    add("operators", True, ", ".join(names))
    before = about["cpu_level"]
    for level, usable in about["cpu_levels"].items():
        if not usable:
            continue
        _extension.set_cpu_level(level)
        failed = [f"{name} ({problem})" for name, problem in wrong_operators().items()]
        text = f"wrong: {', '.join(failed)}" if failed else f"{len(names)} operators agree with their twins"
        add(f"level {level}", not failed, text)
    _extension.set_cpu_level(before)


def _cuda_kernels(built: bool) -> tuple[bool | None, str]:
    """Which CUDA kernels are on, and since when or why not. On a new GPU this verifies them."""
    import torch

    from ..ops import _extension, verification

    if not built:
        if not torch.cuda.is_available():
            return None, "not built"
        return None, f"not built; PyTorch computes in their place. With nvcc on the PATH: {_extension.reinstall()}"
    if not torch.cuda.is_available():
        return None, "built; no GPU that torch can use"
    try:
        found = verification.verdict(torch.device("cuda"))
    except InputError as error:
        return False, str(error)
    return described(found)


def described(found: Verdict) -> tuple[bool | None, str]:
    """A verdict as a row: whether all is well (None: the kernels are off because they were not tried), and the text."""
    since = f", verified {found.verified}" if found.verified else f", unverified ({found.why})"
    on = f"{len(found.on)} on{since}" if found.on else f"off{since if found.verified else f' ({found.why})'}"
    if found.off:
        which = "; ".join(f"{name} ({wrong})" for name, wrong in found.off.items())
        return False, f"{on}; off, PyTorch computes in their place: {which}. Please report this"
    return (True if found.on else None), on
