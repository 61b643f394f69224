"""What `ulfast doctor` looks at. A check is {"name", "ok" (None: optional and absent), "text"}."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

from ..errors import ExtensionError, InputError
from ..runtime import environment
from ..version import __version__

# The dependencies of pyproject.toml; a test compares them.
REQUIRED = (
    "torch",
    "numpy",
    "click",
    "rich",
    "pyyaml",
    "pooch",
    "requests",
    "pillow",
    "simplejpeg",
    "safetensors",
    "matplotlib",
    "scipy",
    "jinja2",
)
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
        f"missing: {', '.join(missing)}; pip install ulfast" if missing else ", ".join(versions),
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
            add(name, None, f"not usable ({error}); {use}")
    _ffcv(add)
    return {"ok": all(check["ok"] is not False for check in checks), "checks": checks}


def _ffcv(add: Callable[[str, bool | None, str], None]) -> None:
    """FFCV, imported with the guard that keeps torch's threads."""
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
    if about["cuda_problem"]:
        add("cuda kernels", None, f"built, not usable here: {about['cuda_problem']}")
    else:
        text = "built, used with ULFAST_CUDA_KERNELS=1" if about["cuda"] else "not built"
        add("cuda kernels", True if about["cuda"] else None, text)
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
