"""Poisons and attacks are frozen dataclasses; their fields are the parameters that users may set."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")


def parameter(default: T, help: str, *, at_least: float | None = None, choices: tuple[str, ...] | None = None) -> T:
    """A field that the command line shows, with its help text, lower bound and allowed words."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "choices": choices})


def with_parameters(method: T, name: str, given: dict[str, Any]) -> T:
    """A poison or attack with some parameters replaced.

    Raises:
        InputError: a parameter that the method does not have, or a value out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in fields:
            known = f"it takes {', '.join(fields)}" if fields else "it takes none"
            raise InputError(f"{name} has no parameter {key!r}: {known}")
        least, choices = fields[key].metadata.get("at_least"), fields[key].metadata.get("choices")
        if choices and value not in choices:
            raise InputError(f"{name}: {key} must be one of {', '.join(choices)}, got {value!r}")
        if least is not None and isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{name}: {key} must be at least {least:g}, got {value:g}")
    return dataclasses.replace(method, **given)  # type: ignore[type-var]
