"""ulfast: make unlearnable image data sets, learn from them anyway, and measure both.

Everything below is loaded at first use; importing ulfast itself imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import ExtensionError, InputError, WorkerError
from .version import __version__

if TYPE_CHECKING:
    from . import distributed, ops, transforms
    from .analysis.diagnosis import Diagnosis, diagnose
    from .attacks import AttackResult, attack
    from .bases import partial_rows
    from .basis import Basis
    from .data import Augment, Dataset, MemoryLoader, load_dataset, write_dataset
    from .fit import fit_basis
    from .grid import Grid
    from .modules import OrthogonalProjection
    from .noise import MeanNoise, fit_mean_noise, noise_scale
    from .ops import ingest, project, project_, project_classwise
    from .patches import PatchBasis, PatchProjection, fit_patches
    from .poisons import poison
    from .reproduce import GridResult, reproduce

_HOME = {
    "distributed": "distributed", "ops": "ops", "project": "ops", "project_": "ops", "project_classwise": "ops",
    "ingest": "ops",
    "Basis": "basis", "fit_basis": "fit", "OrthogonalProjection": "modules", "transforms": "transforms",
    "Dataset": "data", "load_dataset": "data", "write_dataset": "data", "MemoryLoader": "data", "Augment": "data",
    "PatchBasis": "patches", "PatchProjection": "patches", "fit_patches": "patches",
    "MeanNoise": "noise", "fit_mean_noise": "noise", "noise_scale": "noise", "partial_rows": "bases",
    "diagnose": "analysis", "Diagnosis": "analysis",
    "poison": "poisons", "attack": "attacks", "AttackResult": "attacks",
    "Grid": "grid", "GridResult": "reproduce", "reproduce": "reproduce",
}  # fmt: skip

__all__ = [
    "AttackResult",
    "Augment",
    "Basis",
    "Dataset",
    "Diagnosis",
    "ExtensionError",
    "Grid",
    "GridResult",
    "InputError",
    "MeanNoise",
    "MemoryLoader",
    "OrthogonalProjection",
    "PatchBasis",
    "PatchProjection",
    "WorkerError",
    "__version__",
    "attack",
    "diagnose",
    "distributed",
    "fit_basis",
    "fit_mean_noise",
    "fit_patches",
    "ingest",
    "load_dataset",
    "noise_scale",
    "ops",
    "partial_rows",
    "poison",
    "project",
    "project_",
    "project_classwise",
    "reproduce",
    "transforms",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ulfast' has no attribute {name!r}")
    module = importlib.import_module(f".{_HOME[name]}", __name__)
    value = module if _HOME[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
