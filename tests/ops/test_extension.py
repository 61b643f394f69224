"""The extension: levels, and the message where it is missing."""

from __future__ import annotations

import os
import sys

import pytest

from ulfast.errors import ExtensionError, InputError
from ulfast.ops import _extension


def test_describe_names_levels_and_the_one_in_use():
    about = _extension.describe()
    assert about["cpu_levels"]["baseline"] is True
    assert about["cpu_level"] in about["cpu_levels"]


def test_unknown_level_is_refused():
    with pytest.raises(InputError, match="auto, baseline"):
        _extension.set_cpu_level("v9")


def test_level_from_the_environment(monkeypatch):
    """As it is read at the first use in a process."""
    try:
        monkeypatch.setenv("ULFAST_CPU_LEVEL", "baseline")
        _extension.load.cache_clear()
        assert _extension.load().cpu_level() == "baseline"
        monkeypatch.setenv("ULFAST_CPU_LEVEL", "v9")
        _extension.load.cache_clear()
        with pytest.raises(InputError, match="ULFAST_CPU_LEVEL"):
            _extension.load()
    finally:
        monkeypatch.undo()
        _extension.load.cache_clear()
        _extension.set_cpu_level("auto")


def test_a_missing_extension_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ulfast._C", None)
    _extension.load.cache_clear()
    try:
        with pytest.raises(ExtensionError, match=r"looked for _C.*found .*Build them with"):
            _extension.load()
    finally:
        _extension.load.cache_clear()


@pytest.mark.skipif("ULFAST_SANITIZED" not in os.environ, reason="for the sanitised build")
def test_the_sanitised_kernels_are_the_ones_under_test():
    assert "sanitize" in _extension.describe()["path"]
