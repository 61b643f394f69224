"""The commands and code in the documentation run, and its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from ulfast.cli.main import VERBS, group

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])
# Pages that tools/docs_pages.py makes when the site is built; `make docs` checks the links to them.
GENERATED = {DOCS / "reference" / f"{name}.md" for name in ("cli", "api", "operators", "poisons", "attacks")}
GENERATED |= {DOCS / "develop" / f"{name}.md" for name in ("contributing", "changes")}


def name_of(page):
    return str(page.relative_to(ROOT)).removesuffix(".md")


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page):
    """The `ulfast ...` lines of a page."""
    return re.findall(r"^    (ulfast [^#\n]*)", page.read_text(), re.MULTILINE)


def run(page):
    """The Python blocks of a page, one after the other; what they define."""
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_readme_has_one_page():
    assert len((ROOT / "README.md").read_text().split()) <= 700


def test_the_first_commands_of_the_readme_are_those_of_the_makefile():
    lines = re.findall(r"^    make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert lines == ["demo", "test"]
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(lines) <= set(targets)


def test_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = DOCS / "guide" / "python.md"
    assert len(blocks(page)) >= 7
    assert run(page)["found"].verdict == "poisoned"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "guide" / "kernels.md"], ids=name_of)
def test_python_blocks_run(page):
    assert run(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_options_that_exist(page):
    """Every `ulfast ...` line names a verb and options that the program knows."""
    for line in commands(page):
        words = line.split()
        assert words[1] in VERBS, line
        verb = words[1:3] if words[1] == "data" or words[2:3] == ["ar-search"] else words[1:2]
        help_text = CliRunner().invoke(group, [*verb, "--help"]).output
        for option in (w for w in words if w.startswith("--")):
            assert option in help_text, line


def anchors(page):
    """What `page.md#ANCHOR` may name: its headings, in the spelling of GitHub and of the site."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_anchors_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists() or found in GENERATED, target
        if anchor and found not in GENERATED:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=name_of)
def test_files_that_are_named_exist(page):
    """Paths in backticks that begin with a folder of the repository."""
    folders = "ulfast|csrc|tests|benchmarks|experiments|tools|examples|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", page.read_text()):
        if path != "benchmarks/results/grids/GRID.json":
            assert (ROOT / path).exists(), path


# Options that make a command fast enough for a test, by verb; names that need a network become the sample.
SHRINK = {"attack": ["--limit", "150", "--epochs", "1"]}
TASKS = [
    *(f"guide/{name}" for name in ("poison", "attack", "diagnose", "grids", "kernels", "ffcv", "scale")),
    "research/findings",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_commands_run(name, tmp_path, monkeypatch):
    """Every `ulfast ...` line of a task's page, in order, in one folder."""
    monkeypatch.chdir(tmp_path)
    page = DOCS / f"{name}.md"
    for block in blocks(page, "yaml"):
        Path("my_grid.yaml").write_text(block)
    lines = commands(page)
    assert lines
    for line in lines:
        words = line.replace("cifar10", "sample").split()[1:]
        extra = [
            w for pair in zip(*[iter(SHRINK.get(words[0], []))] * 2, strict=True) if pair[0] not in words for w in pair
        ]
        result = CliRunner().invoke(group, words + extra, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_attack_page_says_what_was_measured_on_a_gpu():
    file = ROOT / "benchmarks" / "results" / "gpu-nvidia-h200-train.json"
    first = json.loads(file.read_text())["cells"][0]
    text = " ".join((DOCS / "guide" / "attack.md").read_text().split())
    assert f"takes {first['seconds']['attack']:.1f} seconds and gives {100 * first['test_accuracy']:.2f} %" in text


def test_extending_page_runs():
    from ulfast.attacks import ATTACKS
    from ulfast.poisons import POISONS

    try:
        names = run(DOCS / "develop" / "extend.md")
        assert names["result"].method == "median+cutmix"
    finally:
        POISONS.pop("stripe", None)
        ATTACKS.pop("median", None)
