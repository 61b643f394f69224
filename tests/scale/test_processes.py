from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ulfast import InputError, distributed
from ulfast.data import MemoryLoader, load_dataset, write_dataset

TOGETHER = Path(__file__).with_name("together.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
ULFAST = [sys.executable, "-m", "ulfast"]


@pytest.fixture(scope="module")
def data(make_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clean"
    write_dataset(folder, make_dataset(150, 16), make_dataset(33, 16, split="test", seed=1))
    return folder


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """The results of one process and of two."""
    out = tmp_path_factory.mktemp("together")
    command = [sys.executable, str(TOGETHER), str(data), str(out), "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_do_what_one_does(data, out, processes):
    """Two are forks that know of each other, four are torchrun's."""
    if processes == 4:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
        done = subprocess.run(
            [*command, str(TOGETHER), str(data), str(out)], capture_output=True, text=True, env=ENVIRONMENT, timeout=120
        )
        assert done.returncode == 0, done.stderr
    want, got = torch.load(out / "found-1.pt"), torch.load(out / f"found-{processes}.pt")
    torch.testing.assert_close(got["weights"], want["weights"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got["rows"].T @ got["rows"], want["rows"].T @ want["rows"], rtol=0, atol=1e-5)
    assert got["fit"] == pytest.approx(want["fit"], rel=1e-5)
    assert got["statistics"] == want["statistics"]
    assert torch.equal(got["noise"], want["noise"])
    torch.testing.assert_close(
        got["partial"].T @ got["partial"], want["partial"].T @ want["partial"], rtol=0, atol=1e-5
    )
    for name in ("cnn", "resnet18-4"):  # without and with batch normalisation
        np.testing.assert_allclose(got[name], want[name], rtol=1e-3)
        for key, value in want[f"{name} state"].items():
            torch.testing.assert_close(
                got[f"{name} state"][key], value, rtol=1e-2, atol=2e-3, msg=lambda m, k=key: k + m
            )
        whole, parts = got[f"{name} evaluated"]
        assert parts[0] == pytest.approx(whole[0], rel=1e-6)
        assert parts[1] == whole[1]
        assert got[f"{name} same"]
    files = sorted(f.relative_to(out) for f in (out / "poisoned-1").rglob("*") if f.is_file())
    assert len(files) == 3
    for file in files:
        other = out / f"poisoned-{processes}" / file.relative_to("poisoned-1")
        assert other.read_bytes() == (out / file).read_bytes()
    shards = [sorted(folder.glob("images-*.npy")) for folder in (out / "projected-1", out / f"projected-{processes}")]
    assert [len(files) for files in shards] == [5, 5]
    for one, other in zip(*shards, strict=True):
        np.testing.assert_allclose(np.load(other).astype(np.float32), np.load(one), atol=1e-3)


def test_parts_of_batches_are_the_batches(make_dataset):
    dataset = make_dataset(50)
    whole = list(MemoryLoader(dataset, 16, shuffle=True))
    loaders = [MemoryLoader(dataset, 16, shuffle=True, part=(i, 3)) for i in range(3)]
    for i, ((x, y), *parts) in enumerate(zip(whole, *loaders, strict=True)):
        assert torch.equal(torch.cat([part[0] for part in parts]), x)
        assert torch.equal(torch.cat([part[1] for part in parts]), y)
        assert loaders[0].batch_images(i) == len(y)


def test_one_process_is_left_alone():
    assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
    with distributed.joined():
        value = torch.ones(2)
        assert distributed.sum_(value) is value
        assert distributed.share(7) == (0, 7)
        assert distributed.agreed("x") == "x"
        assert distributed.gathered(1) == [1]
    assert [distributed.share(7, r, 3) for r in range(3)] == [(0, 2), (2, 4), (4, 7)]


def attack(data, out, *more):
    return [
        *ULFAST,
        "attack",
        "--data",
        str(data),
        "--fit-steps",
        "20",
        "--epochs",
        "30",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--quiet",
        *more,
    ]


def worker(launcher: int, rank: int) -> int:
    """Process number of a launcher's worker."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    raise AssertionError(f"no worker {rank}")


def killed_in_training(command, checkpoint) -> tuple[int, str, float]:
    """Exit code, stderr and seconds to the end of a job whose second worker is killed after its first epochs."""
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        end = time.monotonic() + 60
        while not checkpoint.exists():
            assert job.poll() is None, job.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(worker(job.pid, 1), signal.SIGKILL)
        start = time.monotonic()
        error = job.communicate(timeout=60)[1]
        return job.returncode, error, time.monotonic() - start
    finally:
        job.kill()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in /proc")
def test_a_killed_worker_ends_the_job_or_it_resumes(data, tmp_path):
    whole, ended, restarted = (tmp_path / name for name in ("whole", "ended", "restarted"))
    subprocess.run(attack(data, whole, "--nproc", "2"), check=True, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    last = Path("checkpoints", "attack", "last.pt")
    code, error, seconds = killed_in_training(attack(data, ended, "--nproc", "2"), ended / last)
    assert code == 1
    assert error.startswith("ulfast: process 1 of 2 was killed by SIGKILL"), error
    assert error.count("\n") == 1, error
    assert seconds < 30
    assert not (ended / "result.json").exists()
    command = attack(data, restarted, "--nproc", "2", "--max-restarts", "1")
    code, error, _ = killed_in_training(command, restarted / last)
    assert code == 0, error
    want, got = (json.loads((out / "result.json").read_text()) for out in (whole, restarted))
    assert got["test_accuracy"] == want["test_accuracy"]
    assert [row["train_loss"] for row in got["history"]] == [row["train_loss"] for row in want["history"]]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the worker in /proc")
def test_a_killed_search_resumes(data, tmp_path):
    out = tmp_path / "out"
    command = [
        *ULFAST,
        "poison",
        "-m",
        "hypo",
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--quiet",
        "--nproc",
        "2",
        "--set",
        "surrogate=cnn",
        "--set",
        "steps=3",
        "--set",
        "epochs=40",
    ]
    code, error, _ = killed_in_training(command, tmp_path / "out.work" / "surrogate" / "last.pt")
    assert code == 1
    assert error.startswith("ulfast: process 1 of 2 was killed by SIGKILL"), error
    assert "--resume continues from it" in error
    assert error.count("\n") == 1, error
    assert not out.exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out.work").exists()
    clean, poisoned = (load_dataset(folder) for folder in (data, out))
    assert 0 < np.abs(poisoned.images.astype(int) - clean.images).max() <= 8
    making = poisoned.manifest["making"]
    assert making["surrogate_epochs"] == 40
    assert making["loss_after"] < making["loss_before"]


@pytest.mark.slow
def test_what_the_user_did_wrong_is_one_line(data, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    done = subprocess.run(
        attack(data, tmp_path / "taken", "--nproc", "2"), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"ulfast: {tmp_path / 'taken'} exists already"), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_after_an_error_nothing_can_abort_one_of_several_processes(tmp_path):
    """A group's threads that still run when the interpreter ends may abort it; here an object does that stands in for
    them. What is registered to run at the end, temporary folders to be removed, still runs."""
    program = f"""
import atexit, os, sys
class Group:
    def __del__(self, abort=os.abort): abort()
sys.group = Group()
atexit.register(print, "tidied")
from ulfast.cli.main import main
main(["fit", "--data", {str(tmp_path / "missing")!r}, "--out", "b.safetensors"])
"""
    environment = {**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "none"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert done.stdout == "tidied\n"
    assert done.stderr.startswith("ulfast: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--data", "x", "--max-restarts", "1"], "give --max-restarts with an --out"),
        (["fit", "--data", "sample", "--out", "b.safetensors", "--resume"], "there is no interrupted fit"),
        (["poison", "--data", "sample", "--out", "p", "--resume"], "there is no interrupted run"),
    ],
)
def test_wrong_options(words, message, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from ulfast.cli.main import group

    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(group, words, catch_exceptions=False, standalone_mode=False)
