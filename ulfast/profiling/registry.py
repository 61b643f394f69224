"""Every operator as a race. `ulfast profile`, `ulfast doctor` and `benchmarks/` go through this one list."""

from __future__ import annotations

from .cases import OPERATORS as _PROJECTIONS, Operator
from .generators import GENERATORS

OPERATORS: dict[str, Operator] = {**_PROJECTIONS, **GENERATORS}
