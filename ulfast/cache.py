"""The folder where ulfast keeps what it can fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(cache: str | os.PathLike[str] | None = None) -> Path:
    """The argument, otherwise ULFAST_CACHE, otherwise `ulfast` in XDG_CACHE_HOME or ~/.cache."""
    if cache is not None:
        return Path(cache)
    if os.environ.get("ULFAST_CACHE"):
        return Path(os.environ["ULFAST_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulfast"
