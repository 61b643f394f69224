"""Processes that were started by hand: other data, other options, a port in use, one that stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from ulfast import InputError, write_dataset
from ulfast.cli.main import run
from ulfast.data.dataset import replace
from ulfast.runtime.machine import launched_size

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def data(make_dataset, tmp_path):
    train = make_dataset(150, 16)
    write_dataset(tmp_path / "a", train, make_dataset(30, 16, split="test", seed=1))
    write_dataset(tmp_path / "same", train, make_dataset(30, 16, split="test", seed=1))
    other = np.array(train.images)
    other[7, 0, 0, 0] ^= 1
    write_dataset(tmp_path / "b", replace(train, images=other), make_dataset(30, 16, split="test", seed=1))
    return tmp_path


def start(rank: int, port: int, words: list, size: int = 2, **variables: str) -> subprocess.Popen:
    """A process started by hand with the launcher's variables."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **variables,
    }
    command = [sys.executable, "-m", "ulfast", *map(str, words), "--quiet"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(jobs: list, limit: float = 90) -> list[tuple[int, str]]:
    """Exit codes and what was said."""
    try:
        return [(job.wait(limit), job.communicate()[1]) for job in jobs]
    finally:
        for job in jobs:
            job.kill()


def verbs(data, out) -> dict:
    return {
        "fit": ["fit", "--steps", "5", "--device", "cpu", "--out", out / "o.safetensors", "--data", data],
        "attack": ["attack", "--epochs", "1", "--device", "cpu", "--out", out / "run", "--data", data],
        "poison": ["poison", "--device", "cpu", "--out", out / "p", "--data", data],
        "convert": ["data", "convert", "--to", "ulfast", "--out", out / "c", data],
    }


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "attack", "poison", "convert"])
def test_processes_that_read_different_files_are_refused(data, port, verb):
    """One pixel is enough; the same pixels elsewhere are the same."""
    jobs = [start(rank, port, verbs(data / name, data / "out")[verb]) for rank, name in enumerate("ab")]
    for code, error in ended(jobs):
        assert code == 2, error
        assert error.count("\n") == 1
        assert "process 1 has other images than process 0" in error
    out = data / "out"
    assert not out.exists() or not [f for f in out.iterdir() if not f.name.startswith(".")]


@pytest.mark.slow
def test_processes_with_other_options_or_versions_are_refused(data, port):
    fit = ["fit", "--device", "cpu", "--out", data / "o.safetensors", "--data"]
    jobs = [start(rank, port, [*fit, data / "a", "--steps", 5 + rank]) for rank in range(2)]
    for code, error in ended(jobs):
        assert (code, "process 1 has other options (steps) than process 0 (6, not 5)" in error) == (2, True), error
        assert error.count("\n") == 1
    jobs = [start(rank, port, [*fit, data / name, "--steps", 5]) for rank, name in enumerate(("a", "same"))]
    assert [code for code, _ in ended(jobs)] == [0, 0]
    assert (data / "o.safetensors").is_file()


@pytest.mark.slow
def test_a_stopped_process_ends_the_job_within_the_set_time(data, port):
    for stopped in (0, 1):
        out = data / f"run{stopped}"
        words = [
            "attack",
            "--epochs",
            "2000",
            "--device",
            "cpu",
            "--method",
            "none",
            "--out",
            out,
            "--data",
            data / "a",
        ]
        jobs = [start(rank, port + stopped, words, ULFAST_RANK_TIMEOUT="8") for rank in range(2)]
        try:
            end = time.monotonic() + 60
            while not (out / "checkpoints" / "attack" / "last.pt").exists():
                assert time.monotonic() < end
                assert all(job.poll() is None for job in jobs), jobs[1].communicate()[1]
                time.sleep(0.05)
            jobs[stopped].send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            other = jobs[1 - stopped]
            code, error = other.wait(60), other.communicate()[1]
            assert time.monotonic() - begun < 30
            assert code == 1
            assert error.startswith(f"ulfast: process {stopped} of 2 has not answered for 8 s"), error
            assert error.count("\n") == 1
        finally:
            for job in jobs:
                job.kill()


STUCK = """
import os
from ulfast import distributed
with distributed.joined("cpu"):
    distributed.wait()
    if distributed.rank():
        os.read(os.pipe()[0], 1)  # for ever
    distributed.wait()
"""


