"""What the documentation shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ulfast.cli.main import VERBS, group

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert names["found"].verdict == "poisoned"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_have_options_that_exist(page):
    """Every `ulfast ...` line names a verb and options that the program knows."""
    for line in re.findall(r"^    (ulfast [^#\n]*)", page.read_text(), re.MULTILINE):
        words = line.split()
        assert words[1] in VERBS, line
        help_text = CliRunner().invoke(group, [words[1], "--help"]).output
        for option in (w for w in words if w.startswith("--")):
            assert option in help_text, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
