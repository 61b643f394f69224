from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ulfast
from ulfast.data.readers import READERS
from ulfast.data.readers.published import LAYOUTS, detect_layout

FOLDER = Path(__file__).parent
# What a search has begun and resumes: tests/scale/test_searches.py kills it.
RESUMED = {"poisons/surrogate.py"}
# Of the network: part `downloads`.
DOWNLOADED = {"data/catalog.py", "data/download.py"}


def run(words: list[str], timeout: float = 280) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    env["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=timeout)


def campaign(*words: str) -> subprocess.CompletedProcess:
    return run(["-m", "campaign", *words])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "tries"), [("readers", 1000), ("kills", 12), ("disks", 8), ("writers", 5), ("downloads", 20)]
)
def test_a_short_campaign_finds_nothing(part, tries):
    done = campaign("--part", part, "--tries", str(tries), "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith(part)).split()
    assert row[1].replace(",", "") == str(tries)
    assert row[3] == "0"


BROKEN = """
import sys
import campaign.run
import ulfast.data.download as download
{change}
sys.exit(campaign.run.main(sys.argv[1:]))
"""
CHANGES = {
    "readers": "import ulfast.data.readers.folder as folder; folder._check_images = lambda *a: None",
    "downloads": "download._verified = lambda *a: True",
}


@pytest.mark.slow
@pytest.mark.parametrize("part", ["readers", "downloads"])
def test_a_campaign_notices_what_it_is_for(tmp_path, part):
    """A reader that believes all, and a download that does."""
    (tmp_path / "broken.py").write_text(BROKEN.format(change=CHANGES[part]))
    done = run([str(tmp_path / "broken.py"), "--part", part, "--minutes", "0.15", "--seed", "0"], 200)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"finding: --seed 0 --part {part} --try " in done.stdout


BATCHES = """
import os, signal, sys, time
from campaign.forks import forked, in_one_fork
from ulfast import InputError

kept = []

def work(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        time.sleep(60)
    if number == 6:
        return str(len(bytearray(8 << 30)))
    if number == 7:
        raise InputError("one line")
    if number == 8:
        raise InputError("two" + chr(10) + "lines")
    if number == 9:
        kept.append(bytearray(2 << 30))
    return f"well {number}"

print(list(in_one_fork(work, range(3, 5), seconds=9)))
print(list(in_one_fork(work, range(1, 6), seconds=9)))
print(list(in_one_fork(work, [1, 5, 2], seconds=1)))
print([said.split(":")[0] for _, said in in_one_fork(work, [6, 7, 8, 1])])
print(list(in_one_fork(work, [9, 1, 2])))
print(forked(lambda: work(3)), forked(lambda: work(5), seconds=1), forked(lambda: work(7)))
"""


def test_a_batch_of_tries_stops_at_the_one_that_it_dies_of(tmp_path):
    (tmp_path / "batches.py").write_text(BATCHES)
    done = run([str(tmp_path / "batches.py")], 60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "[(1, 'well 1'), (2, 'well 2')]",
        "[(1, 'well 1')]",
        "['MemoryError', 'InputError', 'an InputError of several lines', 'well 1']",
        "[(9, 'well 9')]",
        "killed by SIGSEGV hang InputError",
    ]


def test_a_try_can_be_made_again(tmp_path):
    """The same file of the same bytes."""
    (tmp_path / "again.py").write_text(
        "import random, sys\nfrom campaign.damage import damaged\nfrom campaign.tally import draws\n"
        "from campaign.samples import samples\nfrom pathlib import Path\n"
        "made = samples(Path(sys.argv[1]))\n"
        "files = [file.read_bytes() for one in made.values() for file in one.files]\n"
        "small = [raw for raw in files if len(raw) < 1 << 16]\n"
        "for number, raw in enumerate(small):\n"
        "    once, again = (damaged(raw, draws(0, 'readers', number), small) for _ in range(2))\n"
        "    assert once == again, number\n"
        "changed = [damaged(raw, draws(1, 'readers', n), small) != raw for n, raw in enumerate(small)]\n"
        "print(sum(changed) / len(changed))\n"
    )
    done = run([str(tmp_path / "again.py"), str(tmp_path / "files")])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.8


SAMPLES = """
import contextlib, json, sys
from pathlib import Path
import ulfast.runtime.reading as reading
from campaign.samples import samples

made = samples(Path(sys.argv[1]))
places = {name: [str(one.place), one.reader] for name, one in made.items()}
used = set()

def note(frame, event, argument):
    if event == "call":
        used.add(frame.f_code.co_filename)

for name, one in made.items():
    whole = one.read()
    sys.setprofile(note)
    assert one.read() == whole, name
    sys.setprofile(None)
print(json.dumps([places, sorted(used)]))
"""


def test_every_reader_has_a_sample_in_the_campaign(tmp_path):
    """By name those of data sets and of published poisons, by the boundary that they cross all others."""
    pytest.importorskip("pyarrow")
    (tmp_path / "list.py").write_text(SAMPLES)
    done = run([str(tmp_path / "list.py"), str(tmp_path / "files")])
    assert done.returncode == 0, done.stderr
    places, used = json.loads(done.stdout)
    assert {reader for _, reader in places.values() if reader} == set(READERS) | set(LAYOUTS)
    for name, (place, reader) in places.items():
        if reader in READERS:
            assert next(key for key, one in READERS.items() if one.detect(Path(place))) == reader, name
        elif reader:
            assert detect_layout(Path(place)) == reader, name
    root = Path(ulfast.__file__).parent
    readers = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        if {"reading", "read_yaml", "load_tensors"} & called(file.read_text())
    }
    assert len(readers) > 15
    missed = readers - {str(Path(file).relative_to(root)) for file in used if file.startswith(str(root))}
    assert missed == RESUMED | DOWNLOADED, "add a sample to tests/scale/campaign/samples.py"


def called(text: str) -> set[str]:
    """The functions that a module calls by their name."""
    return {
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


@pytest.mark.slow
def test_what_a_campaign_found_is_kept_by_part(tmp_path):
    file = tmp_path / "campaign.json"
    for part, tries, jobs in (("downloads", 2, 1), ("readers", 300, 2)):
        words = ["--part", part, "--tries", str(tries), "--seed", "3", "--jobs", str(jobs), "--json", str(file)]
        done = campaign(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads(file.read_text())["parts"]
    assert list(parts) == ["readers", "downloads"]
    assert parts["readers"]["tries"] == sum(parts["readers"]["ends"].values()) == 300
    assert parts["readers"]["findings"] == []
    assert parts["readers"]["seed"] == 3
    assert parts["readers"]["environment"]["torch"]
    assert str(tmp_path) not in file.read_text()
