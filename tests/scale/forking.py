"""Processes that work together, without a launcher and without the seconds in which each would import torch."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable


def fork(size: int, function: Callable[..., object], *arguments: object) -> None:
    """Calls the function in as many forks of this process, told of each other as torchrun does. One that fails ends
    the others.

    Raises:
        SystemExit: a fork failed.
    """
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    children = set()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ.update(together, RANK=str(rank), LOCAL_RANK=str(rank))
                function(*arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.add(child)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(f"a process of {size} ended with {os.waitstatus_to_exitcode(status)}")