@pytest.mark.slow
def test_a_process_that_is_stuck_in_its_own_work_ends_the_job_when_the_others_have_waited(port):
    """It gives signs of life all the while."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    variables |= {"ULFAST_RANK_WAIT": "12", "ULFAST_RANK_TIMEOUT": "5"}
    jobs = []
    for rank in range(2):
        environment = {**os.environ, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        jobs.append(subprocess.Popen([sys.executable, "-c", STUCK], env=environment, stderr=subprocess.PIPE, text=True))
    try:
        error = jobs[0].communicate(timeout=90)[1]
    finally:
        for job in jobs:
            job.kill()
    line = next(line for line in error.splitlines() if "WorkerError: " in line)
    assert "process 0 of 2 has waited 12 s for another one, which lives" in line
    assert "ULFAST_RANK_WAIT sets another time" in line


@pytest.mark.slow
def test_a_port_in_use_and_a_missing_process_are_one_line(data):
    words = ["fit", "--data", data / "a", "--steps", "5", "--device", "cpu", "--out", data / "o.safetensors"]
    with socket.create_server(("0.0.0.0", 0)) as taken:
        code, error = ended([start(0, taken.getsockname()[1], words, ULFAST_RANK_TIMEOUT="3")])[0]
    assert (code, error.count("\n")) == (2, 1), error
    assert "is in use on this machine: set another MASTER_PORT" in error
    for rank in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        code, error = ended([start(rank, port, words, ULFAST_RANK_TIMEOUT="3")])[0]
        assert (code, error.count("\n")) == (2, 1), error
        assert "not all of 2 processes joined" in error


@pytest.mark.slow
@pytest.mark.parametrize("out", ["b.safetensors", "b.txt"], ids=["done", "refused"])
def test_a_launcher_leaves_no_temporary_folder(data, tmp_path, out):
    (tmp_path / "tmp").mkdir()
    words = ["fit", "--data", data / "a", "--steps", "5", "--device", "cpu", "--out", data / out, "--nproc", "2"]
    command = [sys.executable, "-m", "ulfast", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == (0 if out == "b.safetensors" else 2), done.stderr
    left = [entry.name for entry in (tmp_path / "tmp").iterdir()]
    assert not [name for name in left if name.startswith(("torchelastic", "ulfast"))], left


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("RANK", "abc", "RANK is 'abc', not a number"),
        ("WORLD_SIZE", "two", "WORLD_SIZE is 'two', not a number"),
        ("RANK", "2", "ranks go from 0 to 1"),
        ("MASTER_PORT", "70000", "ports to 65535"),
        ("ULFAST_RANK_TIMEOUT", "soon", "give a number of seconds"),
    ],
)
def test_variables_that_do_not_fit_are_one_line(monkeypatch, capsys, tmp_path, variable, value, said):
    for name, good in zip(NAMES, ("2", "0", "0", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, good)
    monkeypatch.setenv(variable, value)
    assert run(["fit", "--data", "sample", "--out", str(tmp_path / "b.safetensors"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_variables_of_something_else_are_left_alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "abc")
    assert launched_size() == 1


RESUMABLE = [
    (["fit", "--data", "sample", "--out", "b.safetensors"], "b.safetensors.part.pt", "the same command with --resume"),
    (["poison", "--data", "sample", "--out", "p"], ".p.part/.done-0", "the same command with --resume"),
    (["attack", "--data", "sample", "--out", "run", "--method", "none"], "run/config.json", "with --resume"),
    (["data", "convert", "sample", "--to", "ulfast", "--out", "c"], ".c.part/.done-0", "the same command"),
]


@pytest.mark.parametrize(
    ("words", "file", "hint"), RESUMABLE, ids=lambda value: value[0] if isinstance(value, list) else ""
)
@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_names_resume_only_where_there_is_something_to_resume(
    monkeypatch, capsys, tmp_path, words, file, hint, begun
):
    monkeypatch.chdir(tmp_path)

    def interrupted(*_, **__):
        if begun:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text("")
        raise KeyboardInterrupt

    import ulfast.attacks
    import ulfast.data
    import ulfast.data.load
    import ulfast.projection.fit
    from ulfast.data.writers import resumable

    monkeypatch.setattr(ulfast.projection.fit, "fit_basis", interrupted)
    monkeypatch.setattr(ulfast.attacks, "attack", interrupted)
    monkeypatch.setattr(resumable.RowWriter, "left", interrupted)
    assert run([*words, "--quiet"]) == 130
    said = capsys.readouterr().err
    assert said.count("\n") == 1 + said.startswith("\n")
    assert (hint in said) == begun, said
    assert ("nothing was written" in said) == (not begun)


def test_launched_size_needs_all_variables(monkeypatch):
    for name, value in zip(NAMES, ("2", "1", "1", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert launched_size() == 2
    monkeypatch.setenv("RANK", "²")
    with pytest.raises(InputError, match="not a number"):
        launched_size()
