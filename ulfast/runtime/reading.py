"""Reading files from elsewhere. Damage is reported in one line that names the file, only regular files are opened,
allocations are bounded, and data that another process may replace is read in a single version."""

from __future__ import annotations

import contextlib
import hashlib
import os
import reprlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InputError

T = TypeVar("T")

# Characters in a settings file, which PyYAML reads within seconds even if all are brackets, and entries.
LARGEST_YAML, MOST_NODES = 1 << 16, 100_000
CHECKSUM = "checksum"  # its key in what `save_tensors` writes
TRIES = 50  # attempts to read one version of a path that is replaced repeatedly
LONGEST = 160  # characters in a reason


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], hint: str = "get it again", what: str = "") -> Iterator[None]:
    """The boundary around all code that parses a file: whatever it raises becomes an `InputError` that names `path` and
    the reason and ends with the hint. `what` says as what the file cannot be read. The cause is chained, for --debug.
    """
    cannot = f"{path} cannot be read{what and ' '}{what}"
    try:
        with naming(path):
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{cannot}, it asks for more memory than there is: {hint}") from error
    except RecursionError as error:
        raise InputError(f"{cannot}, it is nested too deep: {hint}") from error
    except FileNotFoundError as error:
        missing = error.filename if isinstance(error.filename, str) else path
        raise InputError(f"{cannot}, there is no {missing}: {hint}") from error
    except OSError as error:
        raise InputError(f"{cannot} ({said(error)}): {hint}") from error
    except Exception as error:
        raise InputError(f"{cannot} ({said(error)}): {hint}") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An `InputError` within it names `path`, as what checks a value knows no file, and is one line, whatever stands in
    the file."""
    try:
        yield
    except InputError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        if text == str(error):
            raise
        raise type(error)(text) from error


def said(error: BaseException) -> str:
    """An error's message as one short line, without object addresses."""
    text = getattr(error, "strerror", None) or str(error).split("<_io.")[0]
    return " ".join(text.split())[:LONGEST] or type(error).__name__


def regular(path: Path) -> Path:
    """Checks that a path is a regular file, and returns it.

    Raises:
        InputError: it is a pipe, a socket, a device (whose reading may never end) or a folder.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        what = next((name for test, name in kinds if test(mode)), "a device")
        raise InputError(f"{path} is {what}, not a file: remove it, or name a file")
    return path


def load_tensors(path: Path, hint: str, what: str = "as a checkpoint") -> dict[str, Any]:
    """Loads what `save_tensors` wrote and verifies its checksum; no code in it is run.

    Raises:
        InputError: the file is missing, damaged or from another program.
    """
    import torch

    with reading(path, hint, what):
        content = torch.load(regular(path), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        told = content.pop(CHECKSUM, None)  # files of ulfast 0.1.0 have none
        if told is not None and told != checksum(content):
            raise ValueError("it does not match its checksum")
    return content


def checksum(content: Any) -> str:
    """A checksum of containers of tensors, numbers and text, in order."""
    import torch

    found = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(repr((value.dtype, tuple(value.shape))).encode())
            if value.requires_grad:  # what is saved never does
                found.update(b"requires grad")
            plain = value.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            found.update(b"{")
            for key, member in value.items():
                found.update(repr(key).encode("utf-8", "backslashreplace"))
                add(member)
            found.update(b"}")
        elif isinstance(value, (list, tuple)):
            found.update(b"[")
            for member in value:
                add(member)
            found.update(b"]")
        else:
            found.update(repr(value).encode("utf-8", "backslashreplace"))

    add(content)
    return found.hexdigest()


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Aliases are allowed unless they expand without bound.

    Raises:
        InputError: the file is not YAML, or is too large for a settings file.
    """
    with reading(path, "repair it", "as YAML"):
        text = regular(path).read_text(encoding="utf-8")
        if len(text) > LARGEST_YAML:
            raise InputError(f"{path} has {len(text):,} characters: settings have {LARGEST_YAML:,} at most")
        return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        Exception: of many types, if the text is not YAML.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_nodes(node)
        return loader.construct_document(node)  # type: ignore[no-untyped-call]
    finally:
        loader.dispose()  # type: ignore[no-untyped-call]


def _check_nodes(root: Any) -> None:
    """Counts the nodes of a YAML document, each as often as it is reached; ValueError if there are too many."""
    counts: dict[int, int] = {}

    def count(node: Any) -> int:
        if id(node) not in counts:
            counts[id(node)] = -1
            members = node.value if isinstance(node.value, list) else []
            if members and isinstance(members[0], tuple):  # of a mapping
                members = [one for pair in members for one in pair]
            counts[id(node)] = 1 + sum(map(count, members))
        if counts[id(node)] < 0:
            raise ValueError("a list or mapping that holds itself")
        if counts[id(node)] > MOST_NODES:
            raise ValueError(f"aliases that make more than {MOST_NODES:,} entries of it")
        return counts[id(node)]

    count(root)


def shown(value: Any) -> str:
    """A value for an error message: its `repr`, truncated."""
    return reprlib.repr(value)


def steady(path: Path, read: Callable[[], T]) -> T:
    """The result of `read` for a single version of `path`, which another process may replace at any time.

    Raises:
        InputError: raised by `read`, or `path` was replaced during every attempt.
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
    """Identifies a version by the folder or file itself and by the manifests, which are written once."""
    found: list[tuple[int, int, int] | None] = []
    beside = path.with_name(path.name + ".json")
    inside = ("manifest.json", "train/manifest.json", "ulfast.json")
    for file in (path, beside, *(path / name for name in inside)):
        try:
            about = os.stat(file)
            found.append((about.st_dev, about.st_ino, 0 if file is path else about.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def need_memory(path: str | os.PathLike[str], size: int, what: str) -> None:
    """Checks for free memory before it is allocated as a file's header asks.

    Raises:
        InputError: the machine does not have that much memory free.
    """
    free = free_memory()
    if free is not None and size > free:
        raise InputError(
            f"{path}: {what} would take {size / 2**30:,.1f} GiB of memory, {free / 2**30:,.1f} GiB are free:"
            " it is damaged, or this machine is too small for it"
        )


def free_memory() -> int | None:
    """Bytes that may still be allocated under the limits of the system and this process; None if these are unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's own limit
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        found.append(max(0, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    return min(found) if found else None
