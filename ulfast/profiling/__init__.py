"""Measuring kernels: what races what, on which machine, how near to its roof."""

from .cases import OPERATORS as _PROJECTIONS, Case, Operator, Shape
from .generators import GENERATORS
from .measure import Row, measure, roof

OPERATORS: dict[str, Operator] = {**_PROJECTIONS, **GENERATORS}

__all__ = ["OPERATORS", "Case", "Operator", "Row", "Shape", "measure", "roof"]
