"""Measuring data sets: detecting poison, linear separability, and the facts of `ulfast data info`."""

from .diagnosis import Diagnosis, Evidence, diagnose

__all__ = ["Diagnosis", "Evidence", "diagnose"]
