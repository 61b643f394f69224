"""Settings and commands that are damaged or crafted: one line, and nothing else happens."""

from __future__ import annotations

import json
import struct

import pytest

import ulfast
from ulfast import InputError, load_dataset, write_dataset
from ulfast.cli.common import printable
from ulfast.cli.main import run
from ulfast.grids.grid import Grid
from ulfast.runtime.reading import read_yaml

# settings


def test_aliases_without_end_are_refused(tmp_path, one_line):
    laughs = "data: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
    laughs += "".join(f"k{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    (tmp_path / "g.yaml").write_text(laughs + "poisons: [[*a9, *a9]]\n")
    one_line(Grid.load, tmp_path / "g.yaml", match="aliases that make more than 100,000 entries")
    (tmp_path / "g.yaml").write_text("data: &a [*a]\n")
    one_line(Grid.load, tmp_path / "g.yaml", match="holds itself")
    (tmp_path / "g.yaml").write_text("a" * (1 << 21))
    one_line(Grid.load, tmp_path / "g.yaml", match="characters: settings have")
    (tmp_path / "g.yaml").write_text("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n")
    assert read_yaml(tmp_path / "g.yaml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("data: 2001-99-99", "month"),
        ("[" * 5000, "nested too deep"),
        ("data: sample\npoisons: lsp\nattacks: none\nrecipe: [a]", "recipe must be a word"),
        ("data: sample\npoisons: lsp\nattacks: none\npublished: [a]", "published must be a word"),
        ("data: sample\npoisons: {method: lsp, eps: abc}\nattacks: none", "eps must be a number"),
        ("data: sample\npoisons: {method: lsp, eps: [1, 2]}\nattacks: none", "eps must be a number"),
        ("data: sample\npoisons: {method: lsp, rate: abc}\nattacks: none", "rate must be a number"),
        ("data: sample\npoisons: {method: lsp, rate: 2}\nattacks: none", "rate must be a number from 0 to 1"),
        ("data: sample\npoisons: {method: lsp, name: '" + "x" * 300 + "'}\nattacks: none", "cannot name a folder"),
        ('data: sample\npoisons: {method: lsp, name: "a\\0b"}\nattacks: none', "cannot name a folder"),
        ('data: sample\npoisons: {method: lsp, name: "a\\e[31m"}\nattacks: none', "cannot name a folder"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_in_the_dry_run(tmp_path, text, match, one_line):
    (tmp_path / "g.yaml").write_text(text)
    assert len(one_line(Grid.load, tmp_path / "g.yaml", match=match)) < 400


def test_settings_that_are_all_brackets_are_refused_before_they_are_parsed(tmp_path, one_line):
    """PyYAML would take minutes for this."""
    (tmp_path / "g.yaml").write_text(("- " + "[" * 150 + "]" * 150 + "\n") * 3000)
    one_line(Grid.load, tmp_path / "g.yaml", match="characters: settings have")


@pytest.mark.parametrize(
    "text",
    [
        "data: sample\npoisons: {method: lsp, nan: 1}\nattacks: none",
        "data: sample\npoisons: lsp\nattacks: {method: orthogonal, fit-steps: x}",
        "data: sample\npoisons: lsp\nattacks: nothing",
        "data: sample\npoisons: lsp\nattacks: none\nmodels: x",
    ],
)
def test_a_grid_that_is_refused_is_named(tmp_path, text, one_line):
    (tmp_path / "g.yaml").write_text(text)
    one_line(Grid.load, tmp_path / "g.yaml", match=r"g\.yaml: ")


# the command line


@pytest.fixture
def small(tmp_path, make_dataset):
    write_dataset(tmp_path / "d", make_dataset(60, 16), make_dataset(30, 16, split="test", seed=1))
    return tmp_path / "d"


def damaged_labels(raw: bytes) -> dict[str, bytes]:
    head = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"
    return {
        "empty": b"",
        "cut": raw[:8] + b"\x20\x00{'descr': '<i8', 'fortran_order'",
        "huge": b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.ljust(117) + b"\n",
    }


@pytest.mark.parametrize("damage", ["empty", "cut", "huge"])
def test_a_damaged_file_is_no_interrupt_and_no_fault_of_ours(small, capsys, damage):
    file = small / "train" / "labels.npy"
    file.write_bytes(damaged_labels(file.read_bytes())[damage])
    assert run(["data", "info", str(small)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cannot be read" in error
    with pytest.raises(InputError) as caught:  # as --debug shows it
        load_dataset(small)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("images"),
        lambda about: about.update(classes=None),
        lambda about: about.update(classes=[1, 2, 3]),
        lambda about: about.update(image_shape="x"),
        lambda about: about.update(manifest=[]),
        lambda about: about.update(images_crc32=[]),
        lambda about: about.update(images_crc32="x", block=0),
    ],
)
def test_a_manifest_that_says_something_else_is_one_line(small, change, one_line):
    file = small / "train" / "manifest.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))
    one_line(load_dataset, small)


@pytest.mark.parametrize(
    "words",
    [
        ["poison", "--data", "sample", "--out", "afile/p"],
        ["poison", "--data", "sample", "--out", "x" * 300],
        ["data", "info", "x" * 5000],
        ["poison", "--data", "sample", "--out", "p", "--seed", "-1"],
        ["poison", "--data", "sample", "--out", "p", "--seed", str(2**63)],
        ["poison", "--data", "sample", "--method", "ops", "--set", "sparsity=abc", "--out", "p"],
        ["poison", "--data", "sample", "--method", "ops", "--set", "sparsity=1.5", "--out", "p"],
        ["poison", "--data", "sample", "--method", "ops", "--set", "sparsity=[1]", "--out", "p"],
    ],
    ids=lambda words: " ".join(words[-3:])[:40],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, words, one_line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("x")
    assert run(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert len(error) < 600


NASTY = ("\x1b]0;owned\x07\x1b[31mred", "[/red]", "[bold]x\x9b2J")


def test_no_escape_sequence_reaches_the_terminal(tmp_path, make_dataset, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ulfast.data.dataset.replace(make_dataset(60, 16), classes=NASTY, name="\x1b[5mset")
    write_dataset(tmp_path / "clean", data, data)
    write_dataset(tmp_path / "d", ulfast.poison(data, "lsp"), data)
    for words in (
        ["data", "info", "d", "--quick"],
        ["data", "info", "d", "--quick", "--json"],
        ["show", "d", "--clean", "clean", "--out", "s.png"],
        ["data", "export", "d", "--layout", "imagefolder", "--out", "folders"],
        ["fit", "--data", "d", "--steps", "3", "--device", "cpu", "--out", "b.safetensors"],
    ):
        code = run(words)
        out, error = capsys.readouterr()
        said = out + error
        assert code == 0, said
        assert not [c for c in said if not c.isprintable() and c not in "\n\t"], repr(said)
        assert "[/red]" in said or words[0] != "show"


def test_spaces_of_all_widths_reach_the_terminal_as_they_are():
    """Between a number and its percent sign, for example; what controls a terminal is shown, not sent."""
    assert printable("40.4\u00a0% instead of\u202f46.4\u00a0%") == "40.4\u00a0% instead of\u202f46.4\u00a0%"
    assert printable("a\x1b[2Jb\u2028c\u200e") == "a\\x1b[2Jb\\u2028c\\u200e"
