"""All operators as benchmark cases: the one list for `ulfast profile`, `ulfast doctor` and `benchmarks/`."""

from __future__ import annotations

from .cases import OPERATORS as _PROJECTIONS, Operator
from .generators import GENERATORS

OPERATORS: dict[str, Operator] = {**_PROJECTIONS, **GENERATORS}
