"""Which kernels are on after a child that agrees, disagrees, crashes, hangs or is silent.

Without a GPU: the device is the CPU and the children are doubles, most of which only speak as `ulfast.ops.trials` does.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import threading
import time
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ulfast.errors import InputError
from ulfast.ops import cuda, cuda_generators, reference, trials, verification
from ulfast.ops.verification import OPERATORS, VARIABLE
from ulfast.profiling import doctor

CPU = torch.device("cpu")
SPEAKS = """
import json, os, sys, time
operators = sys.argv[1:]
with open({log!r}, "a") as log:
    print(*operators, file=log)
{before}
print(json.dumps({{"gpu": "cpu"}}), flush=True)
for operator in operators:
    wrong, more = None, {{}}
    {each}
    print(json.dumps({{"operator": operator, "wrong": wrong, **more}}), flush=True)
"""


class Machine:
    """Where this process believes to be, and the children that it starts."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        self.key = {"gpu": "cpu", "torch": "1", "build": "2"}
        monkeypatch.setenv("ULFAST_CACHE", str(folder / "cache"))
        monkeypatch.delenv(VARIABLE, raising=False)
        monkeypatch.setattr(verification, "KIND", "cpu")
        monkeypatch.setattr(verification, "built", lambda: True)
        monkeypatch.setattr(verification, "key", lambda device: dict(self.key))
        self.child()

    def child(self, each="pass", before=""):
        """The children's behaviour from now on: at their start, and for each operator."""
        script = self.folder / "child.py"
        script.write_text(SPEAKS.format(log=str(self.folder / "log"), before=before, each=each))
        self.starts([sys.executable, "-S", str(script)])

    def starts(self, words):
        self.patch.setattr(verification, "command", lambda device, operators: [*words, *operators])

    def children(self):
        """The operators that each child was to try, so far."""
        log = self.folder / "log"
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def verdict(self):
        """As a new process gets it."""
        verification.forget()
        return verification.verdict(CPU)

    def kept(self):
        return sorted((self.folder / "cache" / "kernels").glob("*.json"))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    verification.forget()
    yield Machine(tmp_path, monkeypatch)
    verification.forget()


def silent():
    return warnings.catch_warnings(action="error") if sys.version_info >= (3, 11) else warnings.catch_warnings()


def test_kernels_that_agree_are_on_and_the_result_is_kept(machine):
    with silent():
        found = machine.verdict()
        assert found.on == set(OPERATORS)
        assert machine.children() == [list(OPERATORS)]
        again = machine.verdict()
    assert again == found
    assert len(machine.children()) == 1
    assert all(verification.enabled(name, CPU) for name in OPERATORS)
    content = json.loads(machine.kept()[0].read_text())
    assert content["key"] == machine.key
    assert content["operators"] == dict.fromkeys(OPERATORS)
    assert doctor.described(found) == (True, f"13 on, verified {found.verified}")
    assert [file.suffix for file in machine.kept()[0].parent.iterdir() if file.suffix == ".part"] == []


def test_a_new_driver_torch_or_build_is_verified_again_and_so_is_a_damaged_result(machine):
    machine.verdict()
    machine.key["build"] = "3"
    machine.verdict()
    assert len(machine.children()) == len(machine.kept()) == 2
    machine.verdict()
    assert len(machine.children()) == 2
    for damage in ("{", "[]", "null", json.dumps({"key": machine.key, "time": 1, "operators": {}, "verified": ""})):
        for file in machine.kept():
            file.write_text(damage)
        assert machine.verdict().on == set(OPERATORS)
    assert len(machine.children()) == 6


