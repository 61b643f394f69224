"""Writing that leaves the whole output or none: a temporary sibling, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .made import check_replace


def _reason(error: OSError, path: Path) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"the disk is full while writing {path}: free some space or choose another --out")
    return InputError(f"cannot write {path} ({error.strerror}): choose another --out")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into an `InputError` that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise _reason(error, path) from error
        raise


def check_free(path: Path, overwrite: bool) -> None:
    """Raises unless `path` can be made: it does not exist, or ulfast made it and it may be replaced."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path) and overwrite:
        check_replace(path)
    elif os.path.lexists(path):
        raise InputError(f"{path} exists already: choose another --out, or say --overwrite to replace it")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and is removed otherwise."""
    path = Path(path)
    check_free(path, overwrite)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        try:
            yield part
            publish(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def publish(part: Path, path: Path) -> None:
    """A finished folder `part` becomes `path` beside it, in place of what is there."""
    for file in part.rglob("*"):
        if file.is_file():
            sync(file)
    part.chmod(0o777 & ~_umask())
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        os.replace(path, old / "old")
        os.replace(part, path)
        shutil.rmtree(old)
    else:
        os.replace(part, path)
    sync(path.parent)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file name beside `path` that replaces `path` when the block ends well."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        _sweep(path)
        try:
            yield part
            sync(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _sweep(path: Path) -> None:
    """Removes what processes that were killed have left of the same file."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = stale.name.removesuffix(".part").rpartition(".")[2]
        if number.isdigit() and stale.is_file():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                stale.unlink(missing_ok=True)
            except OSError:
                pass  # it lives, and is somebody else's


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """`torch.save`, atomically; a full disk is one line here too, which torch hides behind an error of its own."""
    import torch

    with atomic_file(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            raise (reason or error) from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Indented JSON, atomically."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
