from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ulfast.data import write_dataset

SCRIPT = Path(__file__).with_name("killing.py")


STORM = [("fit", 4), ("train", 4), ("poison", 5), ("beton", 5), ("ulfast", 3), ("shards", 5)]


@pytest.mark.parametrize(
    ("step", "kills"), [("poison", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in STORM)]
)
def test_a_command_killed_at_random_moments_ends_with_the_same_bytes(make_dataset, tmp_path, step, kills):
    """27 kills in all. After each, the command is given again as its message says."""
    write_dataset(tmp_path / "data", make_dataset(150), make_dataset(30, split="test", seed=1))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), step, "0", str(kills), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(rf"{step}: {kills} kills", done.stdout)
