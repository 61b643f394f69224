"""Measuring data sets: telling poisoned from clean, linear separability, the facts of `ulfast data info`."""

from .diagnosis import Diagnosis, Evidence, diagnose

__all__ = ["Diagnosis", "Evidence", "diagnose"]
