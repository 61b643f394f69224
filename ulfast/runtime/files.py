"""Atomic output by one writer at a time: a lock, a temporary sibling, fsync, rename."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .made import beside_new, check_replace
from .reading import CHECKSUM, checksum

# Errors of the location, not of the program.
_PLACE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EIO}
_PLACE |= {errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What different systems and disks report when they lack the call.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

TEMPORARY = "ulfast-tmp-"
YOUNG = 60  # seconds: a younger temporary folder may not be locked yet
_temporary: dict[Path, int] = {}

SETTINGS = ".settings.json"  # in an incomplete folder: the settings of its run

# Outputs claimed by a thread of a process; outputs that a writer is working on.
_held: dict[str, tuple[int, int]] = {}
_alone: set[str] = set()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or missing permission into an `InputError` that names `path`."""
    try:
        yield
    except OSError as error:
        # numpy's tofile reports how much it wrote, but no errno.
        if error.errno in _FULL or (error.errno is None and "requested and" in str(error)):
            raise InputError(
                f"the disk is full while writing {path}: free some space or choose another --out"
            ) from error
        if error.errno in _PLACE:
            raise InputError(f"cannot write {path} ({error.strerror}): choose another --out") from error
        raise


@contextlib.contextmanager
def claimed(
    path: str | os.PathLike[str],
    *,
    alone: bool = False,
    wait: bool = False,
    tell: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Reserves `path` for this thread during the block, after removing what killed writers left of it.

    The lock is on `.NAME.lock` beside it and is released when the process ends, however it ends. A command may claim
    its output and then call functions that claim it too. On disks without locks none is taken.

    Args:
        alone: claim as a writer, of which there may be only one at a time even within a thread.
        wait: wait until another writer is done instead of raising an error; `tell` is called first.

    Raises:
        InputError: another process is writing it, or the location is not writable.
    """
    path = Path(path)
    name, me = os.path.realpath(path), (os.getpid(), threading.get_ident())
    with contextlib.ExitStack() as stack:
        if _held.get(name) != me:
            stack.enter_context(_first_claim(path, name, me, wait, tell))
        if alone:
            if name in _alone:
                raise _taken(path)
            _alone.add(name)
            stack.callback(_alone.discard, name)
        yield


@contextlib.contextmanager
def _first_claim(
    path: Path, name: str, me: tuple[int, int], wait: bool, tell: Callable[[], object] | None
) -> Iterator[None]:
    with writing(path):
        made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        file = _sibling(path, "lock")
        descriptor = _locked(file, path, wait, tell)
    _held[name] = me
    _alone.discard(name)  # inherited, if a fork's parent was writing
    try:
        with writing(path):
            tidy(path)
        yield
    finally:
        del _held[name]
        if os.getpid() == me[0]:  # not in a fork that leaves the block
            file.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # removes it if nothing was written
            for folder in made:
                folder.rmdir()


def _taken(path: Path) -> InputError:
    return InputError(f"another process is writing {path}: wait for it, or give another --out")


def _locked(file: Path, path: Path, wait: bool, tell: Callable[[], object] | None) -> int:
    """A descriptor of the lock file, locked. A leaving writer removes the file, so it may be a new one by then."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # a leaving writer may also remove the folder that it made
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise _taken(path) from None
                if tell is not None:
                    tell()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


def part_folder(path: Path) -> Path:
    """The place where a resumable folder is written until it is complete."""
    return _sibling(path, "part")


def tidy(path: Path) -> None:
    """Finishes or removes what a killed writer of `path` began. The caller must have claimed `path`.

    A half-exchanged folder becomes the new one; temporary folders and files of `path` are removed. `part_folder`, which
    can be resumed, stays if it holds its `SETTINGS`.
    """
    new, part = _sibling(path, "new"), part_folder(path)
    if new.exists():
        _exchange_by_names(path)
    for kind in ("old", "tmp", "unpack"):
        remove(_sibling(path, kind))
    if part.is_dir() and not (part / SETTINGS).exists():
        if (part / "train" / "manifest.json").exists() and not os.path.lexists(path):
            os.replace(part, path)  # complete, but killed just before the rename
        else:
            remove(part)
    _sweep(path)


def recover(path: Path) -> None:
    """For a reader: restores `path` if it is missing because a writer was killed between two renames."""
    if not path.exists() and _sibling(path, "new").is_dir():
        with claimed(path, wait=True):
            pass


def remove(path: Path) -> None:
    """Removes a file, a link or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises unless `path` can be created: it does not exist, or ulfast made it and it may be replaced."""
    with writing(path):
        if path.is_dir() and not any(path.iterdir()):
            return
        there = os.path.lexists(path)
    if there and overwrite:
        check_replace(path)
    elif there:
        raise InputError(f"{path} exists already: choose another --out, or say --overwrite to replace it")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block succeeds, and is removed otherwise."""
    path = Path(path)
    check_free(path, overwrite)
    with claimed(path, alone=True), writing(path):
        check_free(path, overwrite)
        part = _sibling(path, "tmp")
        part.mkdir()
        try:
            yield part
            publish(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


def publish(part: Path, path: Path) -> None:
    """Renames a finished folder `part` to `path` beside it, in one step even if it replaces an existing folder: a kill
    leaves either the old or the new one. The caller must have claimed `path`.
    """
    for entry in part.rglob("*"):
        if entry.is_file() or entry.is_dir():
            sync(entry)
    part.chmod(0o777 & ~_umask())
    if not os.path.lexists(path):
        os.replace(part, path)
    elif not exchange(part, path):
        os.replace(part, _sibling(path, "new"))
        _exchange_by_names(path)
    sync(path.parent)
    remove(part)  # the old folder, after an exchange


def exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step (renameat2, Linux 3.15); False if the system or disk cannot do it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(one), here, os.fsencode(other), swap) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _exchange_by_names(path: Path) -> None:
    """Renames `.NAME.new`, which is complete, to NAME; the names alone show how far a killed process got."""
    new, old = _sibling(path, "new"), _sibling(path, "old")
    if os.path.lexists(path):
        remove(old)
        os.replace(path, old)
    os.replace(new, path)
    remove(old)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` that replaces `path` when the block succeeds."""
    path = Path(path)
    with writing(path):
        _sweep(path)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # marks it as in use for processes that sweep
            yield part
            sync(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def publish_with(part: Path, path: Path, beside: Path, about: dict[str, Any]) -> None:
    """Renames a finished file `part` to `path`, with a JSON file `beside` it that fits only this file. After a kill in
    between, the JSON is under `beside_new`, where readers look.
    """
    write_json(beside_new(beside), about)
    sync(part)
    os.replace(part, path)
    os.replace(beside_new(beside), beside)
    sync(path.parent)


def _sweep(path: Path) -> None:
    """Removes temporary files of `path` whose processes are gone."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not re.fullmatch(r"\.[0-9a-f]{8}\.part", stale.name[len(path.name) + 1 :]):
            continue
        with contextlib.suppress(OSError):  # locked: a process is writing it
            descriptor = os.open(stale, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stale.is_file():
                    stale.unlink()
            finally:
                os.close(descriptor)


def temporary_folder() -> Path:
    """A new folder in the system's temporary directory, removed with `drop`; clears those of killed processes."""
    for stale in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another user's, or locked by the process that uses it
            descriptor = os.open(stale, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                about = os.fstat(descriptor)
                if about.st_uid == os.getuid() and time.time() - about.st_ctime > YOUNG:
                    shutil.rmtree(stale)
            finally:
                os.close(descriptor)
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY))
    _temporary[folder] = descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return folder


def drop(folder: Path) -> None:
    """Removes a `temporary_folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    descriptor = _temporary.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def save_tensors(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """`torch.save` of a dictionary, atomically, with a checksum of its content for `load_tensors`."""
    with atomic_file(path) as part:
        write_tensors(part, {**content, CHECKSUM: checksum(content)})


def write_tensors(path: Path, content: Any) -> None:
    """`torch.save`, but a full disk raises an OSError, which torch hides behind an error of its own."""
    import torch

    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            raise (reason or error) from None


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON, atomically."""
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
