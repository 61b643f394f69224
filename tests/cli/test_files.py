"""What the command line writes, what it must not touch, and how its values are read."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulfast.data import load_dataset
from ulfast.data.export import export_dataset


def photos(root: Path, n: int = 3) -> Path:
    for split in ("train", "test"):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                noise = np.random.default_rng(10 * c + i).integers(0, 100, (12, 10, 3))
                Image.fromarray((noise + 100 * c).astype(np.uint8)).save(root / split / name / f"{i}.png")
    (root / "notes.txt").write_text("mine")
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ["poison", "--data", "photos", "--out", "photos"],
        ["poison", "--data", "photos", "--out", "photos/train"],
        ["poison", "--data", "photos/train", "--out", "photos"],
        ["poison", "--data", "small", "--out", "photos"],
        ["poison", "--data", "small", "--out", "small"],
        ["poison", "--data", "small", "--out", "link"],
        ["poison", "--data", "small", "--out", "mine.txt"],
        ["poison", "--data", "small", "--out", "."],
        ["poison", "--data", "photos", "--test-data", "small", "--out", "small"],
        ["data", "export", "small", "--layout", "imagefolder", "--out", "photos"],
        ["data", "export", "photos", "--layout", "png-index", "--out", "photos"],
        ["data", "export", "small", "--layout", "npz", "--out", "mine.npz"],
        ["data", "export", "small", "--layout", "beton", "--out", "mine.beton"],
        ["data", "convert", "small", "--to", "ulfast", "--out", "photos"],
        ["data", "convert", "small", "--out", "mine.beton"],
        ["data", "import", "numbered", "--base", "small", "--out", "photos"],
        ["data", "import", "numbered", "--base", "small", "--out", "numbered"],
        ["attack", "--data", "small", "--out", "photos", "--method", "none"],
        ["attack", "--data", "small", "--out", "small", "--method", "none"],
        ["fit", "--data", "small", "--out", "mine.safetensors"],
        ["fit", "--data", "small", "--out", "beside.safetensors"],
    ],
)
def test_overwrite_replaces_only_what_ulfast_made_and_no_source(ulfast, small, tmp_path, command):
    photos(tmp_path / "photos")
    (tmp_path / "numbered").mkdir()
    for i, image in enumerate(load_dataset(small).images):
        Image.fromarray(image).save(tmp_path / f"numbered/{i}.png")
    os.symlink("small", tmp_path / "link")
    for name in ("mine.txt", "mine.npz", "mine.beton", "mine.safetensors", "beside.png"):
        (tmp_path / name).write_bytes(b"my own work")
    before = files(tmp_path)
    code, out, err = ulfast(*command, "--overwrite")
    assert (code, out) == (2, ""), (out, err)
    assert "choose another --out" in err or "give a folder of its own" in err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["poison", "--data", "small"], "o"),
        (["data", "export", "small", "--layout", "imagefolder"], "o"),
        (["data", "export", "small", "--layout", "png-index"], "o"),
        (["data", "export", "small", "--layout", "npz"], "o.npz"),
        (["data", "export", "small", "--layout", "beton"], "o.beton"),
        (["data", "export", "small", "--layout", "perturbation-pt", "--base", "small"], "o.pt"),
        (["data", "convert", "small", "--to", "ulfast"], "o"),
        (["fit", "--data", "small", "--steps", 2], "o.safetensors"),
        (["attack", "--data", "small", "--method", "none", "--epochs", 1], "o"),
        (["ar-search", "--classes", 2], "o.json"),
    ],
)
def test_what_ulfast_made_is_replaced(ulfast, small, command, out):
    assert ulfast(*command, "--out", out)[0] == 0
    code, _, err = ulfast(*command, "--out", out)
    assert (code, "exists already" in err) == (2, True), err
    code, _, err = ulfast(*command, "--out", out, "--overwrite")
    assert code == 0, err


def test_what_was_added_or_changed_since_is_kept(ulfast, small, tmp_path):
    assert ulfast("poison", "--data", small, "--out", "p")[0] == 0
    Path("p/notes.txt").write_text("mine")
    code, _, err = ulfast("poison", "--data", small, "--out", "p", "--overwrite")
    assert (code, "holds notes.txt" in err) == (2, True)
    Path("p/notes.txt").rename("p/train/notes.txt")
    code, _, err = ulfast("poison", "--data", small, "--out", "p", "--overwrite")
    assert (code, "holds train/notes.txt" in err) == (2, True)
    assert ulfast("data", "export", small, "--layout", "imagefolder", "--out", "f")[0] == 0
    Path("f/train/class0/mine.png").write_bytes(b"mine")
    code, _, err = ulfast("data", "export", small, "--layout", "imagefolder", "--out", "f", "--overwrite")
    assert (code, "91 files and ulfast wrote 90" in err) == (2, True)
    assert ulfast("data", "export", small, "--layout", "npz", "--out", "x.npz")[0] == 0
    np.savez("x.npz", mine=1)
    code, _, err = ulfast("data", "export", small, "--layout", "npz", "--out", "x.npz", "--overwrite")
    assert (code, "was changed" in err) == (2, True)


def test_a_picture_replaces_only_a_picture_of_ulfast(ulfast, small):
    ulfast("poison", "--data", small, "--out", "p")
    for name in ("s.png", "s.svg", "s.pdf", "s.PNG"):
        assert ulfast("show", "p", "--clean", small, "--out", name)[0] == 0
        assert ulfast("show", "p", "--clean", small, "--out", name)[0] == 0, name
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("cat.png")
    kept = Path("cat.png").read_bytes()
    Path("page.html").write_text("<p>mine</p>")
    for command in (
        ["show", "p", "--clean", small, "--out", "cat.png"],
        ["attack", "--data", small, "--epochs", 1, "--out", "r", "--report", "page.html"],
    ):
        code, _, err = ulfast(*command)
        assert (code, "not a picture or page of ulfast" in err) == (2, True)
    assert Path("cat.png").read_bytes() == kept
    assert not Path("r").exists()


def test_tilde_and_variables_are_expanded(ulfast, small, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "there"))
    (tmp_path / "home").mkdir()
    small.rename(tmp_path / "home/small")
    code, _, err = ulfast("poison", "--data", "~/small", "--out", "$PLACE/p")
    assert code == 0, err
    assert (tmp_path / "there/p/train").is_dir()
    code, _, err = ulfast("data", "export", "${PLACE}/p", "--layout", "npz", "--out", "~/x.npz")
    assert code == 0, err
    assert (tmp_path / "home/x.npz").is_file()
    assert not Path("~").exists()
    code, _, err = ulfast("poison", "--data", "~/small", "--out", "$NOWHERE_AT_ALL/p")
    assert (code, "not set" in err) == (2, True)
    assert len(load_dataset("~/small")) == 60


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["fit", "--data", "small", "--out", "x.png"], "must end in .safetensors"),
        (["fit", "--data", "small", "--out", "."], "is a folder"),
        (["ar-search", "--classes", "2", "--out", "x.png"], "must end in .json"),
        (["attack", "--data", "small", "--out", "o", "--method", "adversarial", "--set", "at_eps=8"], "give 8/255"),
        (["poison", "--data", "small", "--out", ".", "--overwrite"], "current folder"),
        (["poison", "--data", "small", "--out", ".."], "current folder or above"),
        (["attack", "--data", "small", "--out", "."], "current folder"),
        (["show", "small", "--clean", "small", "--out", "."], "must end in .png"),
        (["poison", "--data", "small", "--out", "o", "--set", "eps=8"], "say --eps 8"),
        (["poison", "--data", "small", "--out", "o", "--set", "seed=1"], "say --seed 1"),
        (["poison", "--data", "small", "--out", "o", "--set", "progress=1"], "not for --set"),
        (["poison", "--data", "small", "--out", "o", "--set", "dataset=1"], "not for --set"),
        (["attack", "--data", "small", "--out", "o", "--set", "model=cnn"], "say --model cnn"),
        (["attack", "--data", "small", "--out", "o", "--set", "fit_steps=3"], "say --fit-steps 3"),
        (["poison", "--data", "small", "--out", "o", "--set", "patch=[1"], "not a number, a word or"),
        (["poison", "--data", "small", "--out", "o", "--set", "patch={a: 1}"], "not a number, a word or"),
        (["poison", "--data", "small", "--out", "o", "--set", "patch=four"], "must be a whole number"),
        (["poison", "--data", "small", "--out", "o", "--set", "patch=4", "--set", "patch=8"], "twice"),
        (["poison", "--data", "small", "--out", "o", "--eps", "nan"], "is not a finite number"),
        (["poison", "--data", "small", "--out", "o", "--eps", "inf"], "is not a finite number"),
        (["poison", "--data", "small", "--out", "o", "--eps", "8/0"], "is not a finite number"),
        (["poison", "--data", "small", "--out", "o", "--method", "em", "--eps", "8"], "give 8/255"),
        (["poison", "--data", "small", "--out", "o", "--method", "regions-4", "--eps", "8"], "give 8/255"),
        (["poison", "--data", "small", "--out", "o", "--method", "ar", "--eps", "8", "--set", "norm=linf"], "8/255"),
        (
            ["poison", "--data", "small", "--out", "o", "--method", "file", "--set", "path=x", "--set", "scale=.nan"],
            "finite",
        ),
    ],
)
def test_values_and_places_that_are_wrong_are_one_line(ulfast, small, tmp_path, command, message):
    before = files(tmp_path)
    code, out, err = ulfast(*command)
    assert (code, out) == (2, ""), err
    assert message in err
    assert len([line for line in err.splitlines() if not line.startswith("read:")]) == 1
    assert files(tmp_path) == before


def test_a_norm_is_also_given_in_levels(ulfast, small):
    code, _, err = ulfast("poison", "--data", small, "--method", "lsp", "--eps", 8, "--out", "a")
    assert (code, "98.1 levels of 255 per value" in err) == (0, True), err


def test_eps_as_a_fraction(ulfast, small):
    for eps, out in (("8/255", "a"), (8 / 255, "b")):
        assert ulfast("poison", "--data", small, "--method", "regions-4", "--eps", eps, "--out", out)[0] == 0
    a, b = (load_dataset(name) for name in "ab")
    assert np.array_equal(a.images, b.images)
    assert np.abs(a.images.astype(int) - load_dataset(small).images).max() == 8


def test_info_says_what_was_left_out(ulfast, tmp_path):
    photos(tmp_path / "d")
    (tmp_path / "d/train/cat/.DS_Store").write_bytes(b"x")
    (tmp_path / "d/train/cat/list.csv").write_text("x")
    code, out, err = ulfast("data", "info", "d", "--quick")
    assert code == 0, err
    assert "found on the way: 1 .txt files, 1 hidden or left by a tool, 1 .csv files" in out
    code, out, _ = ulfast("data", "info", "d", "--quick", "--json")
    assert json.loads(out)["splits"]["train"]["notes"] == {
        ".txt files": 1,
        "hidden or left by a tool": 1,
        ".csv files": 1,
    }


def test_damaged_images_are_left_out_on_demand(ulfast, tmp_path):
    photos(tmp_path / "d")
    (tmp_path / "d/train/cat/1.png").write_bytes((tmp_path / "d/train/cat/1.png").read_bytes()[:60])
    for command in (
        ["poison", "--data", "d", "--out", "p"],
        ["data", "convert", "d", "--to", "ulfast", "--out", "p"],
        ["data", "export", "d", "--layout", "imagefolder", "--out", "p"],
    ):
        code, _, err = ulfast(*command)
        assert (code, "1.png cannot be read" in err) == (2, True)
        code, _, err = ulfast(*command, "--skip-damaged")
        assert (code, "1 damaged images, left out" in err) == (0, True), err
        assert len(load_dataset("p")) == 5
        code, _, err = ulfast(*command, "--skip-damaged", "--overwrite")
        assert code == 0, err
        shutil.rmtree("p")


def test_unreadable_test_images_are_not_skipped(ulfast, tmp_path):
    photos(tmp_path / "d")
    (tmp_path / "d/test/cat/1.png").write_bytes(b"no picture")
    for command in (["poison", "--data", "d", "--out", "p"], ["data", "convert", "d", "--to", "ulfast", "--out", "p"]):
        code, _, err = ulfast(*command)
        assert (code, "1.png cannot be read" in err) == (2, True)
    code, out, _ = ulfast("data", "info", "d", "--quick")
    assert code == 0
    assert "the test images do not fit" in out


def test_class_names_are_not_markup(ulfast, tmp_path, make_dataset):
    names = ("a [/b] c", "[bold]x", "$\\frac{", "\x1b]0;owned\x07red", "\u732b")
    data = replace(make_dataset(30, classes=5), classes=names)
    np.savez(tmp_path / "d.npz", x_train=data.images, y_train=data.labels, classes=np.array(data.classes))
    assert ulfast("poison", "--data", "d.npz", "--out", "p")[0] == 0
    code, out, err = ulfast("show", "p", "--clean", "d.npz", "--out", "s.png")
    assert (code, "Warning" in err) == (0, False), err
    for name in (*names[:3], names[4]):
        assert name in out
    code, info, err = ulfast("data", "info", "p", "--quick")
    assert code == 0, err
    assert "\\x1b]0;owned\\x07red" in info
    assert "\x1b" not in info + out


def test_the_sample_is_the_embedded_one(ulfast, tmp_path):
    photos(tmp_path / "sample")
    code, out, err = ulfast("attack", "--method", "none", "--limit", 40, "--epochs", 1, "--out", "r")
    assert code == 0, err
    assert "40 images of sample" in out


def test_variables_that_a_launcher_left_behind(ulfast, small, monkeypatch):
    for variables in ({"RANK": "1"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "two"}):
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.setenv(name, value)
            patched.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
            code, out, err = ulfast("data", "info", small, "--quick")
            assert (code, "60 images" in out) == (0, True), (variables, err)


def test_a_set_poisoned_again_is_not_resumed(ulfast, small, make_dataset):
    command = ["attack", "--data", "p", "--method", "none", "--epochs", 1, "--out", "r"]
    ulfast("poison", "--data", small, "--out", "p")
    assert ulfast(*command)[0] == 0
    assert ulfast(*command, "--resume")[0] == 0
    ulfast("poison", "--data", small, "--out", "p", "--seed", 5, "--overwrite")
    code, _, err = ulfast(*command, "--resume")
    assert (code, "is a run on other data" in err) == (2, True)


def test_an_export_replaces_only_itself(tmp_path, make_dataset):
    export_dataset(make_dataset(), tmp_path / "e", "imagefolder")
    export_dataset(make_dataset(30), tmp_path / "e", "imagefolder", overwrite=True)
    assert len(load_dataset(tmp_path / "e")) == 30


def test_too_few_images_are_reported(ulfast, tmp_path, make_dataset):
    data = make_dataset(3)
    np.savez(tmp_path / "d.npz", x=data.images, y=data.labels)
    code, out, err = ulfast("data", "info", "d.npz")
    assert code == 0, err
    assert "3 images" in out
    assert "too few images" in out
    for command in (["diagnose", "d.npz"], ["attack", "--data", "d.npz", "--test-data", "d.npz", "--method", "auto"]):
        code, _, err = ulfast(*command)
        assert (code, "too few" in err) == (2, True)
    same = np.zeros((20, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "e.npz", x=same, y=np.arange(20) % 2)
    code, out, err = ulfast("data", "info", "e.npz")
    assert code == 0, err
