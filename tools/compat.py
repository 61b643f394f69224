"""Runs the examples, and the tests that need other libraries, on several versions of torch.

    tools/compat.sh                                              every environment below
    tools/compat.sh "torch==2.14.1 torchvision==0.29.1 timm"     one, as pip's requirements, torch first

Each set of requirements gets an environment in `${XDG_CACHE_HOME:-~/.cache}/ulfast-compat`, which a second call brings
up to date. A wheel is built from this checkout, once, and installed there; examples and tests are copied into a folder
of their own, so that they meet the wheel and not the checkout. What ran goes into benchmarks/results/compat.json, a
table of which `make results` writes into docs/results/compat.md. Needs about 6 GB for each CUDA build of torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "compat.json"
HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulfast-compat"

PEERS = ("lightning", "accelerate", "datasets", "webdataset", "pyarrow", "adversarial-robustness-toolbox")
# The CPU build of torch 2.13.0 comes without a torchvision that loads beside it, and timm needs one.
ENVIRONMENTS = ("torch==2.14.1 torchvision==0.29.1 timm", "torch==2.13.0", "torch==2.6.0 torchvision==0.21.0 timm")
SHOWN = ("torch", "torchvision", "numpy", "timm", *PEERS, "kornia", "scikit-learn")
# What meets other libraries, and what meets torch's own interfaces.
TESTS = (
    *("examples", "conformance/test_ecosystem.py", "data/test_objects.py", "data/test_parquet.py", "data/test_wds.py"),
    *("ops/test_citizens.py", "ops/test_project.py", "ops/test_ingest.py", "projection/test_layers.py"),
    "training/test_training.py::test_timm_networks",
)


def main() -> None:
    content = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"environments": []}
    wheel = build()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    for wanted in sys.argv[1:] or ENVIRONMENTS:
        found = {"commit": commit, **run(wanted.split(), wheel)}
        same = (found["python"], found["packages"]["torch"])
        others = [e for e in content["environments"] if (e["python"], e["packages"]["torch"]) != same]
        content["environments"] = sorted([found, *others], key=lambda e: release(e["packages"]["torch"]), reverse=True)
        RESULT.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def release(version: str) -> tuple[int, ...]:
    """2.14.1+cu130 as numbers."""
    return tuple(map(int, version.partition("+")[0].split(".")))


def call(*words: Any, **options: Any) -> None:
    """Runs a command; what fails ends the script."""
    print("+", *words, flush=True)
    subprocess.run([*map(str, words)], check=True, **options)


def build() -> Path:
    """A wheel of this checkout, CPU kernels, as users of PyPI get it."""
    target = HOME / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    quiet = ("-q", "--disable-pip-version-check")
    call(sys.executable, "-m", "pip", "wheel", *quiet, "--no-deps", "-w", target, ROOT, env=clean(ULFAST_CUDA="0"))
    (wheel,) = target.glob("*.whl")
    return wheel


def clean(**more: str) -> dict[str, str]:
    """The environment without what would lead back to the checkout."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more


def run(wanted: list[str], wheel: Path) -> dict[str, Any]:
    """An environment, and what ran in it."""
    place = HOME / f"py{sys.version_info[0]}.{sys.version_info[1]}-{wanted[0].replace('==', '')}"
    python = place / "bin" / "python"
    if not python.is_file():
        call(sys.executable, "-m", "venv", place)
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    # torch is named in every call: pip must not take another one for a peer's sake.
    call(*pip, *wanted, env=clean())
    call(*pip, wanted[0], *PEERS, f"{wheel}[test]", env=clean())
    call(*pip, "--force-reinstall", "--no-deps", wheel, env=clean())
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name in ("tests", "examples"):
            shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        shutil.copy(ROOT / "pyproject.toml", work)
        ran = tested(place / "bin" / "pytest", work)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    versions = {entry["name"].lower(): entry["version"] for entry in json.loads(listed.stdout)}
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "wheel": wheel.name,
        "packages": {name: versions.get(name) for name in SHOWN},
        **ran,
    }


def tested(pytest: Path, work: Path) -> dict[str, Any]:
    """`examples`: what their tests gave; `tests`: how many passed, which failed or were skipped, and why."""
    report = work / "report.xml"
    words = [pytest, "-q", "-m", "", "-p", "no:cacheprovider", f"--junitxml={report}", *(f"tests/{t}" for t in TESTS)]
    print("+", *words, flush=True)
    subprocess.run(words, cwd=work, env=clean())
    examples = {file.stem: {"outcome": "not run"} for file in sorted((work / "examples").glob("*.py"))}
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for case in xml.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".removeprefix("tests.")
        stem = str(case.get("name")).removeprefix("test_") if "test_examples" in name else ""
        wrong = [node for kind in ("failure", "error") for node in case.iter(kind)]
        skipped = case.find("skipped")
        node = wrong[0] if wrong else skipped
        outcome = "failed" if wrong else "passed" if skipped is None else "skipped"
        reason = "" if node is None else (node.get("message") or "").strip().partition("\n")[0][:300]
        if node is None:
            found["passed"] += 1
        else:
            found[outcome].append({"test": name, "reason": reason})
        if stem in examples:
            short = reason.partition(": pip ")[0]  # without what to do about it
            examples[stem] = {"outcome": outcome, **({"reason": short} if short else {})}
    return {"examples": examples, "tests": found}


if __name__ == "__main__":
    main()
