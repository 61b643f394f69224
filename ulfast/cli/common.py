"""Options and behaviour that all verbs share: --json, --quiet, --config, progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from ..errors import InputError
from ..parameters import fraction
from ..runtime.files import claimed, part_folder
from ..runtime.machine import launched_size
from ..runtime.made import check_replace, expand
from ..runtime.reading import parse_yaml, read_yaml
from ..version import __version__
from .completion import Known

F = TypeVar("F", bound=Callable[..., Any])

# Parameter names reserved by the functions behind the verbs.
OWN = ("dataset", "work", "test", "progress", "evaluate_every", "folder", "method")

SEED = click.IntRange(0, 2**63 - 1)  # the range of all generators

# Width of a table in a file, and the width below which a terminal's table is not narrowed.
WIDEST, SQUEEZED = 400, 140


class Config(click.Option):
    """`--config FILE.yaml`: defaults for the verb's options, below flags."""

    def __init__(self) -> None:
        super().__init__(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_read_config,
            metavar="FILE.yaml",
            help="Defaults for these options; options given on the command line win.",
        )


def _read_config(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    if not path.exists():
        raise InputError(f"there is no configuration file {path}: check --config")
    content = read_yaml(path)
    if content is None:
        return
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold `option: value` lines, it holds a {type(content).__name__}")
    known = {p.name for p in context.command.params if p.name and p.expose_value}
    known |= {p.name for p in context.command.params if p.name in ("json", "quiet")}
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            close = difflib.get_close_matches(name, [k for k in known if k], n=1)
            hint = f" (did you mean {close[0].replace('_', '-')!r}?)" if close else ""
            raise InputError(f"{path}: {context.command.name} has no option {key!r}{hint}")
        values[name] = value
    context.default_map = {**(context.default_map or {}), **values}


class Picture(click.Path):
    """A picture to write; the suffix chooses its format."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if path.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise InputError(f"{param.opts[0] if param else 'picture'} {path} must end in .png, .svg or .pdf")
        path = expand(path)
        if path.is_dir():
            raise InputError(f"{param.opts[0] if param else 'picture'} {path} is a folder: give a file name")
        check_replace(path)
        return path


class Share(click.ParamType):
    """A number, or a fraction such as 8/255."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return share(str(value), param.opts[0] if param else "value")


def share(text: str, name: str) -> float:
    """A number written as 0.03 or 8/255.

    Raises:
        InputError: anything else, or not finite.
    """
    try:
        found = fraction(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{name} {text} is not a finite number: give 0.03, or 8/255")
    return found


class Bars:
    """Draws progress on stderr with rate and time left; serves as the library's `progress` callable.

    The time left is shown with its basis: the pace of this process since the stage began. Earlier work (of a resumed
    run or a partial download) does not count.
    """

    TITLES: ClassVar[dict[str, str]] = {
        "clean": "train on clean",
        "poisoned": "train on poisoned",
        "attack": "train with the attack",
        "fit": "linear fit",
        "npm": "npm pack",
        "cells": "cells of the grid",
        "surrogate": "train the surrogate",
        "networks": "what the networks see",
    }

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}
        self._begun: dict[str, tuple[float, float]] = {}  # stage: time of its start, and the amount done then

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, stage: str, done: float, total: float, **info: Any) -> None:
        if self._quiet:
            return
        left = self._left(stage, done, total)
        if not sys.stderr.isatty():
            self._line(stage, done, total, info, left)
            return
        if self._progress is None:
            self._start()
        if stage not in self._tasks:
            title = self.TITLES.get(stage, stage)
            self._tasks[stage] = self._progress.add_task(title, total=total or None, rate="", left="")
        self._progress.update(
            self._tasks[stage], completed=done, total=total or None, rate=_rate(info, done, self), left=left
        )

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(28),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="cyan"),
            TextColumn("{task.fields[rate]}", style="dim"),
            console=Console(stderr=True),
        )
        self._progress.start()

    def _left(self, stage: str, done: float, total: float) -> str:
        """The time left; empty during the first two seconds."""
        now = time.monotonic()
        if done < self._begun.setdefault(stage, (now, done))[1]:  # the stage restarts
            self._begun[stage] = now, done
        begun, before = self._begun[stage]
        spent = now - begun
        if spent < 2 or not before < done < total:
            return ""
        return f"{_clock(spent * (total - done) / (done - before))} left at the pace of the past {_clock(spent)}"

    def _line(self, stage: str, done: float, total: float, info: dict[str, Any], left: str) -> None:
        """Without a terminal: prints one line at the end of a stage and every 15 seconds."""
        now = time.monotonic()
        begun = self._last.setdefault(stage, now)
        if done < total and now - begun < 15:
            return
        self._last[stage] = now
        share = f"{100 * done / total:.0f} %" if total else ""
        numbers = ", ".join(part for part in (_rate(info, done, self), left) if part)
        click.echo(f"{self.TITLES.get(stage, stage)}: {share} {numbers}".rstrip(), err=True)


