"""MATLAB's .mat files (level 5): arrays of numbers, also compressed. Everything that a file declares is checked before
use. scipy's reader, in C, does not check: one changed byte can end the process.

Source: MathWorks, MAT-File Format, version 5.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...runtime.reading import need_memory, reading, regular

# Codes of data types and of array classes, each with its dtype; data may be stored in a smaller type than its class.
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
MATRIX, COMPRESSED, INT8, INT32, UINT32 = 14, 15, 1, 5, 6
HEADER, HEAD = 128, 1 << 12  # bytes of the file's header; bytes of a compressed array that are searched for its name


def read_mat(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The named arrays, in their own dtype, with their shape in MATLAB; missing names are left out.

    Raises:
        InputError: the file is not a .mat file of level 5, is damaged, or an array holds anything but real numbers.
    """
    found: dict[str, np.ndarray] = {}
    with reading(path):
        raw = memoryview(np.memmap(regular(path), np.uint8, "r"))  # type: ignore[arg-type]
        if len(raw) < HEADER or bytes(raw[126:128]) not in (b"IM", b"MI"):
            raise InputError(f"{path} is not a .mat file of level 5: save it with MATLAB's -v7, or get it again")
        order = "<" if bytes(raw[126:128]) == b"IM" else ">"
        at = HEADER
        while at + 8 <= len(raw) and len(found) < len(names):
            kind, size = (int(v) for v in np.frombuffer(raw[at : at + 8], f"{order}u4"))
            element = raw[at + 8 : at + 8 + size]
            if len(element) < size:
                raise ValueError(f"it is cut: an array of {size:,} bytes where {len(element):,} are left")
            at += 8 + size
            if kind == COMPRESSED:
                head = zlib.decompressobj().decompress(element, HEAD)
                kind, size = (int(v) for v in np.frombuffer(head[:8], f"{order}u4"))
                if kind != MATRIX or _Parts(head[8:], order).about()[0] not in names:
                    continue
                need_memory(path, size, "an array")
                element = memoryview(zlib.decompressobj().decompress(element, size + 8))[8:]
                if len(element) < size:
                    raise ValueError(f"an array of {len(element):,} bytes, not the {size:,} it declares")
            elif kind != MATRIX:
                continue
            parts = _Parts(element, order)
            name, shape, dtype = parts.about()
            if name in names:
                found[name] = parts.values(name, shape, dtype)
    return found


class _Parts:
    """Iterates over the parts of an array."""

    def __init__(self, raw: memoryview | bytes, order: str) -> None:
        self._raw, self._order, self._at = memoryview(raw), order, 0

    def _next(self) -> tuple[int, memoryview]:
        """Type and bytes of the next part; up to four bytes may be in its tag."""
        head = self._raw[self._at : self._at + 8]
        if len(head) < 8:
            raise ValueError("an array without all of its parts")
        kind, size = (int(v) for v in np.frombuffer(head, f"{self._order}u4"))
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, self._at + 4
            self._at += 8
            if size > 4:
                raise ValueError(f"a short part of {size} bytes")
        else:
            begin = self._at + 8
            self._at = begin + size + -size % 8
        data = self._raw[begin : begin + size]
        if len(data) < size:
            raise ValueError(f"a part of {size:,} bytes where {len(data):,} are left")
        return kind, data

    def about(self) -> tuple[str, tuple[int, ...], str]:
        """Name, shape and dtype; the dtype is "" for anything but real numbers."""
        kind, flags = self._next()
        if kind != UINT32 or len(flags) != 8:
            raise ValueError("an array without flags")
        word = int(np.frombuffer(flags[:4], f"{self._order}u4")[0])
        kind, sides = self._next()
        if kind != INT32 or not sides or len(sides) % 4 or len(sides) > 4 * 32:
            raise ValueError("an array without a shape")
        shape = tuple(int(side) for side in np.frombuffer(sides, f"{self._order}i4"))
        kind, name = self._next()
        if kind != INT8:
            raise ValueError("an array without a name")
        real = not word & 0x800  # the flag of complex numbers
        return bytes(name).decode("latin-1"), shape, CLASSES.get(word & 0xFF, "") if real else ""

    def values(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        kind, data = self._next()
        if not dtype or kind not in TYPES:
            raise ValueError(f"{name} holds no real numbers")
        stored = np.dtype(self._order + TYPES[kind])
        if min(shape) < 0 or math.prod(shape) * stored.itemsize != len(data):
            raise ValueError(f"{name} is declared as {' x '.join(map(str, shape))} and has {len(data):,} bytes")
        return np.frombuffer(data, stored).reshape(shape, order="F").astype(dtype, copy=False)
