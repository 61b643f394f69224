"""The machine: processors and memory."""

from __future__ import annotations

import os
import sys


def cores() -> int:
    """Processors that this process may use: its share where torchrun started several on this machine."""
    # macOS has no such call.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory instead of giving it back after every training step.

    Activations of tens of megabytes come and go with each step; returning their pages and faulting them in anew cost
    a tenth to a quarter of the training's time. For our own process only: the command line calls it, no library module.
    """
    if not sys.platform.startswith("linux") or os.environ.get("MALLOC_MMAP_THRESHOLD_"):
        return
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
