from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ulfast.cli import common, completion
from ulfast.cli.ls import KINDS, _entries
from ulfast.cli.main import main
from ulfast.data import load_dataset
from ulfast.data.export import EXPORTS
from ulfast.data.readers.published import LAYOUTS
from ulfast.grids.grid import shipped_grids

ROOT = Path(__file__).resolve().parents[2]


def test_help_and_import_are_light():
    code = "import sys, ulfast.cli, ulfast; assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    done = subprocess.run([sys.executable, "-m", "ulfast", "--help"], capture_output=True, text=True, check=True)
    for verb in ("poison", "fit", "attack", "data", "ls", "doctor"):
        assert verb in done.stdout


def test_without_a_verb_it_prints_help_as_help(ulfast):
    for command in ([], ["data"]):
        code, out, err = ulfast(*command)
        assert (code, err) == (0, "")
        assert out.splitlines()[0].startswith("Usage: ulfast ")
        assert len(out.splitlines()) > 8


@pytest.mark.parametrize("command", ["ls --long", "ls --json", "--help", "poison --help"])
def test_a_closed_pipe_is_not_an_error(command):
    for closed in ("head -1", "true"):
        line = f"set -o pipefail; {sys.executable} -m ulfast {command} | {closed}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (0, "")


def test_no_color_is_respected(ulfast, monkeypatch):
    import click

    asked = []
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda stream=None, color=None: asked.append(color) or True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    ulfast("ls"), ulfast("nothing")
    assert set(asked) == {None}
    asked.clear()
    monkeypatch.setenv("NO_COLOR", "1")
    ulfast("ls"), ulfast("nothing")
    assert set(asked) == {False}


