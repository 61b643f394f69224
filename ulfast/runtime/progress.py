"""Progress reports from long-running work."""

from __future__ import annotations

from collections.abc import Callable

# Called as ``progress(stage, done, total, **numbers)``: a word, two counts of the same unit, and figures to show.
Progress = Callable[..., None]
