"""Writing that leaves the whole output or none, one writer at a time: a lock, a temporary sibling, fsync, rename."""

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

# What is wrong with the place, not with the program.
_PLACE = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EIO}
_PLACE |= {errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A system or a disk without the call, each says it in its own way.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

TEMPORARY = "ulfast-tmp-"
YOUNG = 60  # seconds: of a temporary folder that may not be locked yet
_temporary: dict[Path, int] = {}

SETTINGS = ".settings.json"  # in a folder that is not whole: what it is of

# Outputs that a process and thread of it have claimed; those that a writer is at work on.
_held: dict[str, tuple[int, int]] = {}
_alone: set[str] = set()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into an `InputError` that names `path`."""
    try:
        yield
    except OSError as error:
        # numpy's tofile says how much it wrote, and no number.
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
    """Keeps `path` to this thread while the block lasts, and first clears away what killed writers have left of it.

    The lock is on `.NAME.lock` beside it and ends with the process, however it ends. A command may claim its output and
    then call what claims it too. Disks without locks are used without.

    Args:
        alone: by a writer, of which there is one at a time in a thread too.
        wait: until another writer is done, instead of an error; `tell` is called before.

    Raises:
        InputError: somebody else is writing it, or the place may not be written.
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
    _alone.discard(name)  # a fork's parent may have been
    try:
        with writing(path):
            tidy(path)
        yield
    finally:
        del _held[name]
        if os.getpid() == me[0]:  # not in a fork that ends with the block
            file.unlink(missing_ok=True)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # where nothing has come of it
            for folder in made:
                folder.rmdir()


def _taken(path: Path) -> InputError:
    return InputError(f"another process is writing {path}: wait for it, or give another --out")


def _locked(file: Path, path: Path, wait: bool, tell: Callable[[], object] | None) -> int:
    """A descriptor of the lock file, locked. Who leaves removes the file, so it may be another one by then."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)  # who leaves may remove the folder that it made, too
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
    """Where a folder that can be resumed is written until it is whole."""
    return _sibling(path, "part")


def tidy(path: Path) -> None:
    """Ends what a killed writer of `path` has begun; only for who has claimed it.

    A folder half exchanged becomes the new one; temporary folders and files of `path` are removed. What can be resumed
    stays: `part_folder`, as long as it holds its `SETTINGS`.
    """
    new, part = _sibling(path, "new"), part_folder(path)
    if new.exists():
        _exchange_by_names(path)
    for kind in ("old", "tmp", "unpack"):
        remove(_sibling(path, kind))
    if part.is_dir() and not (part / SETTINGS).exists():
        if (part / "train" / "manifest.json").exists() and not os.path.lexists(path):
            os.replace(part, path)  # whole, and killed a moment before it had its name
        else:
            remove(part)
    _sweep(path)


def recover(path: Path) -> None:
    """For a reader: `path` is not there since a writer was killed between two names; then it is."""
    if not path.exists() and _sibling(path, "new").is_dir():
        with claimed(path, wait=True):
            pass


def remove(path: Path) -> None:
    """A file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_free(path: Path, overwrite: bool) -> None:
    """Raises unless `path` can be made: it does not exist, or ulfast made it and it may be replaced."""
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
    """A temporary folder beside `path` that becomes `path` when the block ends well, and is removed otherwise."""
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
    """A finished folder `part` becomes `path` beside it, in one step also where it takes the place of what is there: a
    kill leaves the old one or the new one. For who has claimed `path`.
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
    remove(part)  # the old one, after an exchange


def exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step (renameat2, Linux 3.15); False where system or disk cannot do it."""
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
    """`.NAME.new`, which is whole, becomes NAME; the names alone say how far a killed process has come."""
    new, old = _sibling(path, "new"), _sibling(path, "old")
    if os.path.lexists(path):
        remove(old)
        os.replace(path, old)
    os.replace(new, path)
    remove(old)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside `path` that replaces `path` when the block ends well."""
    path = Path(path)
    with writing(path):
        _sweep(path)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # alive, for who sweeps
            yield part
            sync(part)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def publish_with(part: Path, path: Path, beside: Path, about: dict[str, Any]) -> None:
    """A finished file `part` becomes `path`, with a JSON `beside` it that only fits this file. Killed in between, the
    JSON lies under `beside_new`, where readers look.
    """
    write_json(beside_new(beside), about)
    sync(part)
    os.replace(part, path)
    os.replace(beside_new(beside), beside)
    sync(path.parent)


def _sweep(path: Path) -> None:
    """Removes the temporary files of `path` whose processes are gone."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        if not re.fullmatch(r"\.[0-9a-f]{8}\.part", stale.name[len(path.name) + 1 :]):
            continue
        with contextlib.suppress(OSError):  # locked: somebody is writing it
            descriptor = os.open(stale, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if stale.is_file():
                    stale.unlink()
            finally:
                os.close(descriptor)


def temporary_folder() -> Path:
    """A new folder in the system's place for temporary files, for `drop`; those of processes that were killed go."""
    for stale in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):  # another user's, or locked by who works in it
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
    """`torch.save` of a dictionary, atomically, with a checksum of all that is in it for `load_tensors`."""
    with atomic_file(path) as part:
        write_tensors(part, {**content, CHECKSUM: checksum(content)})


def write_tensors(path: Path, content: Any) -> None:
    """`torch.save`; a full disk is an OSError here too, which torch hides behind an error of its own."""
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
