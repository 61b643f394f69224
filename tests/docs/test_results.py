"""The tables of results are those of the committed files, and a new file replaces a typed table."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from ulfast.grids import Grid, reproduce

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results():
    """tools/results.py as a module, which imports its neighbour tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("results")
        for name in [name for name in sys.modules if name == "results" or name.split(".")[0] == "tables"]:
            del sys.modules[name]


def blocks(results):
    return [found for page in results.pages() for found in results.BLOCK.finditer(page.read_text())]


def test_every_page_is_what_the_files_give(results):
    for page in results.pages():
        text = page.read_text()
        assert results.rendered(text) == text, f"{page.name} is not up to date: run `make results`"
        assert text.count("<!-- table: ") == len(results.BLOCK.findall(text)) == text.count("<!-- /table -->")


def test_every_kept_file_has_a_table(results):
    named = {(results.FOLDERS[found[2]], found[3]) for found in blocks(results)}
    for folder in ("grids", "attacks"):
        for file in (results.RESULTS / folder).glob("*.json"):
            assert (folder, file.stem) in named, file


def test_a_table_without_a_file_says_so(results):
    """But for the README, whose tables are those of the pages in short."""
    for page in results.pages():
        for found in results.BLOCK.finditer(page.read_text()):
            kept = (results.RESULTS / results.FOLDERS[found[2]] / f"{found[3]}.json").is_file()
            if page.name != "README.md":
                assert ("the result file was not kept" in found[0]) != kept, found[0]


def test_kept_files_name_their_machine_and_no_path(results):
    for folder in ("grids", "attacks"):
        for file in (results.RESULTS / folder).glob("*.json"):
            text = file.read_text()
            content = json.loads(text)
            assert content.get("environment") or content["environments"]
            assert not re.search(r'": "(/|\w:\\\\)', text), file


def test_a_grid_that_was_run_replaces_the_typed_table(results, make_dataset, tmp_path):
    from ulfast.data import write_dataset

    write_dataset(tmp_path / "data", make_dataset(), make_dataset(split="test"))
    grid = Grid.of(
        {
            "name": "mine",
            "data": str(tmp_path / "data"),
            "poisons": ["clean", "lsp"],
            "attacks": ["none"],
            "models": ["cnn"],
            "epochs": 1,
            "seeds": [0, 1],
        },
        "here",
    )
    done = reproduce(grid, tmp_path / "runs")
    page = "before\n<!-- table: grid mine -->\n\ntyped\n\n<!-- /table -->\nafter\n"
    assert results.rendered(page, tmp_path) == page
    kept = results.keep(tmp_path / "runs", tmp_path)
    assert kept == tmp_path / "grids" / "mine.json"
    content = json.loads(kept.read_text())
    assert content["environments"][0]["torch"]
    assert "folders" not in content["rows"][0]
    made = results.rendered(page, tmp_path)
    assert "typed" not in made
    assert made.startswith("before\n<!-- table: grid mine -->\n\n| trained on | none |\n|---|---|\n| clean | ")
    row = done.row("lsp", "none")
    assert f"| lsp | {100 * row.mean:.1f} ± {100 * row.std:.1f} |" in made
    assert made.endswith("\n<!-- /table -->\nafter\n")
    assert "2 seeds" in made
    assert results.rendered(made, tmp_path) == made
    # The output of `reproduce` itself is accepted too.
    kept.write_text((tmp_path / "runs" / "summary.json").read_text())
    assert f"| lsp | {100 * row.mean:.1f} ± {100 * row.std:.1f} |" in results.rendered(page, tmp_path)


def test_environments_that_differ_in_the_commit_are_one_machine(results):
    about = {"cpu": "a CPU", "cpu_level": "v3", "threads": 1, "torch": "2.0", "ulfast": "0.2", "commit": "abc"}
    others = [{**about, "commit": "def"}, {**about, "threads": 2, "commit": None}]
    made = importlib.import_module("tables.lines").machines([about, *others])
    assert made == (
        "a CPU (v3), 1 threads, torch 2.0, ulfast 0.2, commits abc, def; a CPU (v3), 2 threads, torch 2.0, ulfast 0.2"
    )


def test_what_each_attack_helps_and_costs(results):
    accuracies = {
        ("clean", "none"): 0.7,
        ("clean", "jpeg"): 0.656,
        ("lsp", "none"): 0.3,
        ("lsp", "jpeg"): 0.5,
        ("ops", "none"): 0.2,
        ("ops", "jpeg"): 0.62,
        ("ar", "none"): 0.6,
        ("ar", "jpeg"): 0.56,
        ("cuda", "none"): 0.25,
        ("cuda", "jpeg"): 0.26,
    }
    made = [{"poison": p, "attack": a, "model": m, "mean": v} for (p, a), v in accuracies.items() for m in ("cnn", "x")]
    labels = ({"label": name} for name in ("clean", "lsp", "ops", "ar", "cuda"))
    grid = {"poisons": list(labels), "attacks": [{"label": "none"}, {"label": "jpeg"}]}
    assert results.KINDS["helps"]({"grid": grid, "rows": made}, model=["x"]) == [
        "| `x` | clean images | helps by 3 points or more | harms by as many |",
        "|---|---|---|---|",
        "| jpeg | -4.4 | ops +42, lsp +20 | ar -4 |",
    ]


