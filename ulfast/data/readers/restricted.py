"""Reads pickles that hold arrays and builtin containers, and nothing else.

No class named in a file is ever looked up. numpy's names are mapped to the stand-ins below, which check their arguments
and build the array themselves, so neither code nor crafted array state from a file is ever executed.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runtime.reading import reading, regular

MAX_DEPTH = 64


class _Refused(pickle.UnpicklingError):
    """Raised for content that a file may not hold."""


class _Dtype:
    """Stands in for numpy.dtype; only plain numbers and fixed-length strings."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = False) -> None:
        spec = spec.decode("ascii", "replace") if isinstance(spec, bytes) else spec
        if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,4}|\?)", spec):
            raise _Refused(f"an array of type {spec!r}")
        self.value = np.dtype(spec)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        order = order.decode("ascii", "replace") if isinstance(order, bytes) else order
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stands in for numpy.ndarray."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = _build(raw, dtype, shape, "F" if fortran else "C")


def _build(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray, pickle.PickleBuffer)):
        raise _Refused("an array of objects")
    if not (isinstance(shape, tuple) and all(isinstance(s, int) and s >= 0 for s in shape)):
        raise _Refused("an array without a shape")
    flat = np.frombuffer(raw, dtype.value)  # type: ignore[arg-type]
    if flat.size != math.prod(shape):
        raise _Refused("an array shorter than its shape says")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
    if subtype is not NDARRAY:
        raise _Refused("an array of an unknown kind")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _build(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    return _build(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused("an unknown encoding")
    return text.encode("latin1")


def _bytearray(raw: Any = b"", encoding: Any = "latin1") -> bytearray:
    if isinstance(raw, str):
        raw = _encode(raw, encoding)
    if not isinstance(raw, bytes):  # a number would mean a length
        raise _Refused("bytes without content")
    return bytearray(raw)


class _Name:
    """What a name in a file resolves to: it can be called, and nothing else."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a change of the reader")


NDARRAY = _Name(None)
_NAMES: dict[tuple[str, str], _Name] = {
    ("numpy", "ndarray"): NDARRAY,
    ("numpy", "dtype"): _Name(_Dtype),
    ("_codecs", "encode"): _Name(_encode),
    ("collections", "OrderedDict"): _Name(dict),
}
for _module in ("numpy.core", "numpy._core"):
    _NAMES[f"{_module}.multiarray", "_reconstruct"] = _Name(_reconstruct)
    _NAMES[f"{_module}.multiarray", "scalar"] = _Name(_scalar)
    _NAMES[f"{_module}.numeric", "_frombuffer"] = _Name(_frombuffer)
for _module in ("builtins", "__builtin__"):
    _NAMES |= {(_module, kind.__name__): _Name(kind) for kind in (set, frozenset)}
    _NAMES[_module, "bytearray"] = _Name(_bytearray)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("a reference outside the file")


def load_pickle(path: Path) -> Any:
    """The content of a pickle, numpy arrays included.

    Raises:
        InputError: the file is damaged or holds anything but arrays and builtin containers.
    """
    with reading(path):
        raw = regular(path).read_bytes()
        try:
            _check_numbers(raw)
            content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
            check_expansion(content, len(raw))
            return _plain(content, {})
        except _Refused as error:
            raise InputError(
                f"{path} holds {error}, not only arrays and builtin containers, and is not read: get the file from its"
                " official source"
            ) from None


def _check_numbers(raw: bytes) -> None:
    """Checks a pickle before it is executed: its parts have their declared lengths, and no memo number, for which the
    unpickler allocates room, exceeds the number of opcodes before it.
    """
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if "PUT" in opcode.name and int(argument or 0) > count + 1:
            raise _Refused(f"an object number {argument:,}")


def check_expansion(content: Any, most: int) -> None:
    """Checks containers, which may share members: a short file can nest shared members so that a copy would be endless,
    or make a container hold itself.

    Args:
        most: the largest allowed total of members, each counted as often as it is reached; a file has at least a byte
            for each.

    Raises:
        UnpicklingError: there are more, or a container holds itself.
    """
    sizes: dict[int, int] = {}  # of containers seen; 0 while one is being walked
    stack: list[tuple[Any, bool]] = [(content, False)]
    while stack:
        value, left = stack.pop()
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            continue
        members = [*value, *value.values()] if isinstance(value, dict) else value
        if left:
            sizes[id(value)] = 1 + sum(sizes.get(id(one), 1) for one in members)
            if sizes[id(value)] > most:
                raise _Refused("containers that share their members without end")
            continue
        if id(value) in sizes:
            if not sizes[id(value)]:
                raise _Refused("a container that contains itself")
            continue
        sizes[id(value)] = 0
        stack.append((value, True))
        stack.extend((one, False) for one in members)


def _plain(value: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Converts stand-ins to arrays, also inside containers; a shared container stays shared."""
    if depth > MAX_DEPTH:
        raise _Refused("containers nested too deep")
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("an array without content")
        return value.value
    if isinstance(value, (_Dtype, _Name)):
        raise _Refused("a class")
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {_plain(k, done, depth + 1): _plain(v, done, depth + 1) for k, v in value.items()}
        else:
            done[id(value)] = type(value)(_plain(v, done, depth + 1) for v in value)
    return done[id(value)]
