"""Measuring kernels: what races what, on which machine, how near to its roof."""

from .cases import OPERATORS, Case, Operator, Shape
from .measure import Row, measure, roof

__all__ = ["OPERATORS", "Case", "Operator", "Row", "Shape", "measure", "roof"]