def _clock(seconds: float) -> str:
    """Formats 75 as 1:15 and 3675 as 1:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rate(info: dict[str, Any], done: float, bars: Bars) -> str:
    parts = []
    if info.get("unit") == "B":
        parts.append(f"{done / 1e6:.0f} MB")
    if "images_per_second" in info:
        parts.append(f"{info['images_per_second']:,.0f} images/s")
    if "loss" in info:
        parts.append(f"loss {info['loss']:.3f}")
    if "accuracy" in info:
        parts.append(f"accuracy {100 * info['accuracy']:.1f} %")
    return ", ".join(parts)


def printable(text: str) -> str:
    """Removes control characters from text, as names of files and classes are untrusted."""

    def kept(c: str) -> bool:
        return c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs"  # spaces of all widths

    text = "".join(c if kept(c) else c.encode("unicode_escape").decode() for c in text)
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass
class Output:
    """The output of a verb: results to stdout and remarks to stderr, or a single JSON object."""

    json: bool = False
    quiet: bool = False
    silent: bool = False  # one of several processes, and not the first
    bars: Bars = field(init=False)

    def __post_init__(self) -> None:
        self.bars = Bars(self.quiet or self.json or self.silent)

    def claim(self, path: Path) -> None:
        """Claims an output for this command until it ends; with several processes the first one does.

        Raises:
            InputError: another process is writing it.
        """
        if not self.silent:
            click.get_current_context().with_resource(claimed(path))

    def resumes(self, kept: Callable[[], bool], how: str = "the same command with --resume") -> None:
        """Sets the hint on how to resume the command, shown on an interruption if `kept` returns True."""
        state = click.get_current_context().obj
        if isinstance(state, dict):
            state["resumes"] = lambda: how if kept() else ""

    def result(self, value: dict[str, Any]) -> None:
        """Prints the JSON object, if requested."""
        if self.json and not self.silent:
            text = json.dumps(value, ensure_ascii=False, default=str)  # this escapes only some control characters
            click.echo("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text))

    def say(self, text: str) -> None:
        """Prints a line of the result."""
        if not (self.json or self.silent):
            click.echo(printable(text))

    def remark(self, text: str) -> None:
        """Prints a remark on the result."""
        if not (self.json or self.quiet or self.silent):
            click.echo(printable(text), err=True)

    def show(self, renderable: Any) -> None:
        """Prints a rich table."""
        if not (self.json or self.silent):
            from rich.console import Console
            from rich.measure import Measurement

            title = getattr(renderable, "title", None)
            if title:  # a table would wrap it at its own width
                renderable.title = None
                click.secho(printable(str(title)), bold=True)
            for column in getattr(renderable, "columns", ()):  # names of files and classes are untrusted
                column.header = printable(str(column.header))
                column._cells = [printable(cell) if isinstance(cell, str) else cell for cell in column._cells]
            console = Console(file=sys.stdout, highlight=False, markup=False)
            need = Measurement.get(console, console.options.update(width=WIDEST), renderable)
            # A file or a pipe has no width; a terminal wraps long lines, whereas a narrowed table truncates its
            # numbers.
            width = need.maximum if not console.is_terminal or need.maximum <= SQUEEZED else 0
            console.width = max(console.width, width)
            console.print(renderable, crop=False)


def verb(
    name: str,
    *,
    seed: bool = True,
    device: bool = True,
    where: str = "Where to compute.",
    processes: bool = False,
    **attributes: Any,
) -> Callable[[F], click.Command]:
    """A click command with the options of every verb; the function gets an `Output` as its first argument.

    `where` is the help text of --device. With `processes`, torchrun or --nproc may run it in several processes.
    """

    def decorate(function: F) -> click.Command:
        @functools.wraps(function)
        def run(json: bool, quiet: bool, debug: bool, **options: Any) -> Any:
            nproc, restarts = options.pop("nproc", None), options.pop("max_restarts", 0)
            options = {key: expand(value) if isinstance(value, Path) else value for key, value in options.items()}
            if (nproc or restarts) and not _launched():
                return _launch(nproc or 1, restarts, options)
            if not processes and launched_size() > 1:
                raise InputError(f"`ulfast {name}` works in one process: start it without torchrun")
            from ..runtime.machine import keep_freed_memory

            keep_freed_memory()
            with _joined(options) if _launched() else contextlib.nullcontext():
                _same_command(name, options)
                output = Output(json, quiet, launched_size() > 1 and int(os.environ["RANK"]) > 0)
                with output.bars:
                    return function(output, **options)

        command = click.command(name, **attributes)(run)
        if seed:
            command.params.append(
                click.Option(
                    ["--seed"],
                    type=click.IntRange(0, 2**63 - 1),
                    default=0,
                    show_default=True,
                    help="Seed of everything random.",
                )
            )
        if device:
            command.params.append(
                click.Option(
                    ["--device"],
                    type=Known("devices"),
                    default="auto",
                    show_default=True,
                    metavar="auto|cpu|cuda",
                    help=where,
                )
            )
        if processes:
            command.params += [
                click.Option(
                    ["--nproc"],
                    type=click.IntRange(1),
                    metavar="N",
                    help="Number of processes on this machine, one per GPU (several machines: use torchrun).",
                ),
                click.Option(
                    ["--max-restarts"],
                    type=click.IntRange(0),
                    default=0,
                    metavar="N",
                    help="Restart up to N times from the last checkpoint when a process dies.",
                ),
            ]
        command.params += [
            Config(),
            click.Option(["--json"], is_flag=True, help="Print one JSON object to stdout and nothing else."),
            click.Option(["--quiet", "-q"], is_flag=True, help="Show no progress and no remarks."),
            click.Option(["--debug"], is_flag=True, help="Show tracebacks instead of one line."),
        ]
        return command

    return decorate


def _launched() -> bool:
    """Whether a launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or launched_size() > 1


