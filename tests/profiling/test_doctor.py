"""`ulfast doctor`: every operator and every dependency, from the existing registries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ulfast.ops import reference
from ulfast.profiling.check import deviation, samples, wrong_operators
from ulfast.profiling.doctor import REQUIRED, examine
from ulfast.profiling.registry import OPERATORS

ROOT = Path(__file__).resolve().parents[2]


def registered():
    """Every operator of `torch.ops.ulfast`."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("ulfast::") for name in names if name.startswith("ulfast::")}


def test_every_operator_is_in_the_registry_and_in_the_report():
    assert set(samples()) == registered()
    assert set(OPERATORS) == {name for name in registered() if not name.endswith(("_out", "project_"))}
    checks = {check["name"]: check for check in examine()["checks"]}
    assert set(checks["operators"]["text"].split(", ")) == registered()
    levels = [check for name, check in checks.items() if name.startswith("level ")]
    assert levels
    assert all(check["text"] == f"{len(registered())} operators agree with their twins" for check in levels)


@pytest.mark.parametrize("name", list(samples()))
def test_a_wrong_operator_is_found(name, monkeypatch):
    twin = getattr(reference, name)

    def wrong(*given, **options):
        got = twin(*given, **options)
        for value in [*given, *(got if isinstance(got, tuple) else (got,))]:
            if isinstance(value, torch.Tensor):
                value[(-1,) * value.dim()] += 1  # as an operator that changes or returns something else
        return got

    monkeypatch.setattr(reference, name, wrong)
    assert name in wrong_operators()  # beside those whose twins call it


def test_nan_and_an_exception_are_wrong(monkeypatch):
    x = torch.ones(3)
    assert deviation(lambda x: x * 2, lambda x: x * torch.nan, (x,)) == float("inf")
    assert deviation(lambda x: x.add_(1), lambda x: x + 0, (x,)) == 1
    assert x.tolist() == [1, 1, 1]
    monkeypatch.setattr(reference, "project", lambda x, basis: 1 / 0)
    assert wrong_operators()["project"] == "ZeroDivisionError: division by zero"


def test_every_dependency_is_looked_for():
    listed = re.search(r"\ndependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert listed is not None
    assert sorted(re.findall(r'"([A-Za-z0-9_.-]+)', listed[1])) == sorted(REQUIRED)


def test_without_torch_it_says_so(tmp_path):
    code = "import sys; sys.modules['torch'] = None\nfrom ulfast.profiling import doctor\nprint(doctor.REQUIRED[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "torch\n"), done.stderr
