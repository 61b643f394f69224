from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("campaign.py")


def campaign(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        timeout=280,
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", ["readers", "kills", "disks", "writers", "downloads"])
def test_a_short_campaign_finds_nothing(part):
    done = campaign("--part", part, "--minutes", "0.15", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(part)).split()
    assert int(row[1]) > 3
    assert row[3] == "0"


@pytest.mark.slow
def test_a_campaign_detects_planted_faults(tmp_path):
    """A reader that believes all, and a writer that writes where others read."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(SCRIPT.parent)!r})\nimport campaign\n"
        "import ulfast.data.download as download\nfrom ulfast.runtime import files\n"
        "campaign.load_dataset = lambda *a, **k: 1 / 0\n"
        "download._verified = lambda *a: True\n"
        "sys.exit(campaign.main(sys.argv[1:]))\n"
    )
    for part in ("readers", "downloads"):
        words = [sys.executable, str(broken), "--part", part, "--minutes", "0.15", "--seed", "0"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=200)
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"finding: --seed 0 --part {part} --try " in done.stdout