def completed(line: str) -> list[str]:
    """The completions that bash gets for a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_ULFAST_COMPLETE": "bash_complete"}
    program = (
        "import sys; sys.argv = ['ulfast']; from ulfast.cli import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **words}
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_values_are_completed():
    assert completed("ulfast attack --method cut") == ["plain,cutout", "plain,cutmix"]
    assert completed("ulfast attack --method orthogonal+cutm") == ["plain,orthogonal+cutmix"]
    assert completed("ulfast poison -m one") == []
    assert completed("ulfast poison --data ci") == ["plain,cifar10", "plain,cifar100"]
    assert completed("ulfast poison --data ./p") == ["file,./p"]
    assert completed("ulfast reproduce dem") == ["plain,demo"]
    assert completed("ulfast attack --model resnet18-") == ["plain,resnet18-16"]


def test_completion_knows_what_the_registries_hold():
    listed = {kind: _entries(kind) for kind in KINDS}
    for kind, entries in listed.items():
        patterns = [name for name in entries if name != name.lower() and kind == "models"]
        assert list(completion.NAMES[kind]) == [name for name in entries if name not in patterns]
    assert set(completion.names("grids")) == set(shipped_grids())
    assert set(completion.NAMES["layouts"]) == set(EXPORTS)
    assert set(completion.NAMES["imports"]) == set(LAYOUTS)


def test_time_left_is_shown_with_its_basis(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(common.time, "monotonic", lambda: now[0])
    bars = common.Bars(quiet=False)
    bars("clean", 4, 10)  # resumed: earlier work does not count towards the pace
    now[0] += 1
    bars("clean", 5, 10)
    assert capsys.readouterr().err == ""
    now[0] += 29
    bars("clean", 6, 10, accuracy=0.5)
    assert capsys.readouterr().err == "train on clean: 60 % accuracy 50.0 %, 1:00 left at the pace of the past 0:30\n"
    now[0] += 60
    bars("clean", 10, 10)
    assert capsys.readouterr().err == "train on clean: 100 %\n"
    assert [common._clock(s) for s in (0.4, 75, 3675)] == ["0:00", "1:15", "1:01:15"]


def test_poison_fit_attack(ulfast, small):
    code, out, err = ulfast("poison", "--data", small, "--out", "p", "--seed", 3)
    assert (code, Path("p/poison.png").exists()) == (0, True), err
    assert "60 training images poisoned with lsp, 30 clean test images" in out
    assert load_dataset("p").manifest["seed"] == 3
    assert load_dataset("p", split="test").checksum() == load_dataset(small, split="test").checksum()
    code, out, _ = ulfast("fit", "--data", "p", "--out", "b.safetensors", "--steps", 50, "--json")
    about = json.loads(out)
    assert (code, about["rank"], Path("b.png").exists()) == (0, 2, True)
    code, out, err = ulfast("attack", "--data", "p", "--epochs", 1, "--compare", "--basis", "b.safetensors")
    assert code == 0, err
    assert "poisoned images, orthogonal" in out
    assert "results: runs/p-orthogonal/result.json" in out
    assert Path("runs/p-orthogonal/attack.png").exists()
    code, out, _ = ulfast("attack", "--data", "p", "--epochs", 1, "--method", "none", "--quiet", "--json")
    assert json.loads(out)["out"] == "runs/p-none"


def test_diagnose(ulfast):
    code, out, err = ulfast("poison", "--data", "sample", "--limit", 600, "--method", "ops", "--out", "p")
    assert code == 0, err
    code, out, err = ulfast("diagnose", "p", "--out", "d.png")
    assert code == 0, err
    assert "poisoned" in out
    assert "ulfast attack --data p --method orthogonal\n" in out
    assert Path("d.png").exists()
    code, out, _ = ulfast("diagnose", "p", "--json")
    found = json.loads(out)
    assert (found["verdict"], found["suggested_attack"], len(found["evidence"])) == ("poisoned", "orthogonal", 7)


def test_without_data_the_sample_is_poisoned(ulfast):
    code, out, err = ulfast("attack", "--limit", 200, "--epochs", 1, "--fit-steps", 20, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["method"], result["poison"], set(result["baselines"])) == (
        "orthogonal",
        "lsp",
        {"clean", "poisoned"},
    )
    assert result["config"]["data"]["images"] == 200


def test_json_is_one_object_and_nothing_else(ulfast, small):
    for command in (["ls"], ["doctor"], ["poison", "--data", small, "--out", "p"], ["data", "get", "sample"]):
        code, out, err = ulfast(*command, "--json")
        assert (code, err) == (0, "")
        assert isinstance(json.loads(out), dict)


def test_ls_lists_everything(ulfast):
    code, out, _ = ulfast("ls", "--long")
    assert code == 0
    for word in ("lsp", "orthogonal", "resnet18-16", "paper-plain", "cifar10", "imagefolder", "KDD 2022", "fit_steps"):
        assert word in out


def test_doctor_is_clean(ulfast):
    code, out, _ = ulfast("doctor")
    assert code == 0
    assert "FAIL" not in out
    assert "operators agree with their twins" in out


def test_doctor_finds_a_wrong_kernel(ulfast, monkeypatch):
    from ulfast.ops import reference

    monkeypatch.setattr(reference, "project", lambda x, basis: x / 255 + 9)
    code, out, err = ulfast("doctor")
    assert code == 1
    assert "wrong: project (off by 9" in out
    assert "broken: level" in err


def test_flags_override_the_config_file(ulfast, small):
    Path("c.yaml").write_text("method: regions-4\nseed: 7\nrate: 0.5\n")
    code, out, _ = ulfast("poison", "--config", "c.yaml", "--data", small, "--seed", 8, "--dry-run", "--json")
    about = json.loads(out)
    assert (code, about["method"], about["seed"], about["rate"]) == (0, "regions-4", 8, 0.5)
    Path("c.yaml").write_text("methd: lsp\n")
    code, _, err = ulfast("poison", "--config", "c.yaml", "--data", small, "--out", "p")
    assert code == 2
    assert "has no option 'methd' (did you mean 'method'?)" in err
    for text, word in (("a: [", "cannot be read as YAML"), ("- a", "option: value"), ("method: 3\nrate: x", "rate")):
        Path("c.yaml").write_text(text)
        code, _, err = ulfast("poison", "--config", "c.yaml", "--data", small, "--out", "p")
        assert (code, word in err) == (2, True), err


def test_dry_run_writes_nothing(ulfast, small):
    for command in (["poison", "--out", "p"], ["attack", "--model", "resnet18-16"]):
        code, out, _ = ulfast(*command, "--data", small, "--dry-run")
        assert code == 0
        assert out.strip()
    assert [p.name for p in Path().iterdir()] == ["small"]


def bad_image(folder: Path) -> None:
    load = load_dataset("sample", limit=10)
    from PIL import Image

    for split in ("train", "test"):
        for c in range(2):
            (folder / split / f"c{c}").mkdir(parents=True)
            Image.fromarray(load.images[c]).save(folder / split / f"c{c}" / "a.png")
    (folder / "train" / "c1" / "b.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["poison", "--data", "nowhere", "--out", "p"], "no file, folder or data set"),
        (["poison", "--data", "empty", "--out", "p"], "is empty"),
        (["poison", "--data", "images", "--out", "p"], "b.png cannot be read"),
        (["poison", "--data", "small", "--out", "small"], "is what the command reads"),
        (["poison", "--data", "small", "--out", "p", "--method", "lspp"], "did you mean 'lsp'"),
        (["poison", "--data", "small", "--out", "p", "--set", "x=1"], "it takes eps, patch"),
        (["poison", "--data", "small", "--out", "p", "--set", "x"], "KEY=VALUE"),
        (["poison", "--data", "small", "--out", "p", "--rate", "2"], "between 0 and 1"),
        (["poison", "--data", "nan.npz", "--out", "p"], "NaN"),
        (["poison", "--data", "small"], "--out"),
        (["poison", "--out", "p"], "--data"),
        (["attack", "--data", "nowhere"], "no file, folder or data set"),
        (["attack", "--data", "small", "--method", "ortogonal"], "did you mean 'orthogonal'"),
        (["attack", "--data", "small", "--model", "alexnet"], "unknown model"),
        (["attack", "--data", "small", "--recipe", "slow"], "unknown recipe"),
        (["attack", "--data", "small", "--device", "cuda:9"], "CUDA"),
        (["attack", "--data", "small", "--basis", "nowhere"], "no basis file"),
        (["attack", "--data", "small", "--resume"], "--out"),
        (["attack", "--data", "small", "--resume", "--out", "none"], "no run"),
        (["attack", "--data", "small", "--out", "images", "--overwrite"], "no manifest of ulfast"),
        (["attack", "--data", "small", "--limit", "2"], "less than one image"),
        (["fit", "--data", "small", "--out", "small"], "is a folder"),
        (["fit", "--data", "small"], "--out"),
        (["diagnose"], "Give a path"),
        (["diagnose", "small", "--out", "a.txt"], "must end in .png"),
        (["data", "get", "mnist"], "known are"),
        (["attak"], "did you mean 'attack'"),
        (["attack", "--epochs", "0"], "epochs"),
        (["attack", "--no-such-option"], "No such option"),
    ],
)
def test_wrong_input_is_one_line_code_2_and_nothing_written(ulfast, small, arguments, word):
    bad_image(Path("images"))
    Path("empty").mkdir()
    np.savez("nan.npz", x=np.full((4, 8, 8, 3), np.nan), y=np.arange(4) % 2)
    before = sorted(str(p) for p in Path().rglob("*"))
    code, out, err = ulfast(*arguments)
    assert (code, out) == (2, "")
    assert word in err
    lines = [line for line in err.strip().splitlines() if not line.startswith(("read:", "linear fit:"))]
    assert len(lines) == 1
    assert "Traceback" not in err
    assert sorted(str(p) for p in Path().rglob("*")) == before


def test_our_own_fault_is_code_1_and_debug_shows_it(ulfast, small, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a kernel\nfell over")

    monkeypatch.setattr("ulfast.poisons.Poisoning", broken)
    code, _, err = ulfast("poison", "--data", small, "--out", "p")
    assert code == 1
    assert err.strip().endswith(
        "internal error, RuntimeError: a kernel fell over; run again with --debug for the traceback"
    )
    with pytest.raises(RuntimeError):
        main(["poison", "--data", str(small), "--out", "p", "--debug"])


def test_ctrl_c_is_130_and_resumable(ulfast, small, monkeypatch):
    import ulfast.training.loop as loop

    original, calls = loop.evaluate, []

    def stop_in_the_second_epoch(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "evaluate", stop_in_the_second_epoch)
    command = ["attack", "--data", small, "--method", "none", "--epochs", 2, "--out", "run"]
    code, _, err = ulfast(*command)
    assert code == 130
    assert "--resume" in err
    monkeypatch.setattr(loop, "evaluate", original)
    code, _, err = ulfast(*command, "--resume")
    assert code == 0, err
    assert len(json.loads(Path("run/result.json").read_text())["history"]) == 2
