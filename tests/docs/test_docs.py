"""What the documentation shows runs."""

from __future__ import annotations

import json
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
        verb = words[1:3] if words[1] == "data" or words[2:3] == ["ar-search"] else words[1:2]
        help_text = CliRunner().invoke(group, [*verb, "--help"]).output
        for option in (w for w in words if w.startswith("--")):
            assert option in help_text, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


# What makes a command quick enough for a test, by verb; names that need a network become the sample.
SHRINK = {"attack": ["--limit", "150", "--epochs", "1"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisons", "attacks", "tables", "findings", "kernels", "ffcv", "scale"])
def test_commands_run(name, tmp_path, monkeypatch):
    """Every `ulfast ...` line of a task's page, in order, in one folder."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / f"{name}.md").read_text()
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        Path("my_grid.yaml").write_text(block)
    lines = re.findall(r"^    (ulfast [^#\n]*)", page, re.MULTILINE)
    assert lines
    for line in lines:
        words = line.replace("cifar10", "sample").split()[1:]
        extra = [
            w for pair in zip(*[iter(SHRINK.get(words[0], []))] * 2, strict=True) if pair[0] not in words for w in pair
        ]
        result = CliRunner().invoke(group, words + extra, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_findings_are_those_of_the_result_files():
    """Every row that `experiments/separability.py` prints from a committed file stands in the page."""
    page = (ROOT / "docs" / "findings.md").read_text()
    files = sorted((ROOT / "benchmarks" / "results").glob("separability-*.json"))
    assert files
    for file in files:
        assert file.name in page
        for name, row in json.loads(file.read_text())["results"].items():
            ended = "converged" if row["converged"] else "stopped"
            share, loss = f"{100 * row['accuracy']:.1f} %", f"{row['loss']:.3g}"
            assert f"| `{name}` | {share} | {row['evaluations']:,} ({ended}) | {loss} |" in page


def test_what_was_measured_on_a_gpu_is_that_of_the_result_files():
    page, folder = (ROOT / "docs" / "kernels.md").read_text(), ROOT / "benchmarks" / "results"
    for row in json.loads((folder / "gpu-nvidia-h200.json").read_text())["rows"]:
        ratio = {name: f"{value:.1f}" for name, value in row["ratio"].items()}
        peers = " | ".join(ratio.get(name, "") for name in ("eager", "compile", "addmm"))
        assert f"| {row['case']} | {1e6 * row['seconds']['ulfast']:.1f} | {row['of_copy']:.2f} | {peers} |" in page
    for cell in json.loads((folder / "gpu-nvidia-h200-train.json").read_text())["cells"]:
        seconds = " | ".join(f"{cell['seconds'][part]:.1f}" for part in ("attack", "fit", "train"))
        assert f"| {cell['name']} | {100 * cell['test_accuracy']:.2f} | {seconds} |" in page
    first, second = json.loads((folder / "gpu-nvidia-h200-train.json").read_text())["cells"]
    took, percent = f"{first['seconds']['attack']:.1f} seconds", f"{100 * first['test_accuracy']:.2f} %"
    for name, text in (
        ("README.md", f"took {took} and reached {percent}"),
        ("docs/attacks.md", f"takes {took} and gives {percent}"),
    ):
        assert text in " ".join((ROOT / name).read_text().split())
    assert f"`--method none` {100 * second['test_accuracy']:.2f} %" in " ".join(
        (ROOT / "README.md").read_text().split()
    )


def test_extending_page_runs():
    from ulfast.attacks import ATTACKS
    from ulfast.poisons import POISONS

    names: dict[str, object] = {}
    try:
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL):
            exec(compile(block, "docs/extend.md", "exec"), names)
        assert names["result"].method == "median+cutmix"
    finally:
        POISONS.pop("stripe", None)
        ATTACKS.pop("median", None)
