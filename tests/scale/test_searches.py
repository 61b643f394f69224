"""The poisons that train a network, by two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ulfast import InputError, distributed, load_dataset, poison
from ulfast.data import write_dataset
from ulfast.poisons.surrogate import Images, new_surrogate, part
from ulfast.runtime import devices

SCRIPT = Path(__file__).with_name("searching.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Share of the stored levels that may differ: a sign step flips where rounding moves a gradient across zero.
FEW = 0.01


@pytest.fixture(scope="module")
def data(make_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clean"
    write_dataset(folder, make_dataset(70))
    return folder


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """Where the script left the results of one process and of two, and an interrupted run."""
    out = tmp_path_factory.mktemp("searches")
    command = [sys.executable, str(SCRIPT), str(data), str(out), "1", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def alone(folder):
    return torch.load(folder / "found-1.pt", weights_only=False)


@pytest.fixture(scope="module")
def pair(folder):
    return torch.load(folder / "found-2.pt", weights_only=False)


def numbers(making):
    """All numbers of a manifest's `making`, in order."""
    if isinstance(making, dict):
        making = list(making.values())
    return [n for value in making for n in numbers(value)] if isinstance(making, list) else [making]


@pytest.mark.parametrize(
    "method",
    [
        *["em", "em float16", "em resnet18-4", "em-classwise", "tap", "tap published", "hypo", "sep", "rem"],
        *["adaptive", "aue", "aap", "sem", "dune", "ntga", "tue", "pil", "pil published"],
    ],
)
def test_two_processes_find_what_one_does(data, alone, pair, method):
    want, got = alone[method], pair[method]
    assert len(got["everybody"]) == 2
    assert got["everybody"][0] == got["everybody"][1]  # bytes and manifest
    assert (got["images"] != want["images"]).mean() <= FEW
    for a, b in zip(got["values"], want["values"], strict=True):  # none of pil, which keeps no perturbations
        assert (a != b).float().mean() <= FEW
    np.testing.assert_allclose(numbers(got["making"]), numbers(want["making"]), rtol=2e-3)
    moved = np.abs(got["images"].astype(int) - load_dataset(data).images)
    assert 0 < moved.max() <= 8


def test_machines_without_shared_memory_find_the_same(pair):
    assert pair["apart"] == [checksum for checksum, _ in pair["em"]["everybody"]]


def test_a_last_batch_too_small_for_all_processes_is_no_error(pair):
    clean, poisoned = (images.astype(int) for images in pair["few"])
    assert 0 < np.abs(poisoned - clean).max() <= 8
    assert (poisoned != clean).any(axis=(1, 2, 3)).all()


def test_an_interrupted_run_is_resumed_by_any_number_of_processes(data, pair, folder, monkeypatch):
    assert pair["resumed"] == pair["whole"]
    monkeypatch.setattr(devices, "fast_half", lambda device: None)
    clean, work = load_dataset(data), folder / "interrupted"
    assert len(list(work.glob("delta-*.npy"))) == 1
    # What was under way when it was interrupted does not count.
    for name in ("delta.npy", "delta.1.npy"):
        stored = np.load(work / name, mmap_mode="r+")
        stored[:] = 99
        stored.flush()
    got = poison(clean, "em", seed=1, device="cpu", folder=work, resume=True, **pair["long"])
    want = poison(clean, "em", seed=1, device="cpu", **pair["long"])
    assert (got.images != want.images).mean() <= FEW
    assert len(got.manifest["making"]["rounds"]) == pair["long"]["rounds"]
    np.testing.assert_allclose(numbers(got.manifest["making"]), numbers(want.manifest["making"]), rtol=2e-3)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_search_takes_the_batches_of_one_process(make_dataset, monkeypatch, processes):
    images = Images(make_dataset(70), torch.device("cpu"))
    monkeypatch.setattr(distributed, "_SIZE", processes)
    walks = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "_RANK", rank)
        walks.append(list(images.chunks(25, 10)))
    batches = [index.tolist() for step in zip(*walks, strict=True) for _, index, _ in step]
    assert [b for b in batches if b] == [list(range(10, 35)), list(range(35, 60)), list(range(60, 70))]
    for step in zip(*walks, strict=True):
        for together, index, at in step:
            assert torch.equal(together, step[0][0])
            assert torch.equal(together[at : at + len(index)], index)


def test_parts_of_a_batch_and_a_batch_that_is_too_small(make_dataset, monkeypatch):
    surrogate = new_surrogate("cnn", make_dataset(70), 0, torch.device("cpu"))
    monkeypatch.setattr(distributed, "_SIZE", 3)
    found = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "_RANK", rank)
        found.append(part(torch.arange(100, 110)))
    assert torch.equal(torch.cat([index for index, _ in found]), torch.arange(100, 110))
    assert [begin for _, begin in found] == [0, 3, 6]
    with pytest.raises(InputError, match="batches of 2 images for 3 processes: give fewer"), surrogate.learning(2):
        raise AssertionError("not reached")
