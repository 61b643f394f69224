"""Looking up names in a registry: aliases, any case, and the nearest name for a message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def resolve(name: str, registry: Mapping[str, Any]) -> str | None:
    """The registered name for a name or alias in any case, or None."""
    low = name.lower().replace("_", "-")
    if low in registry:
        return low
    return next((key for key, entry in registry.items() if low in getattr(entry, "aliases", ())), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"``, or nothing."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
