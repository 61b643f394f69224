"""The machine: processors and memory."""

from __future__ import annotations

import os
import sys

from ..errors import InputError


def launched_size() -> int:
    """How many processes a launcher started, from its environment variables; 1 unless all of them are set.

    Raises:
        InputError: all are set, but they are not numbers or do not fit together.
    """
    names = ("WORLD_SIZE", "RANK", "MASTER_PORT", "MASTER_ADDR")
    values = [os.environ.get(name, "") for name in names]
    if not all(values):
        return 1
    for name, value in zip(names[:3], values[:3], strict=True):
        if not (value.isascii() and value.isdecimal()):
            raise InputError(f"{name} is {value!r}, not a number: set what launchers set, or unset {', '.join(names)}")
    size, rank, port = map(int, values[:3])
    if rank >= size or port > 65535:
        raise InputError(
            f"RANK {rank} of WORLD_SIZE {size} at port {port}: ranks go from 0 to {size - 1}, ports to 65535"
        )
    return size


def _local_size() -> int:
    """Number of processes on this machine, from a launcher's variable; 1 if it is not a number."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(count)) if count.isdecimal() else 1


def cores() -> int:
    """Number of processors that this process may use: its share if torchrun started several on this machine."""
    # macOS has no such call.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // _local_size())


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory instead of returning it after every training step.

    Activations of tens of megabytes are allocated and freed in each step; returning their pages and faulting them in
    again cost a tenth to a quarter of the training time. For our own process only: the command line calls it, library
    modules do not.
    """
    if not sys.platform.startswith("linux") or os.environ.get("MALLOC_MMAP_THRESHOLD_"):
        return
    import ctypes

    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        library.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
