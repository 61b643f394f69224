"""Reading pickles that hold arrays and builtin containers, and nothing else.

No class named in a file is ever looked up: numpy's names lead to stand-ins below, which check what they are given and
build the array themselves, so neither code nor crafted array state from a file is ever run.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError

MAX_DEPTH = 64


class _Dtype:
    """Stands in for numpy.dtype: plain numbers and fixed strings only."""

    def __init__(self, spec: Any, align: Any = False, copy: Any = False) -> None:
        spec = spec.decode("ascii", "replace") if isinstance(spec, bytes) else spec
        if not isinstance(spec, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU]\d{1,4}|\?)", spec):
            raise pickle.UnpicklingError(f"an array of type {spec!r}")
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


class _Ndarray:
    """What the name numpy.ndarray leads to: an argument of _reconstruct, never an instance."""


def _build(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if not isinstance(dtype, _Dtype) or not isinstance(raw, (bytes, bytearray, pickle.PickleBuffer)):
        raise pickle.UnpicklingError("an array of objects")
    if not (isinstance(shape, tuple) and all(isinstance(s, int) and s >= 0 for s in shape)):
        raise pickle.UnpicklingError("an array without a shape")
    flat = np.frombuffer(raw, dtype.value)  # type: ignore[arg-type]
    if flat.size != math.prod(shape):
        raise pickle.UnpicklingError("an array shorter than its shape says")
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(subtype: Any, shape: Any, code: Any) -> _Array:
    if subtype is not _Ndarray:
        raise pickle.UnpicklingError("an array of an unknown kind")
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _build(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    return _build(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("an unknown encoding")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): dict,
}
for _module in ("numpy.core", "numpy._core"):
    _NAMES[f"{_module}.multiarray", "_reconstruct"] = _reconstruct
    _NAMES[f"{_module}.multiarray", "scalar"] = _scalar
    _NAMES[f"{_module}.numeric", "_frombuffer"] = _frombuffer
for _module in ("builtins", "__builtin__"):
    _NAMES |= {(_module, kind.__name__): kind for kind in (set, frozenset, bytearray, complex)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference outside the file")


def load_pickle(path: Path) -> Any:
    """The content of a pickle, numpy arrays included.

    Raises:
        InputError: the file holds anything but arrays and builtin containers, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Unpickler(file, encoding="bytes").load(), 0)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds {error}, not only arrays and builtin containers, and is not read: get the file from its"
            " official source"
        ) from None
    except (EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): get it again") from None


def _plain(value: Any, depth: int) -> Any:
    """Stand-ins to arrays, inside containers too."""
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError("containers nested too deep")
    if isinstance(value, _Array):
        if value.value is None:
            raise pickle.UnpicklingError("an array without content")
        return value.value
    if isinstance(value, (_Dtype, type)) or callable(value):
        raise pickle.UnpicklingError("a class")
    if isinstance(value, dict):
        return {_plain(k, depth + 1): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, depth + 1) for v in value)
    return value
