"""Measuring poisons: perturbation statistics, and telling poisoned data from clean."""

from __future__ import annotations

from typing import Any

from .statistics import PerturbationStatistics

__all__ = ["Diagnosis", "Evidence", "PerturbationStatistics", "diagnose"]


def __getattr__(name: str) -> Any:
    # The poisons import the statistics from here, and the diagnosis stands above them.
    if name in ("Diagnosis", "Evidence", "diagnose"):
        from . import diagnosis as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
