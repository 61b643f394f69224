"""Parameters of poisons and attacks: these are frozen dataclasses whose fields users may set."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import field
from typing import Any, TypeVar

from .errors import InputError

T = TypeVar("T")


def parameter(default: T, help: str, *, at_least: float | None = None, choices: tuple[str, ...] | None = None) -> T:
    """A field that the command line shows, with help text, lower bound and allowed words."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "choices": choices})


def fraction(text: str) -> float:
    """A number written as 0.03 or 8/255; ValueError for anything else."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1)
    except ZeroDivisionError:
        raise ValueError(f"{text} divides by zero") from None


def with_parameters(method: T, name: str, given: dict[str, Any]) -> T:
    """A poison or attack with some parameters replaced.

    Raises:
        InputError: the method has no such parameter, or a value is out of bounds.
    """
    fields = {f.name: f for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    given = dict(given)
    for key, value in given.items():
        if key not in fields:
            known = f"it takes {', '.join(fields)}" if fields else "it takes none"
            raise InputError(f"{name} has no parameter {key!r}: {known}")
        value = given[key] = _typed(name, key, value, str(fields[key].type))
        least, choices = fields[key].metadata.get("at_least"), fields[key].metadata.get("choices")
        norm = next((given.get(f, getattr(method, f)) for f in fields if f.endswith("norm")), "linf")
        bound = (key == "eps" or key.endswith("_eps")) and norm == "linf" and _of_pixels(fields, key)
        if bound and isinstance(value, (int, float)) and value > 1:
            raise InputError(
                f"{name}: {key} {value:g} is more than the range [0, 1]: for {value:g} levels of 255 give {value:g}/255"
            )
        if choices and value not in choices:
            raise InputError(f"{name}: {key} must be one of {', '.join(choices)}, got {value!r}")
        if least is not None and isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{name}: {key} must be at least {least:g}, got {value:g}")
    return dataclasses.replace(method, **given)  # type: ignore[type-var]


def _of_pixels(fields: dict[str, Any], key: str) -> bool:
    """Whether a bound is on pixels in [0, 1] rather than on the norm of a whole image's noise."""
    if any(name.endswith("norm") for name in fields):
        return True
    return "bound, pixels in [0, 1]" in fields[key].metadata.get("help", "")


def _typed(name: str, key: str, value: Any, kind: str) -> Any:
    """The value, if its type fits the field. Integers and fractions such as 8/255 are accepted as floats.

    Raises:
        InputError: the value is a word instead of a number, a number that is not finite, or the like.
    """
    kinds = {part.strip() for part in kind.split("|")}
    if value is None or not kinds & {"int", "float", "bool", "str"}:
        return value
    if isinstance(value, str) and "float" in kinds and "str" not in kinds:
        try:
            value = fraction(value)
        except ValueError:
            raise InputError(f"{name}: {key} must be a number, got {value!r}") from None
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isfinite(value):
        raise InputError(f"{name}: {key} must be finite, got {value}")
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    whole = number and (isinstance(value, numbers.Integral) or float(value) == int(value))
    right = {
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "int": whole,
        "float": number,
    }
    fitting = [one for one in ("bool", "str", "int", "float") if one in kinds and right[one]]
    if not fitting:
        words = {"bool": "true or false", "str": "a word", "int": "a whole number", "float": "a number"}
        wanted = " or ".join(words[one] for one in ("bool", "int", "float", "str") if one in kinds)
        raise InputError(f"{name}: {key} must be {wanted}, got {value!r}")
    return int(value) if fitting[0] == "int" and not isinstance(value, numbers.Integral) else value
