"""What is published: source distribution, wheel, metadata, workflows, the documented variables, refused compilers."""

from __future__ import annotations

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from ulfast.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
# Paths in brackets that lead to a file of the repository.
RELATIVE = re.compile(r"\]\((?!https?:)")


def run(*command, cwd, **variables):
    """The lines of the command's output, and its exit code."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env={**os.environ, **variables})
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()


@pytest.mark.parametrize("name", ["ci", "wheels"])
def test_workflows_are_yaml_and_their_actions_pinned_by_major_version(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    assert {"name", "permissions", "jobs"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert set(job.get("needs", [])) <= set(workflow["jobs"]) or job["needs"] in workflow["jobs"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", step["uses"]), step["uses"]


def test_a_wheel_for_every_python_that_the_metadata_names():
    named = re.findall(r"Python :: 3\.(\d+)", PYPROJECT)
    build = re.search(r'^build = "(.*)"$', PYPROJECT, re.MULTILINE)
    assert build is not None
    assert re.findall(r"cp3(\d+)-", build[1]) == named
    assert f'requires-python = ">=3.{named[0]}"' in PYPROJECT


def test_the_version_is_in_one_place():
    assert not re.search(rf'version = "{re.escape(__version__)}"', PYPROJECT)
    assert __version__ not in (ROOT / "setup.py").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_variable_is_in_the_table():
    """Names that stand alone in a string of Python, and what scripts expand."""
    read = set()
    for path in [ROOT / "setup.py", *(p for part in ("ulfast", "benchmarks") for p in (ROOT / part).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.update(re.findall(r"^ULFAST_[A-Z_]+$", node.value))
    for path in [p for part in ("tools", "benchmarks") for p in (ROOT / part).glob("*.sh")]:
        read.update(re.findall(r"\$\{?(ULFAST_[A-Z_]+)", path.read_text()))
    page = (ROOT / "docs" / "guide" / "install.md").read_text()
    assert set(re.findall(r"^\| .*`(ULFAST_[A-Z_]+)`.* \|", page, re.MULTILINE)) == read


@pytest.mark.parametrize(
    ("macros", "said"),
    [
        ("__GNUC__ 9", "is g++ 9, and"),
        ("__GNUC__ 4\n#define __clang_major__ 13", "is clang 13, and"),
        ("__TINYC__ 928", "is neither g++ nor clang, and"),
    ],
)
def test_an_old_compiler_is_refused_in_one_line(tmp_path, macros, said):
    old = tmp_path / "old++"
    old.write_text(f"#!/bin/sh\ncat <<'END'\n#define {macros}\nEND\n")
    old.chmod(0o755)
    build = [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path]
    code, lines = run(*build, cwd=ROOT, CXX=str(old), ULFAST_CUDA="0")
    assert code == 1
    assert lines[-1].startswith("ulfast: ")
    assert said in lines[-1]
    assert "g++ 10 or clang 14, or newer" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_the_source_distribution_builds_a_wheel_that_works(tmp_path):
    """Without a network, with what is installed; without optimisation, which takes most of a compiler's time."""
    checkout, unpacked, clean, empty = (tmp_path / name for name in ("checkout", "unpacked", "clean", "empty"))
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, checkout, ignore=left_out)
    code, lines = run(sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path, cwd=checkout)
    assert code == 0, lines[-20:]
    with tarfile.open(tmp_path / f"ulfast-{__version__}.tar.gz") as archive:
        archive.extractall(unpacked)
    source = unpacked / f"ulfast-{__version__}"
    for part in ("csrc", "tests", "ulfast", "docs", "tools"):
        theirs = {p.relative_to(source) for p in (source / part).rglob("*") if p.is_file()}
        assert theirs == {p.relative_to(checkout) for p in (checkout / part).rglob("*") if p.is_file()}

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", tmp_path, source]
    code, lines = run(*build, cwd=tmp_path, ULFAST_CUDA="0", CXXFLAGS="-O0 -g0")
    assert code == 0, lines[-20:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = email.message_from_bytes(archive.read(f"ulfast-{__version__}.dist-info/METADATA"))
    assert {name.split("/")[0] for name in names} == {"ulfast", f"ulfast-{__version__}.dist-info"}
    for name in ("py.typed", "data/sample/train.webp", "grids/demo.yaml"):
        assert f"ulfast/{name}" in names
    text = about.get_payload()
    assert about["Description-Content-Type"] == "text/markdown"
    assert text.startswith("# ulfast")
    assert not RELATIVE.search(text)

    code, lines = run(*pip, "install", "--no-deps", "--no-index", "--target", clean, wheel, cwd=tmp_path)
    assert code == 0, lines[-20:]
    empty.mkdir()
    program = (
        "import ulfast, ulfast.ops._extension as e, ulfast.profiling.check as check\n"
        "print(ulfast.__file__, e.load().__file__, check.wrong_operators(), len(ulfast.load_dataset('sample')))\n"
        "print(e.reinstall())"
    )
    code, lines = run(sys.executable, "-c", program, cwd=empty, PYTHONPATH=str(clean))
    assert code == 0, lines[-20:]
    assert lines[0].startswith(f"{clean / 'ulfast' / '__init__.py'} {clean / 'ulfast' / '_C.'}")
    assert lines[0].endswith(" {} 5000")
    assert lines[1].startswith("pip install --force-reinstall --no-deps --no-binary ulfast ulfast==")