def test_only_a_kernel_that_disagrees_is_off(machine):
    machine.child("if operator == 'project': wrong = 'project 5 x 15: off by 0.3'")
    with pytest.warns(
        RuntimeWarning, match=r"project \(project 5 x 15: off by 0\.3\)\. .*report .*ulfast doctor"
    ) as said:
        found = machine.verdict()
    assert len(said) == 1
    assert found.off == {"project": "project 5 x 15: off by 0.3"}
    assert found.on == set(OPERATORS) - {"project"}
    assert not verification.enabled("project", CPU)
    assert verification.enabled("ingest", CPU)
    with silent():
        assert machine.verdict() == found  # kept, and said once
    assert len(machine.children()) == 1
    well, text = doctor.described(found)
    assert well is False
    assert re.match(r"12 on, verified .*; off, PyTorch .*: project \(project 5 x 15: off by 0\.3\)\. Please rep", text)


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("os.abort()", "ended its process by SIGABRT"),
        ("os._exit(3)", "ended its process with exit code 3"),
        ("sys.exit('illegal memory access')", "ended its process with exit code 1: illegal memory access"),
        ("sys.exit()", "ended its process with exit code 0"),
    ],
)
def test_only_a_kernel_that_ends_the_child_is_off(machine, does, says):
    """The next child goes on behind it; the first and the last operator too."""
    bad = (OPERATORS[0], "project", OPERATORS[-1])
    machine.child(f"if operator in {bad!r}: {does}")
    with pytest.warns(RuntimeWarning, match="stay off"):
        found = machine.verdict()
    assert found.off == dict.fromkeys(bad, says)
    assert found.on == set(OPERATORS) - set(bad)
    at = OPERATORS.index("project") + 1
    assert machine.children() == [list(OPERATORS), list(OPERATORS[1:]), list(OPERATORS[at:])]
    assert machine.verdict() == found


def test_only_a_kernel_that_hangs_is_off(machine):
    machine.patch.setattr(verification, "STEP", 0.4)
    machine.child("if operator == 'ingest': time.sleep(60)")
    begun = time.monotonic()
    with pytest.warns(RuntimeWarning, match="stay off"):
        found = machine.verdict()
    assert time.monotonic() - begun < 10
    assert list(found.off) == ["ingest"]
    assert found.off["ingest"].startswith("hung for ")


def test_time_is_limited_and_what_was_not_reached_is_off(machine):
    machine.patch.setattr(verification, "TOTAL", 1.0)
    machine.child("if operator == 'ingest': time.sleep(60)")
    with pytest.warns(RuntimeWarning, match="stay off"):
        found = machine.verdict()
    at = OPERATORS.index("ingest")
    assert found.on == set(OPERATORS[:at])
    assert {found.off[name] for name in OPERATORS[at + 1 :]} == {"not tried: 1 s had passed"}


def test_a_gpu_that_a_crash_has_broken_is_not_tried_again(machine):
    mark = machine.folder / "broken"
    machine.child(
        f"if operator == 'project': open({str(mark)!r}, 'w'); os.abort()",
        f"if os.path.exists({str(mark)!r}): sys.exit('no device')",
    )
    with pytest.warns(RuntimeWarning, match="stay off"):
        found = machine.verdict()
    assert found.off["project"] == "ended its process by SIGABRT"
    assert found.off["ingest"].startswith(
        "not tried: the trial did not begin: it ended its process with exit code 1: no"
    )
    assert machine.verdict() == found
    assert len(machine.children()) == 2


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("print('garbage'); sys.stdout.buffer.write(bytes(range(256)) * 999); sys.exit(0)", "with exit code 0"),
        ("print(json.dumps({'operator': 'project', 'wrong': None})); sys.exit(0)", "with exit code 0"),
        ("sys.exit('No module named torch')", "with exit code 1: No module named torch"),
        ("print(json.dumps({'gpu': 'another'}), flush=True); time.sleep(60)", "saw another in place of cpu"),
        ("time.sleep(60)", "hung for 1 s"),
        ("os.close(1); os.close(2); time.sleep(0.2)", "the trial did not begin"),
    ],
)
def test_a_child_that_does_not_start_turns_all_off_for_this_process(machine, before, says):
    if "60" in before:
        machine.patch.setattr(verification, "START", 0.5)
    machine.child(before=before)
    with pytest.warns(RuntimeWarning, match=re.escape(says)) as said:
        found = machine.verdict()
    assert len(said) == 1
    assert not found.on
    assert not machine.kept()
    assert not verification.enabled("project", CPU)
    assert len(machine.children()) == 1  # not repeated in this process
    assert doctor.described(found) == (None, f"off ({found.why})")
    machine.child()
    assert machine.verdict().on == set(OPERATORS)


