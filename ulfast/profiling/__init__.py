"""Measuring and checking kernels: what races what, on which machine, how near to its roof."""

try:
    from .cases import OPERATORS as _PROJECTIONS
    from .cases import Case, Operator, Shape
    from .generators import GENERATORS
    from .measure import Row, measure, roof
except ModuleNotFoundError as error:
    if error.name != "torch":  # without it `ulfast doctor` has something to say
        raise
else:
    OPERATORS: dict[str, Operator] = {**_PROJECTIONS, **GENERATORS}

__all__ = ["OPERATORS", "Case", "Operator", "Row", "Shape", "measure", "roof"]
