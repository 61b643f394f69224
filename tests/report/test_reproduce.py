"""`reproduce`: every cell of a grid, resumption, processes that are killed, and the grids that ship."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.context import SpawnProcess

import numpy as np
import pytest
import torch
import yaml

from ulfast import InputError, WorkerError
from ulfast.data import load_dataset
from ulfast.grids.grid import SHIPPED, Grid, shipped_grids
from ulfast.grids.run import GridResult, reproduce


def test_a_grid_trains_every_cell(done):
    assert len(done.rows) == 6
    assert not done.missing
    assert not done.failed
    row = done.row("strong", "orthogonal")
    assert row.seeds == [0, 1]
    results = [json.loads((done.folder / f / "result.json").read_text()) for f in row.folders]
    assert row.mean == pytest.approx(np.mean([r["test_accuracy"] for r in results]))
    assert row.std == pytest.approx(np.std([r["test_accuracy"] for r in results], ddof=1))
    assert [r["config"]["data"]["manifest"]["seed"] for r in results] == [0, 1]
    assert {r["config"]["data"]["images"] for r in results} == {200}
    summary = json.loads((done.folder / "summary.json").read_text())
    assert summary["rows"] == json.loads(json.dumps([r.to_dict() for r in done.rows]))
    assert GridResult.load(done.folder).rows == done.rows


def test_finished_cells_are_kept_and_missing_ones_are_made(grid, done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    lost = folder / done.row("clean", "none").folders[0]
    (lost / "result.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("result.json")}
    assert [str(lost.relative_to(folder))] == GridResult.load(folder).missing
    again = reproduce(Grid.of(grid), folder)
    assert again.row("clean", "none").mean == done.row("clean", "none").mean  # resumed from its checkpoint
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())


def test_other_settings_are_not_mixed_in(grid, done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    with pytest.raises(InputError, match="another epochs"):
        reproduce(Grid.of({**grid, "epochs": 3}), folder)
    small = {**grid, "epochs": 1, "seeds": [0], "attacks": ["none"]}
    again = reproduce(Grid.of(small), folder, overwrite=True)
    assert json.loads((folder / again.rows[0].folders[0] / "config.json").read_text())["recipe"]["epochs"] == 1
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        reproduce(Grid.of(grid), other)


@pytest.mark.slow
def test_jobs_give_the_same_results(grid, tmp_path):
    """Equal to the last digit if the number of threads is the same."""
    small = Grid.of({**grid, "attacks": ["none", "orthogonal"], "seeds": [0]})
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (reproduce(small, tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    finally:
        torch.set_num_threads(before)
    assert [(r.poison, r.attack, r.mean) for r in one.rows] == [(r.poison, r.attack, r.mean) for r in two.rows]


@pytest.mark.slow
def test_a_killed_process_ends_a_grid_with_one_line_and_the_next_run_resumes(grid, tmp_path):
    small = Grid.of({**grid, "attacks": ["none"], "seeds": [0]})

    def kill():
        while not any((tmp_path / "g").rglob("config.json")):  # until one trains
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(WorkerError, match="killed, perhaps for want of memory: the same command resumes") as caught:
        reproduce(small, tmp_path / "g", jobs=2)
    killer.join()
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert not reproduce(small, tmp_path / "g").missing


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 1], ids=["while-the-pool-ends", "after-it-ended"])
def test_a_process_killed_before_the_next_one_starts_ends_a_grid_too(grid, tmp_path, monkeypatch, seconds):
    """The pool then ends only the processes that it knows, and waited forever for the one that it was starting."""
    started = []
    start = SpawnProcess.start

    def start_after_a_kill(process):
        if started:
            started[0].kill()
            connection.wait([started[0].sentinel])
            time.sleep(seconds)
        start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", start_after_a_kill)
    with pytest.raises(WorkerError, match="the same command resumes"):
        reproduce(Grid.of({**grid, "attacks": ["none"], "seeds": [0]}), tmp_path / "g", jobs=2)
    for process in started:
        assert connection.wait([process.sentinel], timeout=60)


def test_a_poison_may_have_its_own_seed(grid, tmp_path):
    poisons = [{"name": "five", "method": "lsp", "seed": 5}]
    result = reproduce(Grid.of({**grid, "epochs": 1, "poisons": poisons, "attacks": ["none"]}), tmp_path / "g")
    kept = [json.loads((result.folder / f / "result.json").read_text()) for f in result.rows[0].folders]
    assert [(r["seed"], r["config"]["data"]["manifest"]["seed"]) for r in kept] == [(0, 5), (1, 5)]
    assert kept[0]["test_accuracy"] != kept[1]["test_accuracy"] or kept[0]["history"] != kept[1]["history"]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_a_network_poisons_is_made_once_for_all_cells(grid, tmp_path, jobs):
    surrogate = {"name": "noise", "method": "em", "wise": "class", "surrogate": "cnn", "lr": 0.01, "rounds": 2}
    bad = {"name": "bad", "method": "em", "surrogate": "cnn", "lr": 1e30, "rounds": 2, "steps": 1}
    small = {**grid, "limit": 40, "epochs": 1, "seeds": [0], "attacks": ["none", "orthogonal"], "poisons": [surrogate]}
    result = reproduce(Grid.of({**small, "poisons": [surrogate, bad]}), tmp_path / "g", jobs=jobs)
    (made,) = (tmp_path / "g" / "poisons").glob("noise-seed0-*")
    data = load_dataset(made)
    assert data.manifest["method"] == "em"
    assert len(data.manifest["making"]["rounds"]) == 2
    configs = [json.loads((result.folder / r.folders[0] / "config.json").read_text()) for r in result.rows]
    assert [c["data"]["manifest"] for c in configs] == [json.loads(json.dumps(data.manifest))] * 2
    assert set(result.failed) == {f"cells/bad/{attack}/cnn-seed0" for attack in ("none", "orthogonal")}
    assert all("learning rate" in message for message in result.failed.values())
    before = (made / "train" / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "g" / "cells" / "noise" / "none")
    again = reproduce(Grid.of(small), tmp_path / "g", jobs=jobs)
    assert not again.missing
    assert (made / "train" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_killed_grid_resumes(grid, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**grid, "epochs": 30, "seeds": [0], "attacks": ["none"]}))
    command = [sys.executable, "-m", "ulfast", "reproduce", str(file), "--out", str(tmp_path / "out"), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "out").rglob("last.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(2.5)  # the workers notice that they are alone
    result = reproduce(Grid.load(file), tmp_path / "out")
    assert not result.missing
    assert all(len(json.loads(p.read_text())["history"]) == 30 for p in (tmp_path / "out").rglob("result.json"))


def test_a_cell_that_cannot_run_does_not_stop_the_others(grid, tmp_path, monkeypatch):
    module = sys.modules[reproduce.__module__]  # `ulfast.reproduce` is the function
    plain = module.attack

    def attack(train, **options):
        if options["method"] == "orthogonal":
            raise InputError("no luck")
        return plain(train, **options)

    monkeypatch.setattr(module, "attack", attack)
    result = reproduce(
        Grid.of({**grid, "seeds": [0], "poisons": ["clean"], "attacks": ["none", "orthogonal"]}), tmp_path / "g"
    )
    assert result.failed == {"cells/clean/orthogonal/cnn-seed0": "no luck"}
    assert [r.attack for r in result.rows] == ["none"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"poisons": ["lspp"]}, "did you mean 'lsp'"),
        ({"poisons": [{"method": "lsp", "seed": "x"}]}, "a poison's seed must be a whole number"),
        ({"attacks": ["orthogonl"]}, "did you mean 'orthogonal'"),
        ({"attacks": [{"method": "orthogonal", "qality": 3}]}, "no parameter 'qality'"),
        ({"attacks": [{"method": "iss-jpeg", "quality": 0}]}, "at least 1"),
        ({"models": ["resnt18"]}, "did you mean"),
        ({"recipe": "quik"}, "did you mean 'quick'"),
        ({"seeds": ["a"]}, "seeds must be a list of int"),
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"data": "nowhere"}, "no data set 'nowhere'"),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"poisons": []}, "`poisons` is missing"),
        ({"poisons": ["lsp", {"method": "lsp", "eps": 2.0}]}, "'lsp' is given twice"),
        ({"poisons": [{"name": "../x", "method": "lsp"}]}, "cannot name a folder"),
        ({"poisons": [{"method": "clean", "eps": 1.0}]}, "clean data takes no parameters"),
        ({"published": "us"}, "no published table"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(grid, change, message):
    with pytest.raises(InputError, match=message):
        Grid.of({**grid, **change})


def test_shipped_grids_can_be_run():
    assert shipped_grids() == [
        "adaptive",
        "adaptive-transfer",
        "ar",
        "ar-64",
        "ar-full",
        "attacks",
        "centring",
        "cifar10",
        "cifar10-10k",
        "cuda",
        "demo",
        "fit-start",
        "fits",
        "imagenet100",
        "mean-noise",
        "orthogonal-full",
        "poisons",
        "rivals",
        "surrogates",
    ]
    for name in shipped_grids():
        content = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
        shipped = Grid.of({**content, "data": "sample"})
        count = len(shipped.poisons) * len(shipped.attacks) * len(shipped.models) * len(shipped.seeds)
        assert len(shipped.cells()) == count
        assert len({cell.path for cell in shipped.cells()}) == count
    with pytest.raises(InputError, match="did you mean 'demo'"):
        Grid.load("demoo")
