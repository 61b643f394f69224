"""benchmarks/gpu.sh with what it runs, and gpu_train.py, as far as a machine without a GPU can: --dry, and that they
fail without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)


@pytest.mark.slow
def test_dry_run_makes_the_table_and_the_json(tmp_path):
    done = run("bash", "benchmarks/gpu.sh", "--dry", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "ok    sweep.log" in done.stdout
    assert "ok    table.log" in done.stdout
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["dry"] is True
    assert result["left_out"] == []
    assert {"copy_bytes_per_s", "sgemm_flops_per_s", "tf32_flops_per_s", "bf16_flops_per_s"} == set(result["ceilings"])
    assert {row["op"] for row in result["rows"]} == {
        "ingest",
        "project",
        "project_classwise",
        "softmax_regression_step",
        "lsp",
        "ar",
        "regions",
        "cuda",
    }
    for row in result["rows"]:
        assert row["seconds"]["ulfast"] > 0
        assert set(row["ratio"]) == set(row["seconds"]) - {"ulfast"}
        assert row["ratio"]["eager"] == pytest.approx(row["seconds"]["eager"] / row["seconds"]["ulfast"])
        assert row["of_copy"] > 0
        assert row["error"] <= 2 * row["plain_error"] + 1e-6, row["case"]
    project = next(row for row in result["rows"] if row["op"] == "project" and row["dtype"] == "float32")
    assert set(project["ratio"]) == {"eager", "compile", "addmm", "TF32 products", "bf16 products"}
    table = (tmp_path / "gpu.md").read_text()
    assert table.startswith("DRY RUN")
    assert table in done.stdout
    assert table.count("\n|") == 2 + len(result["rows"])


@pytest.mark.slow
def test_dry_run_trains_every_cell(tmp_path):
    done = run(sys.executable, "benchmarks/gpu_train.py", "--dry", "--probe", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["dry"] is True
    assert result["left_out"] == []
    assert [probe["name"] for probe in result["probes"]] == ["graph", "graph, convolutions tried", "no graph"]
    assert all(probe["second_epoch"] > 0 for probe in result["probes"])
    names = [cell["name"] for cell in result["cells"]]
    assert names[0] == "lsp, orthogonal from zero, fast"
    assert len(set(names)) == len(names) == 26
    for cell in result["cells"]:
        seconds = cell["seconds"]
        assert {"poison", "fit", "project", "train", "evaluate", "rest", "attack"} == set(seconds)
        assert seconds["attack"] == pytest.approx(sum(seconds.values()) - seconds["attack"] - seconds["poison"])
        assert cell["warnings"] == []
        assert f"| {cell['name']} |" in done.stdout


@pytest.mark.slow
def test_a_run_out_of_time_says_what_it_left_out(tmp_path):
    done = run(sys.executable, "benchmarks/gpu_train.py", "--dry", "--seconds", "2", "--out", str(tmp_path))
    result = json.loads((tmp_path / "train.json").read_text())
    assert len(result["cells"]) + len(result["left_out"]) == 26
    assert "2 s were over: not begun" in result["left_out"][-1]["reason"]
    assert done.returncode == (0 if result["cells"] else 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "script", ["gpu.sh", *(pytest.param(s, marks=pytest.mark.slow) for s in ("gpu.py", "gpu_sweep.py", "gpu_train.py"))]
)
def test_without_a_gpu_it_fails_loudly(script, tmp_path):
    program = "bash" if script.endswith(".sh") else sys.executable
    arguments = ["--out", str(tmp_path)] if script in ("gpu.py", "gpu_train.py") else []
    done = run(program, f"benchmarks/{script}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}: ")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