def test_a_child_that_cannot_start(machine):
    machine.starts([str(machine.folder / "nothing")])
    with pytest.warns(RuntimeWarning, match="the trial did not start"):
        assert not machine.verdict().on
    assert not machine.kept()


def test_foreign_lines_in_the_output_are_ignored(machine):
    each = """for line in (
        '[]', 'null', '7', '{', '{"operator": "none", "wrong": null}', '{"operator": [5], "wrong": null}',
        json.dumps({"operator": "project", "wrong": 5}), json.dumps({"operator": "project"}) + "}"): print(line)
    sys.stdout.flush(); os.write(1, b'\\xff\\x00\\n')"""
    machine.child(each)
    assert machine.verdict().on == set(OPERATORS)


def test_no_memory_is_no_fault_of_the_kernel(machine):
    machine.child("if operator == 'project': wrong, more = 'no memory', {'passing': True}")
    with pytest.warns(RuntimeWarning, match="project"):
        found = machine.verdict()
    assert found.on == set(OPERATORS) - {"project"}
    assert not found.kept
    assert not machine.kept()


def test_processes_that_start_together_verify_once(machine):
    machine.child(before="time.sleep(0.3)")
    found = []
    threads = [threading.Thread(target=lambda: found.append(verification._proven(CPU, False))) for _ in range(4)]
    for thread in threads:  # each opens the lock for itself, as a process does
        thread.start()
    for thread in threads:
        thread.join()
    assert len(machine.children()) == 1
    assert [one.on for one in found] == [set(OPERATORS)] * 4
    assert len({one.verified for one in found}) == 1


def test_a_lock_that_is_never_freed_is_not_waited_for_long(machine):
    file = verification.place(machine.key)
    file.parent.mkdir(parents=True)
    machine.patch.setattr(verification, "WAIT", 0.2)
    with verification._alone(file.with_suffix(".lock"), 0) as ours:
        assert ours
        with pytest.warns(RuntimeWarning, match="another process"):
            assert not machine.verdict().on
    assert not machine.children()
    assert machine.verdict().on == set(OPERATORS)


def test_a_cache_that_cannot_be_written_only_warns(machine):
    (machine.folder / "file").write_text("")
    machine.patch.setenv("ULFAST_CACHE", str(machine.folder / "file"))
    with pytest.warns(RuntimeWarning, match="ULFAST_CACHE"):
        assert machine.verdict().on == set(OPERATORS)


def test_the_variable(machine):
    machine.patch.setenv(VARIABLE, "0")
    assert doctor.described(machine.verdict()) == (None, f"off ({VARIABLE}=0)")
    machine.patch.setenv(VARIABLE, "1")
    assert doctor.described(machine.verdict()) == (True, f"13 on, unverified ({VARIABLE}=1)")
    assert not machine.children()
    for value in ("2", "on", "AUTO", " "):
        machine.patch.setenv(VARIABLE, value)
        with pytest.raises(InputError, match=f"{VARIABLE} must be one of auto, 0, 1, verify, got '{value}'"):
            machine.verdict()
    for value in ("", "auto"):
        machine.patch.setenv(VARIABLE, value)
        assert machine.verdict().on == set(OPERATORS)
    assert len(machine.children()) == 1
    machine.patch.setenv(VARIABLE, "verify")
    machine.patch.setattr(verification, "_BEGUN", time.time())  # as of a process that starts now
    machine.child("if operator == 'project': wrong = 'off'")
    with pytest.warns(RuntimeWarning, match="project"):
        assert machine.verdict().off == {"project": "off"}
    assert machine.verdict().off == {"project": "off"}  # this start's own, which the other processes of it take too
    assert len(machine.children()) == 2
    machine.patch.setattr(verification, "built", lambda: False)
    for value in ("1", "auto", "verify"):
        machine.patch.setenv(VARIABLE, value)
        assert doctor.described(machine.verdict()) == (None, "off (not built)")


