"""`ulfast profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..errors import InputError
from .common import Output, Picture, verb
from .completion import Known


@verb("profile", seed=False)
@click.argument("operators", nargs=-1)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NxDxK",
    help="Rows, values per row, and basis rows or classes (default: one for each operator).",
)
@click.option("--dtype", "dtypes", multiple=True, help="uint8, float16, bfloat16, float32 or float64.")
@click.option("--compile", "compiled", is_flag=True, help="Also race torch.compile.")
@click.option("--repeats", type=click.IntRange(1), help="Timed rounds (default 15).")
@click.option("--plot", type=Picture(), help="Draw the roofline into this PNG.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a JSON trace for Chrome's or Perfetto's viewer.")
@click.option(
    "--step",
    "model",
    type=Known("models"),
    metavar="MODEL",
    help="Measure the projection's share of a training step of this model.",
)
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images per batch of --step.")
@click.option(
    "--size", type=click.IntRange(8), default=32, show_default=True, help="Side of the images of --step, in pixels."
)
@click.option("--list", "list_", is_flag=True, help="List the operators and what they take.")
def command(
    output: Output,
    operators: tuple[str, ...],
    shapes: tuple[str, ...],
    dtypes: tuple[str, ...],
    compiled: bool,
    repeats: int | None,
    plot: Path | None,
    trace: Path | None,
    model: str | None,
    batch: int,
    size: int,
    list_: bool,
    device: str,
) -> None:
    """Race the kernels against what PyTorch users write: time, throughput, share of the machine's roof, error.

    \b
    ulfast profile
    ulfast profile project --shape 4096x3072x10 --shape 128x150528x10 --compile --plot roofline.png
    ulfast profile --step resnet18
    """
    import torch

    from ..profiling.cases import Shape
    from ..profiling.measure import measure, roof
    from ..profiling.registry import OPERATORS
    from ..profiling.step import step_share
    from ..registry import nearest
    from ..report import pictures, tables
    from ..runtime import environment
    from ..runtime.devices import resolve_device

    for name in operators:
        if name not in OPERATORS:
            raise InputError(f"no operator {name!r}{nearest(name, OPERATORS)}: known are {', '.join(OPERATORS)}")
    if list_:
        listed = {
            n: {"k": o.third, "dtypes": [_name(d) for d in o.dtypes], "shape": str(o.shape)}
            for n, o in OPERATORS.items()
        }
        output.result({"operators": listed})
        for name, about in listed.items():
            output.say(f"{name:<24}  k: {about['k']}; {', '.join(about['dtypes'])}; {about['shape']}")
        return
    where = resolve_device(device)
    if model is not None:
        if operators or shapes or dtypes:
            raise InputError("--step measures a whole training step: leave operators, --shape and --dtype out")
        share = step_share(model, batch=batch, size=size, device=where)
        output.result({"environment": environment.describe(), "step": share})
        for name, spent in share["seconds"].items():
            output.say(f"{name:<28}  {1e3 * spent:8.2f} ms")
        output.say(
            f"the projection is {100 * share['share']:.2f} % of a step of {model}, all of ingest"
            f" {100 * share['ingest_share']:.2f} %"
        )
        return
    wanted = [_dtype(text) for text in dtypes]
    asked = [Shape.parse(text) for text in shapes]
    todo: list[tuple[str, Shape, torch.dtype]] = []
    for name in operators or OPERATORS:
        operator = OPERATORS[name]
        for dtype in wanted or operator.dtypes[:1]:
            if dtype not in operator.dtypes:
                if operators:
                    takes = ", ".join(_name(d) for d in operator.dtypes)
                    raise InputError(f"{name} takes {takes}, not {_name(dtype)}")
                continue
            todo += [(name, shape, dtype) for shape in asked or [operator.shape]]
    top = roof(where)
    rows: list[Any] = []
    events: Any = None
    if trace is not None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if where.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        events = torch.profiler.profile(activities=activities)
        events.__enter__()
    for done, (name, shape, dtype) in enumerate(todo):
        torch.manual_seed(0)
        case = OPERATORS[name].make(shape, dtype, where, compiled)
        if name not in ("ingest", "apply_perturbation", "philox_normal", "pgd_step"):
            case.name += f", {_name(dtype)}"
        with torch.profiler.record_function(case.name):
            rows.append(measure(case, top, where, repeats))
        output.bars("profile", done + 1, len(todo))
    if events is not None and trace is not None:
        events.__exit__(None, None, None)
        trace.parent.mkdir(parents=True, exist_ok=True)
        events.export_chrome_trace(str(trace))
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(pictures.roofline_figure(rows, top), plot)
    about = environment.describe()
    output.result(
        {
            "environment": about,
            "roof": top,
            "rows": [row.to_dict() for row in rows],
            "plot": str(plot) if plot else None,
            "trace": str(trace) if trace else None,
        }
    )
    output.say(
        f"{about['gpu'] if where.type == 'cuda' else about['cpu']}, {about['threads']} threads, level"
        f" {about['cpu_level']}; copy {top['copy_bytes_per_s'] / 1e9:.1f} GB/s, sgemm"
        f" {top['sgemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    )
    output.show(tables.profile_table(rows))
    for what, path in (("roofline", plot), ("trace", trace)):
        if path is not None:
            output.say(f"{what}: {path}")


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(text: str) -> Any:
    import torch

    known = {_name(d): d for d in (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)}
    if text.lower() not in known:
        raise InputError(f"unknown dtype {text!r}: give {', '.join(known)}")
    return known[text.lower()]