# Options that may differ between processes: each machine's disk may have the files elsewhere (their content is compared
# after reading), and only the first process writes.
OWN_PATHS = {"data", "test_data", "clean", "basis", "out", "work", "report", "cache"}


def _same_command(name: str, options: dict[str, Any]) -> None:
    """Raises InputError if the processes differ in verb, options or version."""
    from .. import distributed

    if distributed.size() > 1:
        import torch

        given = {f"options ({key})": value for key, value in options.items() if key not in OWN_PATHS}
        versions = {"versions of ulfast": __version__, "versions of torch": torch.__version__}
        distributed.check_same({**versions, "verbs": name, **given})


def _launch(processes: int, restarts: int, options: dict[str, Any]) -> None:
    if restarts and options.get("out") is None:
        raise InputError("a restart continues from what is on the disk: give --max-restarts with an --out")
    from .. import distributed

    context = click.get_current_context()
    resumes = any(option.name == "resume" for option in context.command.params)
    hint = "--resume continues from it" if resumes else "the same command continues"
    out = options.get("out")
    if out is not None and isinstance(context.obj, dict):
        left = [out, part_folder(out), *(out.with_name(out.name + end) for end in (".work", ".part.pt"))]
        how = "the same command with --resume" if resumes else "the same command"
        context.obj["resumes"] = lambda: how if any(one.exists() for one in left) else ""
    distributed.launch(processes, context.meta["ulfast.arguments"], restarts, hint if out is not None else "")