@pytest.mark.parametrize("who", ["daemon", "worker", "fork", "embedded"])
def test_a_helper_process_starts_no_child_but_uses_a_cached_result(machine, who):
    with machine.patch.context() as patch:
        if who == "daemon":
            patch.setitem(multiprocessing.current_process()._config, "daemon", True)
        elif who == "worker":
            patch.setattr(torch.utils.data._utils.worker, "_worker_info", object())
        elif who == "fork":
            patch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
        else:
            patch.setattr(sys, "executable", "")
        found = machine.verdict()
        assert (found.on, found.kept) == (frozenset(), False)
        assert "not verified yet" in found.why
        assert not machine.children()
    machine.verdict()
    machine.patch.setitem(multiprocessing.current_process()._config, "daemon", True)
    for value in ("auto", "verify"):
        machine.patch.setenv(VARIABLE, value)
        machine.patch.setattr(verification, "_BEGUN", time.time())
        assert machine.verdict().on == set(OPERATORS)


def test_the_operators_keep_working_whatever_goes_wrong(machine):
    def broken(*_):
        raise RuntimeError("the driver is gone")

    machine.patch.setattr(verification, "key", broken)
    with pytest.warns(RuntimeWarning, match="RuntimeError: the driver is gone"):
        assert not verification.enabled("project", CPU)
    with silent():  # nor does the warning stop one, where warnings are errors
        warnings.simplefilter("error")
        verification.forget()
        assert not verification.enabled("project", CPU)


def test_tensors_off_the_gpu_start_no_verification(machine):
    machine.patch.setattr(verification, "KIND", "cuda")
    assert not verification.enabled("project", CPU)
    assert not machine.children()


def test_nothing_runs_in_a_trace(machine):
    with FakeTensorMode():
        assert not verification.enabled("project", CPU)
    assert not machine.children()
    assert verification.enabled("project", CPU)


def test_the_real_child_with_kernels_that_crash_and_disagree(machine):
    """`ulfast.ops.trials` on the CPU: first as it is started, then on doubles of two operators."""
    few = (
        "perturb_convolution",
        "class_moments",
        "apply_perturbation",
        "philox_normal",
    )  # the crash last: no third child
    machine.patch.undo()
    machine.patch.setenv("ULFAST_CACHE", str(machine.folder))
    machine.patch.setattr(verification, "OPERATORS", few)
    machine.patch.setattr(verification, "KIND", "cpu")
    machine.patch.setattr(verification, "built", lambda: True)
    machine.patch.delenv(VARIABLE, raising=False)
    (machine.folder / "here").mkdir()
    machine.patch.chdir(machine.folder / "here")
    (machine.folder / "here" / "random.py").write_text(
        "raise SystemExit('not this one')"
    )  # a user's file of a module's name
    found = machine.verdict()
    assert (found.on, found.off) == (set(few), {})
    about = verification.key(CPU)
    assert json.loads(verification.place(about).read_text())["key"] == about
    script = machine.folder / "doubles.py"
    script.write_text(
        "import os, sys, types, torch, ulfast.ops\n"
        "from ulfast.ops import trials\n"
        f"ours = types.SimpleNamespace(**{{name: getattr(torch.ops.ulfast, name) for name in {few!r}}})\n"
        "ours.philox_normal = lambda *given, **options: os.abort()\n"
        "sums = torch.ops.ulfast.class_moments\n"
        "ours.class_moments = lambda images, labels, classes: sums(images // 2, labels, classes)\n"
        "sys.exit(trials.main(ours=ours))\n"
    )
    machine.patch.setenv(VARIABLE, "verify")
    machine.patch.setattr(verification, "_BEGUN", time.time())
    machine.starts([sys.executable, str(script), "--device", "cpu"])
    with pytest.warns(RuntimeWarning, match="SIGABRT"):
        found = machine.verdict()
    assert found.on == {"perturb_convolution", "apply_perturbation"}
    assert found.off["philox_normal"] == "ended its process by SIGABRT"
    assert found.off["class_moments"].startswith("class_moments 1 x 1, 1 classes: 1 of 1 values are off by up to ")


