"""Every operator as a race: the one list of `ulfast profile`, `ulfast doctor` and `benchmarks/`."""

from __future__ import annotations

from .cases import OPERATORS as _PROJECTIONS, Operator
from .generators import GENERATORS

OPERATORS: dict[str, Operator] = {**_PROJECTIONS, **GENERATORS}
