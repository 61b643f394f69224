"""ulfast: make unlearnable image data sets, learn from them anyway, and measure both.

Everything below is loaded at first use; importing ulfast itself imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import ExtensionError as ExtensionError, InputError as InputError, WorkerError as WorkerError
from .version import __version__ as __version__

# Where each public name lives; type checkers read the same below.
_HOME = {
    name: home
    for home, names in {
        "ops": ("ops", "ingest", "project", "project_", "project_classwise"),
        "distributed": ("distributed",),
        "transforms": ("transforms",),
        "data": ("Augment", "Dataset", "MemoryLoader", "from_hf", "load_dataset", "write_dataset"),
        "projection": (
            *("Basis", "MeanNoise", "OrthogonalProjection", "PatchBasis", "PatchProjection"),
            *("fit_basis", "fit_mean_noise", "fit_patches", "noise_scale", "partial_rows"),
        ),
        "poisons": ("poison", "poison_arrays"),
        "analysis": ("Diagnosis", "diagnose"),
        "attacks": ("AttackResult", "attack"),
        "grids": ("Grid", "GridResult", "reproduce"),
    }.items()
    for name in names
}

if TYPE_CHECKING:
    from . import distributed as distributed, ops as ops, transforms as transforms
    from .analysis import Diagnosis as Diagnosis, diagnose as diagnose
    from .attacks import AttackResult as AttackResult, attack as attack
    from .data import (
        Augment as Augment,
        Dataset as Dataset,
        MemoryLoader as MemoryLoader,
        from_hf as from_hf,
        load_dataset as load_dataset,
        write_dataset as write_dataset,
    )
    from .grids import Grid as Grid, GridResult as GridResult, reproduce as reproduce
    from .ops import ingest as ingest, project as project, project_ as project_, project_classwise as project_classwise
    from .poisons import poison as poison, poison_arrays as poison_arrays
    from .projection import (
        Basis as Basis,
        MeanNoise as MeanNoise,
        OrthogonalProjection as OrthogonalProjection,
        PatchBasis as PatchBasis,
        PatchProjection as PatchProjection,
        fit_basis as fit_basis,
        fit_mean_noise as fit_mean_noise,
        fit_patches as fit_patches,
        noise_scale as noise_scale,
        partial_rows as partial_rows,
    )

__all__ = sorted([*_HOME, "ExtensionError", "InputError", "WorkerError", "__version__"])


def _public(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ulfast' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME[name]}", __name__)
    value = module if _HOME[name] == name else getattr(module, name)
    globals()[name] = value
    return value


if not TYPE_CHECKING:  # a type checker that saw it would accept any name
    __getattr__ = _public


def __dir__() -> list[str]:
    return sorted(__all__)
