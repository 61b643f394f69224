"""Measuring data sets: telling poisoned from clean, linear separability, what `ulfast data info` says."""

from .diagnosis import Diagnosis, Evidence, diagnose

__all__ = ["Diagnosis", "Evidence", "diagnose"]
