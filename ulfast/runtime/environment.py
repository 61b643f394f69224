"""The environment of a result: versions, machine, threads, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..version import __version__


def describe() -> dict[str, Any]:
    """Versions, device, CPU and threads as JSON-serialisable values. Imports torch."""
    import numpy
    import torch

    from ..ops import _extension

    return {
        "ulfast": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_level": _extension.describe()["cpu_level"],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


@lru_cache
def commit() -> str | None:
    """The commit of the checkout that this package runs from, followed by "+" if files differ. Outside a checkout, the
    value of ULFAST_COMMIT, or None.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return os.environ.get("ULFAST_COMMIT") or None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def cpu_name() -> str:
    """The CPU's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
