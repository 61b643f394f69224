"""Shields the library's computations from the caller's global state.

Autocast, matrix products of less than float32 precision, a default dtype or device, and inference mode are the caller's
choices for their own network. Inside an operator, a fit or a poison they would change results, or the size of the
memory that a kernel writes to.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_any_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def _precision() -> str:
    """The precision of float32 matrix products; "" if PyTorch's two interfaces to it were mixed and it gives none."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


class _Precision(ABC):
    """Computes float32 products in float32 while there are users.

    The setting is the process's: the first user saves and sets it and the last restores it, so that a thread that ends
    does not take it from one that still computes.
    """

    def __init__(self) -> None:
        self.users = 0
        self._lock = threading.Lock()
        self._restore: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if not self.users:
                self._restore = self._set()
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.users -= 1
            if not self.users:
                self._restore()

    @abstractmethod
    def _set(self) -> Callable[[], None]:
        """Returns a function that restores it."""


class _FullPrecision(_Precision):
    """The precision of matrix products."""

    def _set(self) -> Callable[[], None]:
        before = _precision()
        if before == "highest":
            return lambda: None
        if before:
            torch.set_float32_matmul_precision("highest")
            return lambda: torch.set_float32_matmul_precision(before)
        backends = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
        kept = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"

        def restore() -> None:
            for backend, value in zip(backends, kept, strict=True):
                backend.fp32_precision = value

        return restore


class _FullConvolutions(_Precision):
    """The precision of cuDNN's convolutions, which use TF32 (three digits) by default. It is separate from that of the
    matrix products, since otherwise every operator would pay for it in `exact`.
    """

    def _set(self) -> Callable[[], None]:
        cudnn: Any = torch.backends.cudnn
        newer = hasattr(cudnn, "conv")  # there `allow_tf32 = False` would defer to PyTorch's global setting
        where, name = (cudnn.conv, "fp32_precision") if newer else (cudnn, "allow_tf32")
        before = getattr(where, name)
        setattr(where, name, "ieee" if newer else False)
        return lambda: setattr(where, name, before)


class _DefaultDtype:
    """Sets float32 as the default dtype while there are users, as `_Precision` does."""

    def __init__(self) -> None:
        self._users, self._lock, self._before = 0, threading.Lock(), torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = torch.get_default_dtype()
                if self._before != torch.float32:
                    torch.set_default_dtype(torch.float32)
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._before != torch.float32:
                torch.set_default_dtype(self._before)


FULL_PRECISION, FULL_CONVOLUTIONS, DEFAULT_DTYPE = _FullPrecision(), _FullConvolutions(), _DefaultDtype()


def exact(function: F) -> F:
    """Runs the function without autocast and with float32 products in float32. In the usual state this costs 0.4 us."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if not FULL_PRECISION.users and not _any_autocast() and _precision() == "highest":
            return function(*args, **options)
        with torch._C._DisableAutocast(), FULL_PRECISION:
            return function(*args, **options)

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def _outermost() -> Iterator[None]:
    """Makes an autocast inside the outermost one: only the end of the outermost drops its cached casts of the weights,
    which must not outlive an optimizer step.
    """
    depth = torch.autocast_increment_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(depth - 1):
            torch.autocast_increment_nesting()


@contextlib.contextmanager
def _usual() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if torch.get_default_device() != torch.device("cpu"):
            stack.enter_context(torch.device("cpu"))
        for context in (torch.inference_mode(False), torch.enable_grad(), torch._C._DisableAutocast(), _outermost()):
            stack.enter_context(context)
        stack.enter_context(FULL_PRECISION)
        stack.enter_context(DEFAULT_DTYPE)
        yield


def ordinary(function: F) -> F:
    """Runs the function in the state in which a program starts: also without a default dtype or device, inference mode
    or `no_grad`. Meant for long work, since all threads share the default dtype; not for generators, whose caller runs
    in between.
    """

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        with _usual():
            return function(*args, **options)

    return run  # type: ignore[return-value]