def _joined(options: dict[str, Any]) -> contextlib.AbstractContextManager[None]:
    from .. import distributed

    return distributed.joined(options.get("device", "auto"))


def data_options(function: F) -> F:
    """--data and the options for reading it."""
    for option in reversed(
        [
            click.option(
                "--data",
                type=Known("data"),
                metavar="PATH|NAME",
                help="Folder, .npz, .beton, .tar, .parquet, or sample, cifar10, cifar100, svhn.",
            ),
            click.option(
                "--test-data",
                metavar="PATH",
                help="Where the clean test images are, if not beside the training images.",
            ),
            click.option(
                "--format",
                "format_",
                type=Known("formats"),
                metavar="KIND",
                help="Read --data as this kind (see `ulfast ls`).",
            ),
            click.option("--limit", type=click.IntRange(1), metavar="N", help="Class-balanced subset of N images."),
        ]
    ):
        function = option(function)
    return reading_options(function)


def reading_options(function: F) -> F:
    """Options for reading images, passed to the function as one dictionary `reading` for `load_dataset`."""
    names = ("resize", "skip_damaged", "label_field", "input_key", "target_key", "verify")

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        return function(*args, reading={name: options.pop(name) for name in names}, **options)

    for option in reversed(
        [
            click.option(
                "--resize",
                type=click.IntRange(8),
                metavar="S",
                help="Resize the shorter side to S px and take the centre square.",
            ),
            click.option(
                "--skip-damaged", is_flag=True, help="Leave out images that cannot be read, and report how many."
            ),
            click.option(
                "--label-field", metavar="NAME", help="The field of a .beton file or a shard's .json with the label."
            ),
            click.option("--input-key", metavar="NAME", help="What holds the images in a .parquet, .npz or shard."),
            click.option("--target-key", metavar="NAME", help="What holds the labels in a .parquet, .npz or shard."),
            click.option("--verify", is_flag=True, help="Compare all images with their checksums, not a sample."),
        ]
    ):
        run = option(run)
    return run  # type: ignore[return-value]


def tell_notes(output: Output, *datasets: Any) -> None:
    """Reports what the reader left out or changed, as a remark."""
    for dataset in datasets:
        if dataset is not None and dataset.notes:
            output.remark(f"{dataset.name}, {dataset.split}: {noted(dataset.notes)}")


def noted(notes: dict[str, int]) -> str:
    """Counts by kind, as a sentence."""
    return ", ".join(f"{count:,} {kind}" for kind, count in notes.items())


def settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--set key=value` pairs; values are read as YAML scalars.

    Raises:
        InputError: the text is not a pair, the value not a scalar, a name is given twice or is an option of the verb.
    """
    context = click.get_current_context()
    options = {p.name: p.opts[0] for p in context.command.params if p.name}
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        name = key.strip().replace("-", "_")
        if not equals or not name:
            raise InputError(f"--set takes KEY=VALUE, got {pair!r}")
        if name in options or name in OWN:
            what = f"an option of its own: say {options[name]} {text}" if name in options else "not for --set"
            raise InputError(f"--set {pair}: {name} is {what}")
        if name in values:
            raise InputError(f"--set gives {name} twice: give it once")
        try:
            values[name] = parse_yaml(text)
        except Exception:  # of many types, for text that is not YAML
            values[name] = [text]
        if isinstance(values[name], (list, dict, set)):
            raise InputError(f"--set {pair}: {text!r} is not a number, a word or true/false: give one of these")
    return values


def existing(folder: Path) -> bool:
    """Whether a folder exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def free_folder(stem: str) -> Path:
    """`stem`, or `stem-2`, `stem-3`, ... where that exists."""
    path, number = Path(stem), 1
    while existing(path):
        number += 1
        path = Path(f"{stem}-{number}")
    return path
