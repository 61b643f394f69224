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

REQUIRED = ("torch", "numpy", "click", "rich", "pyyaml", "pooch", "requests", "pillow", "simplejpeg", "safetensors",
            "matplotlib", "scipy")  # fmt: skip
OPTIONAL = {"kornia": "recipe paper", "timm": "models timm:NAME"}


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
    add(
        "cuda kernels",
        True if about["cuda"] else None,
        "built, used with ULFAST_CUDA_KERNELS=1" if about["cuda"] else "not built",
    )
    before = about["cpu_level"]
    for level, usable in about["cpu_levels"].items():
        if not usable:
            continue
        _extension.set_cpu_level(level)
        failed = [f"{name} ({problem})" for name, check in KERNEL_CHECKS.items() if (problem := _attempt(check))]
        text = f"wrong: {', '.join(failed)}" if failed else f"{len(KERNEL_CHECKS)} operators agree with their twins"
        add(f"level {level}", not failed, text)
    _extension.set_cpu_level(before)


def _attempt(check: Callable[[], float]) -> str | None:
    try:
        error = check()
    except Exception as problem:  # whatever it is, the report names it
        return f"{type(problem).__name__}: {problem}"
    return None if error < 1e-4 else f"off by {error:.2g}"


def _data() -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (33, 8, 8, 3), dtype=torch.uint8, generator=generator)
    basis = torch.linalg.qr(torch.randn(192, 5, generator=generator))[0].T.contiguous()
    return images, basis, torch.arange(33) % 4


def _check_project() -> float:
    from .. import ops
    from ..ops import reference

    images, basis, _ = _data()
    return float((ops.project(images, basis) - reference.project(images, basis)).abs().max())


def _check_ingest() -> float:
    import torch

    from .. import ops
    from ..ops import reference

    images, basis, labels = _data()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    shift = torch.stack([labels - 2, 1 - labels], 1).to(torch.int32)
    extra = {"index": torch.arange(32, -1, -1), "shift": shift, "flip": labels % 2 == 0}
    got = ops.ingest(images, basis, mean, std, **extra)
    return float((got - reference.ingest(images, basis, mean, std, torch.float32, **extra)).abs().max())


def _check_softmax() -> float:
    import torch

    from .. import ops
    from ..ops import reference

    images, _, labels = _data()
    ours, twin = torch.zeros(4, 192), torch.zeros(4, 192)
    for _ in range(3):
        ops.softmax_regression_step(images, labels, ours, 0.1)
        reference.softmax_regression_step(images, labels, twin, 0.1)
    return float((ours - twin).abs().max())


def _check_apply() -> float:
    import torch

    from .. import ops
    from ..ops import reference

    images, basis, labels = _data()
    delta = basis[:4].reshape(4, 8, 8, 3)
    got, want = (
        f(images, delta, index=labels, truncate=True) for f in (ops.apply_perturbation, reference.apply_perturbation)
    )
    return float((got.to(torch.int16) - want.to(torch.int16)).abs().max())


def _check_pgd() -> float:
    import torch

    from .. import ops
    from ..ops import reference

    images, basis, _ = _data()
    start = images[:4] / 255
    gradient = basis[:4].reshape(start.shape).contiguous()
    worst = 0.0
    for norm, eps in (("linf", 8 / 255), ("l2", 0.2)):
        ours, twin = start.clone(), start.clone()
        for _ in range(3):
            ops.pgd_step(ours, gradient, start, alpha=0.02, eps=eps, norm=norm)
            reference.pgd_step(twin, gradient, start, 0.02, eps, norm)
        worst = max(worst, float((ours - twin).abs().max()))
    assert torch.isfinite(ours).all()
    return worst


def _check_philox() -> float:
    from .. import ops
    from ..ops import reference

    return float((ops.philox_normal(7, 1, 3, 9, 50) - reference.philox_normal(7, 1, 3, 9, 50)).abs().max())


def _check_lsp() -> float:
    from .. import ops
    from ..ops import reference

    labels = _data()[2]
    centroids, mixing = (
        ops.philox_uniform(1, 2, 0, 4, 12) * 20 - 10,
        ops.philox_uniform(1, 2, 4, 4, 144).view(4, 12, 12),
    )
    got = ops.perturb_lsp(labels, centroids, mixing, seed=5, first=2, size=(8, 8, 3), patch=4, norm=1.0)
    want = reference.perturb_lsp(labels, centroids, mixing, 5, 2, 8, 8, 3, 4, 1.0)
    return float((got - want).abs().max())


KERNEL_CHECKS: dict[str, Callable[[], float]] = {
    "project": _check_project,
    "ingest": _check_ingest,
    "softmax_regression_step": _check_softmax,
    "apply_perturbation": _check_apply,
    "pgd_step": _check_pgd,
    "philox_normal": _check_philox,
    "perturb_lsp": _check_lsp,
}
