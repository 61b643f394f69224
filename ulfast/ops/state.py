"""The caller's global state, kept away from what this library computes.

Autocast, a precision of matrix products below float32's, a default dtype or device, and inference mode are the
caller's choices for his network. Inside an operator, a fit or a poison they would change results, or the room that a
kernel is given to write to.
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
    """Of float32 matrix products; "" where PyTorch's two interfaces to it were mixed, and it does not say."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return ""


class _Precision(ABC):
    """Float32 products computed in float32, while there are users.

    A setting of the process: the first user saves and sets it, the last puts it back, so that a thread that ends does
    not take it from one that still computes.
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
        """Returns what puts it back."""


class _FullPrecision(_Precision):
    """Of matrix products."""

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
    """Of cuDNN's convolutions, which take TF32 unless they are told not to: three digits. Apart from the matrix
    products, as it would cost every operator the way round through `exact`."""

    def _set(self) -> Callable[[], None]:
        cudnn: Any = torch.backends.cudnn
        newer = hasattr(cudnn, "conv")  # where `allow_tf32 = False` would leave them to a setting for all of PyTorch
        where, name = (cudnn.conv, "fp32_precision") if newer else (cudnn, "allow_tf32")
        before = getattr(where, name)
        setattr(where, name, "ieee" if newer else False)
        return lambda: setattr(where, name, before)


class _DefaultDtype:
    """float32 as the default dtype, while there are users; as `_Precision`."""

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
    """The function without autocast and with float32 products in float32. In the usual state that costs 0.4 us."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        if not FULL_PRECISION.users and not _any_autocast() and _precision() == "highest":
            return function(*args, **options)
        with torch._C._DisableAutocast(), FULL_PRECISION:
            return function(*args, **options)

    return run  # type: ignore[return-value]


@contextlib.contextmanager
def _outermost() -> Iterator[None]:
    """Lets an autocast within be the outermost one: only that one's end drops the weights that it has cast, and they
    must not outlive a step of the optimizer."""
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
    """The function in the state that a program starts in: also without a default dtype or device, inference mode or
    `no_grad`. For work that takes long, as the default dtype is one for all threads; not for generators, whose caller
    runs in between."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        with _usual():
            return function(*args, **options)

    return run  # type: ignore[return-value]
