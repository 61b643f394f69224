"""`ulfast profile`: every operator's case is right and measured, by library and command line."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from ulfast import InputError
from ulfast.cli.main import group
from ulfast.profiling.cases import Case, Shape
from ulfast.profiling.measure import measure, roof
from ulfast.profiling.registry import OPERATORS
from ulfast.profiling.step import step_share

CPU = torch.device("cpu")
TOP = {"copy_bytes_per_s": 1e10, "sgemm_flops_per_s": 1e11}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_every_operator_can_be_raced(name):
    operator = OPERATORS[name]
    for dtype in operator.dtypes:
        third = 3 if operator.third == "side of the filter" else 2  # odd, where a filter has a middle
        case = operator.make(Shape(16, 192, third), dtype, CPU, False)
        row = measure(case, TOP, CPU, repeats=2)
        assert set(row.seconds) == {*case.ours, *case.peers}
        assert row.bytes > 0
        if row.error is not None:
            ours, plain = row.error
            assert ours <= 2 * plain + 1e-6 or plain != plain  # no worse than the expression it replaces
        json.dumps(row.to_dict())


def test_contestants_compute_the_same():
    for name in (
        "project",
        "project_classwise",
        "apply_perturbation",
        "perturb_lsp",
        "perturb_ar",
        "class_moments",
        "perturb_convolution",
        "perturb_linear",
    ):
        case = OPERATORS[name].make(Shape(32, 192, 3), OPERATORS[name].dtypes[0], CPU, False)
        results = [run() for label, run in {**case.ours, **case.peers}.items() if "in place" not in label]
        for other in results[1:]:
            torch.testing.assert_close(results[0], other, atol=1e-5, rtol=0)


def test_the_arithmetic_of_a_row(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(*seconds):
        turns = iter([seconds[0], *seconds])  # the first call warms up and is not counted

        def run():
            now[0] += next(turns)

        return run

    peers = {"plain": takes(0.02, 0.02, 0.5), "b": takes(0.008, 0.004, 0.009)}
    case = Case("c", {"a": takes(0.002, 0.001, 0.003)}, peers, bytes=1e7, flops=1e7)
    row = measure(case, TOP, CPU, repeats=3)
    assert (row.ours, row.best_peer, row.bound) == ("a", "b", "memory")
    assert row.seconds == pytest.approx({"a": 0.002, "plain": 0.02, "b": 0.008})
    assert row.spread["plain"] == pytest.approx((0.02, 0.5))
    assert row.x_best == pytest.approx(4)
    assert row.x_plain == pytest.approx(10)
    assert row.x_roof == pytest.approx(2)
    assert row.gb_per_s == pytest.approx(5)


def test_the_roof_is_that_of_a_machine():
    top = roof()
    assert 1e8 < top["copy_bytes_per_s"] < 1e13
    assert 1e8 < top["sgemm_flops_per_s"] < 1e15


def test_shapes():
    assert Shape.parse("64X3072x9") == Shape(64, 3072, 9)
    assert Shape(1, 150528, 1).side == 224
    for text in ("64x3072", "axbxc", "0x1x1", "1x-2x3"):
        with pytest.raises(InputError, match="NxDxK"):
            Shape.parse(text)
    with pytest.raises(InputError, match="square colour"):
        _ = Shape(1, 100, 1).side


def test_the_share_of_a_training_step():
    found = step_share("resnet18-4", batch=16, repeats=2)
    assert 0 <= found["share"] < 1
    assert found["share"] <= found["ingest_share"] < 0.9
    assert set(found["seconds"]) == {"ingest", "ingest without projection", "training step"}


def test_the_command_line(tmp_path):
    def said(*words):
        result = CliRunner().invoke(group, ["profile", *map(str, words), "--json"], catch_exceptions=False)
        return json.loads(result.stdout)

    got = said(
        "project",
        "pgd_step",
        "--shape",
        "64x192x2",
        "--repeats",
        2,
        "--plot",
        tmp_path / "roof.png",
        "--trace",
        tmp_path / "trace.json",
    )
    assert [row["case"] for row in got["rows"]] == ["project 64 x 192, k 2, float32", "pgd_step l2 64 x 192"]
    assert (tmp_path / "roof.png").stat().st_size > 10_000
    names = {event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert "project 64 x 192, k 2, float32" in names
    assert "ulfast::project" in names
    both = said("project", "--shape", "8x192x2", "--dtype", "uint8", "--dtype", "float64", "--repeats", 1)["rows"]
    assert [row["case"].split(", ")[-1] for row in both] == ["uint8", "float64"]
    assert set(said("--list")["operators"]) == set(OPERATORS)
    assert said("--step", "resnet18-4", "--batch", 8)["step"]["batch"] == 8
    for words, message in (
        (["projct"], "did you mean 'project'"),
        (["pgd_step", "--dtype", "uint8"], "takes float32, not uint8"),
        (["project", "--dtype", "int4"], "unknown dtype"),
        (["project", "--shape", "8"], "NxDxK"),
        (["project", "--step", "cnn"], "leave operators"),
        (["project", "--plot", "x.txt"], "must end in"),
    ):
        with pytest.raises(InputError, match=message):
            said(*words)


def test_the_text_of_the_command_line():
    result = CliRunner().invoke(group, ["profile", "philox_normal", "--shape", "8x48x1", "--repeats", "1"])
    assert result.exit_code == 0
    assert "philox_normal 8 x 48" in result.output
    assert "x plain" in result.output
    assert "…" not in result.output  # a pipe has no width to be cut to
    assert "GB/s" in result.output
