"""One writer at a time, the old output or the new one whatever is killed, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ulfast
from ulfast import InputError, load_dataset, write_dataset
from ulfast.cli.main import group
from ulfast.data.beton import format as fmt, open_beton, write_beton
from ulfast.data.dataset import replace
from ulfast.data.export import export_dataset
from ulfast.runtime import files, made
from ulfast.runtime.files import atomic_folder, claimed, drop, exchange, temporary_folder
from ulfast.runtime.made import stranger


@pytest.fixture
def elsewhere():
    """`elsewhere(path)`: claims a path in another thread, as another process would, until the test ends."""
    stop, pool = threading.Event(), ThreadPoolExecutor(4)

    def claim(path: Path) -> None:
        have = threading.Event()

        def keep() -> None:
            with claimed(path):
                have.set()
                stop.wait(60)

        pool.submit(keep)
        assert have.wait(10)

    yield claim
    stop.set()
    pool.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_claim_excludes_others_and_ends_with_its_block(tmp_path, elsewhere, forked):
    out = tmp_path / "new" / "out"
    with claimed(out), claimed(out), claimed(out, alone=True):
        with pytest.raises(InputError, match="another process is writing"), claimed(out, alone=True):
            raise AssertionError("not reached")

        def other() -> None:
            with pytest.raises(InputError, match="another process is writing"), claimed(out):
                raise AssertionError("not reached")

        assert forked(other) == 0
    assert names(tmp_path) == []  # nor the folder, as nothing has come of it
    elsewhere(out)
    with pytest.raises(InputError, match="another process is writing"):
        write_dataset(out, load_dataset("sample", limit=20))


def test_a_waiting_writer_continues_when_the_other_is_done(tmp_path):
    order, have = [], threading.Event()

    def first() -> None:
        with claimed(tmp_path / "out"):
            have.set()
            told.wait(10)
            order.append("first")

    told = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(first)
        assert have.wait(10)
        with claimed(tmp_path / "out", wait=True, tell=told.set):
            order.append("second")
    assert order == ["first", "second"]
    assert names(tmp_path) == []


def test_a_killed_writer_leaves_no_lock(tmp_path, forked):
    def die() -> None:
        with claimed(tmp_path / "out"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert forked(die) == -signal.SIGKILL
    assert names(tmp_path) == [".out.lock"]
    with claimed(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


COMMANDS = {
    "fit": ["fit", "--data", "sample", "--out", "b.safetensors"],
    "poison": ["poison", "--data", "sample", "--out", "p"],
    "attack": ["attack", "--data", "sample", "--method", "none", "--out", "run"],
    "reproduce": ["reproduce", "demo", "--out", "grid"],
    "convert": ["data", "convert", "sample", "--out", "c.beton"],
    "convert to a folder": ["data", "convert", "sample", "--to", "ulfast", "--out", "c"],
    "export": ["data", "export", "sample", "--layout", "npz", "--out", "x.npz"],
    "ar-search": ["ar-search", "--out", "w.json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_not_write_what_another_one_writes(command, tmp_path, monkeypatch, elsewhere):
    monkeypatch.chdir(tmp_path)
    words = COMMANDS[command]
    elsewhere(tmp_path / words[-1])
    done = CliRunner().invoke(group, [*words, "--quiet"])
    assert isinstance(done.exception, InputError)
    assert str(done.exception).startswith(f"another process is writing {words[-1]}")
    assert names(tmp_path) == [f".{words[-1]}.lock"]


def test_the_functions_claim_too(make_dataset, tmp_path, elsewhere):
    dataset = make_dataset()
    for name in ("run", "grid", "f.beton", "p.npz"):
        elsewhere(tmp_path / name)
    with pytest.raises(InputError, match=r"another process is writing .*run"):
        ulfast.attack(dataset, test=dataset, method="none", epochs=1, device="cpu", out=tmp_path / "run")
    with pytest.raises(InputError, match=r"another process is writing .*grid"):
        ulfast.reproduce("demo", tmp_path / "grid")
    with pytest.raises(InputError, match=r"another process is writing .*f\.beton"):
        write_beton(tmp_path / "f.beton", dataset)
    with pytest.raises(InputError, match=r"another process is writing .*p\.npz"):
        export_dataset(dataset, tmp_path / "p.npz", "npz")


def versions(make_dataset) -> list:
    """A data set and another one, by their manifests."""
    first = make_dataset(30)
    return [
        replace(first, manifest={"method": "old"}),
        replace(first, manifest={"method": "new"}, images=255 - first.images),
    ]


def killed_at(step: int, work) -> None:
    """Runs `work` and kills the process at its `step`th change of a name."""
    left = [step]

    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    os.replace, files.exchange, files.remove = map(counted, (os.replace, files.exchange, files.remove))
    os.unlink = counted(os.unlink)
    work()


def whole(path: Path) -> str:
    """Which version a data set is; images and manifest must agree."""
    dataset = load_dataset(path)
    old = int(dataset.images[0, 0, 0, 0])
    assert dataset.manifest["method"] in ("old", "new")
    assert dataset.classes == ("class0", "class1", "class2")
    return f"{dataset.manifest['method']} {old}"


@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "names"])
def test_a_replaced_folder_is_the_old_or_the_new_wherever_it_is_killed(
    make_dataset, tmp_path, forked, monkeypatch, swaps
):
    if not swaps:
        monkeypatch.setattr(files, "exchange", lambda one, other: False)
    old, new = versions(make_dataset)
    seen, step, code = set(), 0, -signal.SIGKILL
    while code:
        step += 1
        write_dataset(tmp_path / "out", old, overwrite=True)
        expected = whole(tmp_path / "out")
        code = forked(killed_at, step, lambda: write_dataset(tmp_path / "out", new, overwrite=True))
        assert code in (0, -signal.SIGKILL)
        seen.add(whole(tmp_path / "out") == expected)
        write_dataset(tmp_path / "out", old, overwrite=True)
        assert names(tmp_path) == ["out"]
        assert whole(tmp_path / "out") == expected
    assert seen == {True, False}
    assert step > 5


@pytest.mark.parametrize("kind", ["beton", "npz", "pt"])
def test_a_replaced_file_fits_what_is_beside_it_wherever_it_is_killed(make_dataset, tmp_path, forked, kind):
    old, new = versions(make_dataset)
    path = tmp_path / f"x.{kind}"

    def write(dataset) -> None:
        if kind == "beton":
            write_beton(path, dataset, overwrite=True)
        elif kind == "npz":
            export_dataset(dataset, path, "npz", overwrite=True)
        else:
            export_dataset(dataset, path, "perturbation-pt", base=replace(old, manifest={}), overwrite=True)

    step, code = 0, -signal.SIGKILL
    while code:
        step += 1
        write(old)
        kept = names(tmp_path)
        code = forked(killed_at, step, lambda: write(new))
        assert code in (0, -signal.SIGKILL)
        if kind == "beton":
            assert whole(path)
            assert open_beton(path).crc is not None
        else:
            assert made.read_marker(path)["classes"] == ["class0", "class1", "class2"]
        assert not stranger(path)
        write(old)
        assert names(tmp_path) == kept
    assert step > 5


def test_a_first_output_is_complete_or_absent(make_dataset, tmp_path, forked):
    step, code = 0, -signal.SIGKILL
    while code:
        step += 1
        code = forked(killed_at, step, lambda: write_beton(tmp_path / "x.beton", make_dataset(30), resume=True))
        if (tmp_path / "x.beton").exists():
            assert open_beton(tmp_path / "x.beton").about["classes"]
        write_beton(tmp_path / "x.beton", make_dataset(30), resume=True)
        assert names(tmp_path) == ["x.beton", "x.beton.json"]
        (tmp_path / "x.beton").unlink()
        fmt.manifest_path(tmp_path / "x.beton").unlink()


def test_a_folder_is_read_in_one_version(make_dataset, tmp_path, monkeypatch):
    """It is replaced between the opening of its images and that of its labels."""
    old, new = versions(make_dataset)
    write_dataset(tmp_path / "out", old, old)
    load, changes = np.load, iter([new, old, new])

    def replacing(file, *arguments, **options):
        found = load(file, *arguments, **options)
        if Path(file).name == "images.npy" and (other := next(changes, None)):
            write_dataset(tmp_path / "out", other, other, overwrite=True)
        return found

    monkeypatch.setattr(np, "load", replacing)
    got = load_dataset(tmp_path / "out")
    assert got.manifest["method"] == "new"
    assert np.array_equal(got.images, new.images)


def test_links_and_files_are_replaced_and_what_they_lead_to_is_not(make_dataset, tmp_path):
    write_dataset(tmp_path / "real", make_dataset(30))
    (tmp_path / "out").symlink_to("real")
    write_dataset(tmp_path / "out", make_dataset(60), overwrite=True)
    assert not (tmp_path / "out").is_symlink()
    assert (len(load_dataset(tmp_path / "real")), len(load_dataset(tmp_path / "out"))) == (30, 60)
    assert names(tmp_path) == ["out", "real"]
    assert exchange(tmp_path / "real", tmp_path / "out")
    assert (len(load_dataset(tmp_path / "real")), len(load_dataset(tmp_path / "out"))) == (60, 30)


def test_an_overwritten_run_is_the_old_one_or_the_started_new_one(make_dataset, tmp_path, monkeypatch):
    options = {"test": make_dataset(seed=1), "method": "none", "epochs": 1, "device": "cpu", "out": tmp_path / "run"}
    ulfast.attack(make_dataset(), **options)
    (tmp_path / "run" / ".note").write_text("")
    at_exchange = []

    def look(one: Path, other: Path) -> bool:
        at_exchange.append((json.loads((one / "config.json").read_text())["seed"], names(other)))
        return exchange(one, other)

    monkeypatch.setattr(files, "exchange", look)
    ulfast.attack(make_dataset(), **options, overwrite=True, seed=3)
    assert at_exchange[0][0] == 3
    assert "result.json" in at_exchange[0][1]
    assert ".note" not in names(tmp_path / "run")
    assert names(tmp_path) == ["run"]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path, monkeypatch, forked):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(files, "YOUNG", -1)

    def die() -> None:
        (temporary_folder() / "file").write_text("")
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(die) == -signal.SIGKILL
    (tmp_path / "other").mkdir()
    assert len(names(tmp_path)) == 2
    mine = temporary_folder()
    again = temporary_folder()  # and leaves mine
    assert names(tmp_path) == sorted(["other", mine.name, again.name])
    drop(mine)
    drop(again)
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300])
def test_a_name_too_long_is_one_line(make_dataset, tmp_path, name):
    with pytest.raises(InputError, match=r"cannot (write|be a path).*File name too long"):
        write_dataset(tmp_path / name, make_dataset(30))
    with pytest.raises(InputError, match="cannot write"), atomic_folder(tmp_path / "file" / name):
        raise AssertionError("not reached")
