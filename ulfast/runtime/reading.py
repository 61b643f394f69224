"""Reading what others wrote: damage is one line that names the file, only files are opened, memory is asked for within
bounds, and what another process may replace is read in one version."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ..errors import InputError

T = TypeVar("T")

TRIES = 50  # to read one version of what is replaced again and again
LONGEST = 160  # characters of a reason


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], hint: str = "get it again") -> Iterator[None]:
    """The boundary around everything that parses a file: whatever it raises becomes an `InputError`, which names `path`
    and the reason and ends with the hint. The cause is chained, for --debug.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path} asks for more memory than there is: {hint}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deep: {hint}") from error
    except FileNotFoundError as error:
        missing = error.filename if isinstance(error.filename, str) else path
        raise InputError(f"{path} cannot be read, there is no {missing}: {hint}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({said(error)}): {hint}") from error
    except Exception as error:
        raise InputError(f"{path} cannot be read ({said(error)}): {hint}") from error


def said(error: BaseException) -> str:
    """What an error says, in one short line, without the addresses of objects."""
    text = getattr(error, "strerror", None) or str(error).split("<_io.")[0]
    return " ".join(text.split())[:LONGEST] or type(error).__name__


def regular(path: Path) -> Path:
    """The path of a file that is one.

    Raises:
        InputError: a pipe, a socket, a device or a folder, which may never end.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        what = next((name for test, name in kinds if test(mode)), "a device")
        raise InputError(f"{path} is {what}, not a file: remove it, or name a file")
    return path


def steady(path: Path, read: Callable[[], T]) -> T:
    """What `read` gives of one version of `path`, which another process may replace at any time.

    Raises:
        InputError: what `read` raises; `path` was replaced at every try.
    """
    for _ in range(TRIES):
        before = _version(path)
        try:
            value = read()
        except (InputError, OSError):
            if _version(path) == before:
                raise
            continue
        if _version(path) == before:
            return value
    raise InputError(f"{path} is replaced again and again while it is read: wait for its writer")


def _version(path: Path) -> list[tuple[int, int, int] | None]:
    """Of the folder or file itself, and of the manifests, which are written once."""
    found: list[tuple[int, int, int] | None] = []
    beside = path.with_name(path.name + ".json")
    for file in (path, beside, path / "manifest.json", path / "train" / "manifest.json"):
        try:
            about = os.stat(file)
            found.append((about.st_dev, about.st_ino, 0 if file is path else about.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def need_memory(path: str | os.PathLike[str], size: int, what: str) -> None:
    """Before memory is asked for as a file's header says.

    Raises:
        InputError: the machine does not have that much free.
    """
    free = free_memory()
    if free is not None and size > free:
        raise InputError(
            f"{path}: {what} would take {size / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} GiB are free:"
            " it is damaged, or this machine is too small for it"
        )


def free_memory() -> int | None:
    """Bytes that may still be asked for, by the system and by the limits of this process; None where nobody says."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    return min(found) if found else None