def test_the_short_tables_of_speed_take_named_cases(results, tmp_path):
    cases = {"project-1x1x1": ("project", 2e-3, 5e-3), "other": ("other", 1e-3, 9e-3)}
    result = {
        "environment": {"cpu": "a CPU", "cpu_level": "v3", "threads": 2, "torch": "2", "ulfast": "1", "commit": None},
        "roof": {"copy_bytes_per_s": 2e10, "sgemm_flops_per_s": 8e10},
        "rows": [
            {"key": key, "case": case, "ours": "a", "best_peer": "b", "seconds": {"a": ours, "b": peer}}
            | {"x_best": peer / ours, "x_plain": 4.0, "x_roof": None}
            for key, (case, ours, peer) in cases.items()
        ],
    }
    (tmp_path / "speed.json").write_text(json.dumps(result))
    made = results.rendered("<!-- table: speed speed cases=project-1x1x1 -->\n<!-- /table -->", tmp_path)
    assert "| `project` | 2.0 | 5.0 | 2.5 |" in made
    assert "| 2 threads, AVX2 |" in made
    assert "other" not in made
    made = results.rendered("<!-- table: speed speed -->\n<!-- /table -->", tmp_path)
    assert "| other | 1.0 | 9.0 (b) | 9.0 | 4.0 |  |" in made
    assert "a CPU (v3), 2 threads" in made


def test_the_loaders_have_a_row_each_and_the_sets_a_column(results):
    about = {"cpu": "a CPU", "cpu_level": "v3", "threads": 2, "torch": "2.0", "ulfast": "0.2", "commit": "abc"}
    made = [("raw32", 20_000, "default loader", 5e5), ("jpeg224", 100, "default loader", 4e3)]
    taken = [{"set": s, "images": n, "loader": name, "rate": rate, "seconds": [1.0] * 9} for s, n, name, rate in made]
    taken.append({"set": "jpeg224", "images": 100, "loader": "linear fit", "rate": 4321.0})
    lines = results.KINDS["loaders"]({"environment": about, "rows": taken, "peak_mb": 1.0})
    assert lines[0] == "| images per second | raw, 32 px | JPEG 90, 224 px |"
    assert lines[2:4] == ["| default loader | 500,000 | 4,000 |", "| linear fit |  | 4,321 |"]
    assert "20,000 (raw, 32 px; 9 rounds), 100 (JPEG 90, 224 px; 9 rounds)" in lines[-1]


def test_the_table_of_a_campaign_says_how_tries_ended_and_with_what(results):
    about = {"cpu": "a CPU", "cpu_level": "v3", "threads": 1, "torch": "2.0", "ulfast": "0.2", "commit": "abc"}
    part = {"seed": 5, "jobs": 2, "tries": 30_000, "seconds": 7200.0, "environment": about}
    found = {"ends": {"InputError": 29_999, "finding": 1}, "findings": ["--seed 5 --part readers --try 7: x"]}
    parts = {"readers": {**part, **found}, "kills": {**part, **found, "seconds": 60.0}}
    lines = results.KINDS["campaign"]({"parts": parts})
    assert lines[2] == "| `readers` | 30,000 | 2.0 h | 4.17 | 1 | 29,999 one line, 1 finding |"
    assert "1 min" in lines[3]
    assert lines[-1].count("commit abc, seed 5") == 1


def test_the_table_of_other_libraries(results, tmp_path):
    """A column for each environment; what one of them lacks or what failed there is said."""

    def made(torch, timm, outcome):
        return {
            "python": "3.11.7",
            "commit": "abc",
            "packages": {"torch": torch, "timm": timm},
            "examples": {"plain_pytorch": {"outcome": "passed"}, "timm_style": outcome},
            "tests": {"passed": 1234, "failed": [{"test": "a", "reason": "b"}], "skipped": []},
        }

    failed = {"outcome": "failed", "reason": "no attribute"}
    result = {"environments": [made("2.14.1", "1.0.31", {"outcome": "passed"}), made("2.6.0", None, failed)]}
    (tmp_path / "compat.json").write_text(json.dumps(result))
    page = results.rendered("<!-- table: compat compat -->\n\n<!-- /table -->\n", tmp_path)
    assert "| torch | 2.14.1 | 2.6.0 |" in page
    assert "| timm | 1.0.31 | not installed |" in page
    assert "| `timm_style.py` | passed | failed: no attribute |" in page
    assert "| tests | 1,234 passed, 1 failed, 0 skipped | 1,234 passed, 1 failed, 0 skipped |" in page
