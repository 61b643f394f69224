from __future__ import annotations

import pytest

from ulfast.cli.main import main
from ulfast.data import write_dataset


@pytest.fixture
def ulfast(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return run


@pytest.fixture
def small(tmp_path, make_dataset):
    write_dataset(tmp_path / "small", make_dataset(60), make_dataset(30, seed=1, split="test"))
    return tmp_path / "small"