# --- the trials -------------------------------------------------------------------------------------------------------


def test_every_kernel_that_asks_is_tried():
    asked = set()
    for module in (cuda, cuda_generators):
        asked |= set(re.findall(r'enabled\("(\w+)"', Path(module.__file__).read_text()))
    assert asked | {"philox_uniform", "philox_normal"} == set(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_kernels_of_the_cpu_pass(operator, monkeypatch):
    monkeypatch.setattr(trials, "ENOUGH", 12)
    assert trials.wrong(operator, CPU, torch.ops.ulfast) is None


def last_is_off(by):
    """Moves the last value of everything that a call returns or changes by this amount."""

    def change(name):
        def double(*given, **options):
            got = getattr(torch.ops.ulfast, name)(*given, **options)
            for value in [*given, *(got if isinstance(got, tuple) else (got,))]:
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    value.view(-1)[-1] += by if value.is_contiguous() else 0
            return got

        return double

    return change


@pytest.mark.parametrize("operator", ["project", "project_classwise", "ingest", "softmax_regression_step"])
@pytest.mark.parametrize("by", [0.1, float("nan")])
def test_one_wrong_value_is_found(operator, by, monkeypatch):
    monkeypatch.setattr(trials, "ENOUGH", 12)
    names = {trial.name for trial in trials.TRIALS[operator]()}
    ours = types.SimpleNamespace(**{name: last_is_off(by)(name) for name in names})
    assert re.search(r"values are (off by up to|not a number)", trials.wrong(operator, CPU, ours))


def test_a_failure_in_only_one_way_is_found_and_named(monkeypatch):
    monkeypatch.setattr(trials, "ENOUGH", 12)

    def gaps(x, basis):
        return reference.project(x if x.is_contiguous() else x.as_strided(x.shape, (x.shape[1], 1)), basis)

    def aligned(x, basis):
        if x.storage_offset():
            raise RuntimeError("misaligned address\nmore")
        return reference.project(x, basis)

    others = {"project_out": reference.project_out, "project_": reference.project_}
    found = trials.wrong("project", CPU, types.SimpleNamespace(project=gaps, **others))
    assert re.match(r"project \d+ x \d+, k \d+, uint8, strided: ", found)
    found = trials.wrong("project", CPU, types.SimpleNamespace(project=aligned, **others))
    assert found == "project 1 x 1, k 1, uint8, misaligned: RuntimeError: misaligned address"


def test_how_close_is_close_enough():
    ones, off = torch.ones(3000), torch.ones(3000)
    off[:3] = 2
    assert trials.apart([off], [ones], trials.LEVEL) == ""
    off[3] = 2
    assert trials.apart([off], [ones], trials.LEVEL) == "4 of 3000 values are off by up to 1"
    off[:4] = 1
    off[0] = 3
    assert trials.apart([off], [ones], trials.LEVEL) == "1 of 3000 values are off by up to 2"
    assert trials.apart([ones.half()], [ones], trials.EQUAL) == "is (3000,) torch.float16, not (3000,) torch.float32"
    nan = torch.tensor([torch.nan, torch.inf])
    assert trials.apart([nan], [nan], trials.EQUAL) == ""
    assert trials.apart([nan], [ones[:2]], trials.EQUAL) == "1 of 2 values are not a number on one side alone"
    assert trials.apart([ones[:2]], [torch.tensor([1.0, torch.inf])], trials.EQUAL) != ""
