"""Several machines."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "two_machines.sh"


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("bash", "ip", "unshare"))), reason="needs iproute2 and util-linux")
def test_two_machines_give_what_one_gives_and_a_cut_cable_ends_them():
    """Two network namespaces; poison, fit, training and a cable that is pulled."""
    done = subprocess.run([str(SCRIPT), sys.executable], capture_output=True, text=True, timeout=900)
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "poison: the same bytes" in done.stdout
    assert "a cut cable: ended" in done.stdout
