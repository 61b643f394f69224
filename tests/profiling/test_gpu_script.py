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


OPERATORS = {
    "ingest",
    "project",
    "project_classwise",
    "softmax_regression_step",
    "lsp",
    "ar",
    "regions",
    "cuda",
    "class_moments",
    "pgd_step linf",
    "pgd_step l2",
    "philox_uniform",
    "philox_normal",
    "perturb_linear",
    "patch_filter",
}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """The folder after both parts, and what they said."""
    folder = tmp_path_factory.mktemp("gpu")
    done = {part: run("bash", "benchmarks/gpu.sh", part, "--dry", str(folder)) for part in ("check", "measure")}
    for part, one in done.items():
        assert one.returncode == 0, f"{part}: {one.stdout}{one.stderr}"
    return folder, {part: one.stdout for part, one in done.items()}


@pytest.mark.slow
def test_every_step_of_a_dry_run_is_done_and_logged(dry):
    folder, said = dry
    steps = {"check": ["versions", "sweep", "tests"], "measure": ["table", "steps"]}
    if (ROOT / "benchmarks" / "gpu_train.py").exists():
        steps["measure"].append("train")
    for part, names in steps.items():
        result = json.loads((folder / f"gpu-dry-{part}.json").read_text())
        assert result["dry"] is True
        assert [step["exit"] for step in result["steps"].values()] == ["0"] * len(names)
        log = (folder / f"gpu-dry-{part}.log").read_text()
        for name in names:
            assert name in result["steps"]
            assert f"ok    {name}: " in said[part]
            assert f"======== {name}: exit 0" in log
    assert "calls; the largest deviation is" in (folder / "gpu-dry-check.log").read_text()
    assert len(list(folder.iterdir())) <= 8


@pytest.mark.slow
def test_a_dry_run_makes_the_table_and_the_json(dry):
    folder, said = dry
    result = json.loads((folder / "gpu-dry.json").read_text())
    assert result["dry"] is True
    assert result["left_out"] == []
    assert result["broken_off"] is None
    assert {"driver", "nvcc", "commit", "nvidia_smi"} <= set(result["environment"])
    assert {"copy_bytes_per_s", "sgemm_flops_per_s", "tf32_flops_per_s", "bf16_flops_per_s"} == set(result["ceilings"])
    assert {row["op"] for row in result["rows"]} == OPERATORS
    for row in result["rows"]:
        seconds, own = row["seconds"], row["seconds"]["ulfast"]
        assert own > 0
        assert set(row["ratio"]) | set(row["forms"]) == set(seconds) - {"ulfast", "copy", "copy by a kernel"}
        for name, ratio in row["ratio"].items():
            assert ratio == pytest.approx(seconds[name] / own)
        assert row["of_copy"] == pytest.approx(min(seconds["copy"], seconds["copy by a kernel"]) / own)
        assert row["error"] <= 2 * row["plain_error"] + 1e-6, row["case"]
    project = next(row for row in result["rows"] if row["op"] == "project" and row["dtype"] == "float32")
    peers = {"eager", "compile", "addmm", "addmm_ in place", "TF32 products", "bf16 products"}
    assert set(project["ratio"]) == peers
    assert set(project["forms"]) == {"ulfast out=", "ulfast in place"}
    assert [step["model"] for step in result["steps"]] == ["cnn"]
    assert result["steps"][0]["seconds"]["training step"] > 0
    table = (folder / "gpu-dry.md").read_text()
    assert table.startswith("DRY RUN")
    assert table in said["measure"]
    assert table.count("\n|") == 2 + len(result["rows"]) + 2 + len(result["steps"])
    assert "- project 6 x 192, float32: k 2: " in table


@pytest.mark.slow
def test_a_failing_step_is_named_and_the_others_run(tmp_path):
    """Here the table, which has no such case."""
    environment = {**ENVIRONMENT, "STEPS": "table steps", "TABLE": "--only nothing"}
    command = ["bash", "benchmarks/gpu.sh", "measure", "--dry", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 1
    assert "FAIL  table: exit 1" in done.stdout
    assert "ok    steps: " in done.stdout
    steps = json.loads((tmp_path / "gpu-dry-measure.json").read_text())["steps"]
    assert {name: step["exit"] for name, step in steps.items()} == {"table": "1", "steps": "0"}


@pytest.mark.parametrize("arguments", [[], ["test"], ["check", "--dry"]])
def test_wrong_arguments_are_reported(arguments):
    done = run("bash", "benchmarks/gpu.sh", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.sh: ")
    assert "benchmarks/gpu.sh" in done.stderr


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
    assert "2 s had passed: not begun" in result["left_out"][-1]["reason"]
    assert done.returncode == (0 if result["cells"] else 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "script", ["gpu.sh", *(pytest.param(s, marks=pytest.mark.slow) for s in ("gpu.py", "gpu_sweep.py", "gpu_train.py"))]
)
def test_without_a_gpu_it_fails_loudly(script, tmp_path):
    program = "bash" if script.endswith(".sh") else sys.executable
    folder = ["--out", str(tmp_path)]
    arguments = {"gpu.py": folder, "gpu_train.py": folder, "gpu.sh": ["check", str(tmp_path)]}.get(script, [])
    done = run(program, f"benchmarks/{script}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{script}: ")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
