"""The machine: processors and memory."""

from __future__ import annotations

import os
import sys

from ..errors import InputError


def launched_size() -> int:
    """How many processes a launcher started, by its variables: 1 unless all of them are there.

    Raises:
        InputError: they are all there, and no numbers or none that fit together.
    """
    names = ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR")
    values = [os.environ.get(name, "") for name in names]
    if not all(values):
        return 1
    for name, value in zip(names[:3], values[:3], strict=True):
        if not (value.isascii() and value.isdecimal()):
            raise InputError(f"{name} is {value!r}, no number: set what a launcher sets, or unset {', '.join(names)}")
    size, rank, port = map(int, values[:3])
    if rank >= size or port > 65535:
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {size} at port {port}: ranks go from 0 to {size - 1}, ports to 65535"
        )
    return size


def _local_size() -> int:
    """Processes on this machine, by a launcher's variable; 1 where it is no number."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def cores() -> int:
    """Processors that this process may use: its share where torchrun started several on this machine."""
    # macOS has no such call.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // _local_size())


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
