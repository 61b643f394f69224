"""Finds the files in a tar archive from its headers alone: ustar, pax and GNU long names."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError

BLOCK = 512
LONGEST = 1 << 20  # bytes of a long name or of pax records
KEPT = 256  # archives kept open; beyond these, each read opens its own
# The first bytes of compressed files, and the command that unpacks them.
COMPRESSED = {b"\x1f\x8b": "gunzip", b"\x28\xb5\x2f\xfd": "unzstd", b"\xfd7zXZ": "unxz", b"BZh": "bunzip2"}
SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.lz4")


def members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file, in order.

    Raises:
        InputError: the archive is compressed, damaged or cut short.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise InputError(f"{path} is empty: get it again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for magic, command in COMPRESSED.items():
                if data[: len(magic)] == magic:
                    raise InputError(f"{path} is compressed, so its images cannot be located: `{command}` it first")
            yield from _scan(path, data, size)


def _scan(path: Path, data: mmap.mmap, size: int) -> Iterator[tuple[str, int, int]]:
    at, long_name, pax = 0, "", dict[str, str]()
    while at + BLOCK <= size:
        head = data[at : at + BLOCK]
        if not any(head):
            return  # the end; what follows is padding
        if _number(head[148:156]) != sum(head) - sum(head[148:156]) + 8 * 32:
            raise InputError(f"{path} is damaged or not a tar archive (the header at byte {at:,}): get it again")
        length = int(pax["size"]) if pax.get("size", "").isdecimal() else _number(head[124:136])
        kind, begin = head[156:157], at + BLOCK
        if length < 0 or begin + length > size:
            raise InputError(f"{path} is cut short, a file at byte {at:,} ends beyond it: get it again")
        at = begin + -(-length // BLOCK) * BLOCK
        if kind in (b"L", b"x"):
            if length > LONGEST:
                raise InputError(f"{path} has a name of {length:,} bytes at byte {begin:,}: get it again")
            block = data[begin : begin + length]
            if kind == b"L":
                long_name = _text(block)
            else:
                pax = _records(path, block)
            continue
        if kind in (b"K", b"g"):  # about a link or the whole archive: not needed here
            continue
        if kind in (b"0", b"\0", b"7") and "GNU.sparse.major" not in pax:
            prefix = _text(head[345:500]) if head[257:263] == b"ustar\0" else ""
            name = pax.get("path") or long_name or (f"{prefix}/" if prefix else "") + _text(head[:100])
            yield name, begin, length
        long_name, pax = "", {}
    if at < size and any(data[at:size]):
        raise InputError(f"{path} is cut short: get it again")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Parses octal digits or GNU's binary numbers; -1 for neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    digits = field.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return -1


def _records(path: Path, block: bytes) -> dict[str, str]:
    """Parses pax's `LENGTH KEY=VALUE` lines."""
    found: dict[str, str] = {}
    while block.strip(b"\0"):
        digits, _, _ = block.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line, block = block[len(digits) + 1 : length], block[length:]
        key, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not length or not equals:
            raise InputError(f"{path} has damaged pax records: get it again")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
    return found


class Archives:
    """Reads pieces of several files from any thread; no file position is shared."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of file `number`.

        Raises:
            OSError: the file is gone or has been truncated.
        """
        descriptor = self._descriptor(number)
        try:
            parts, at = [], offset
            while at < offset + size:
                part = os.pread(descriptor, offset + size - at, at)
                if not part:
                    raise OSError(f"{self._paths[number]} has become shorter")
                parts.append(part)
                at += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            if number not in self._open:
                os.close(descriptor)

    def _descriptor(self, number: int) -> int:
        known = self._open.get(number)
        if known is not None:
            return known
        with self._lock:
            if number not in self._open:
                descriptor = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
                if len(self._open) >= KEPT:
                    return descriptor
                self._open[number] = descriptor
            return self._open[number]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
