"""CONTRIBUTING.md lists the files that an operator needs, and they stay few; kernel files are called like operators."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ulfast.profiling.check import samples

ROOT = Path(__file__).resolve().parents[2]
# Where an operator is made. Its users (poisons, benchmarks) are not counted.
CODE = ("csrc", "ulfast/ops", "ulfast/profiling", "tests/ops", "tests/cuda_emulation", "setup.py")
PLACES = (*CODE, "docs/guide/kernels.md")


def files_of(name):
    """The files that mention an operator or its struct."""
    struct = name.title().replace("_", "")
    word = re.compile(rf"(?<![A-Za-z0-9]){name}|{struct}")
    found = set()
    for place in PLACES:
        for path in [ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*.*"):
            known = path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh", ".md")
            if known and path != Path(__file__).resolve() and word.search(path.read_text()):
                found.add(str(path.relative_to(ROOT)))
    return found


def listed():
    """Number to the files that its line of the list names first."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## A new operator")[2].partition("\n## ")[0]
    lines = re.findall(r"^(\d+)\. `([^`]+)`", text, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 14))
    return [path for _, path in lines]


def test_the_template_is_in_the_nine_files_of_the_list():
    assert files_of("patch_filter") == {*listed()[:9], "ulfast/ops/cuda_filters.py"}


def test_an_operator_with_cuda_is_in_fourteen_files_at_most():
    found = files_of("pgd_step")
    assert set(listed()[9:12]) <= found
    assert len(found) <= 14  # the last line of the list has two
    # The nine are the same but for those that have its name, and the parts of cpu*.py and of the registry.
    same = {
        path for path in listed()[:9] if "patch_filter" not in path and "_filters" not in path and "profil" not in path
    }
    assert same <= found


@pytest.mark.parametrize("folder", ["cpu", "cuda"])
def test_a_kernel_file_is_named_after_its_operator(folder):
    operators = {re.sub(r"^philox_.*", "philox", name) for name in samples()}
    files = {path.stem for path in (ROOT / "csrc" / folder).glob("*.c*") if path.suffix in (".cpp", ".cu")}
    # An operator's kernels for some shapes may have a file of their own, which says by what they work.
    assert {re.sub(r"_(resident|mma)$", "", name) for name in files} - {"device", "dispatch", "level"} <= operators
    kernels = {name for name in operators if not name.startswith("project_")}  # project.cpp has those
    assert kernels - files == (
        set() if folder == "cpu" else {"patch_filter", "count_changes", "filter_images", "shift_pixels"}
    )
