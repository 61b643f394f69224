"""The group of verbs, and how errors become one line and an exit code."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from ..errors import InputError, WorkerError
from ..version import __version__

# verb -> (module, what `ulfast --help` says)
VERBS = {
    "poison": ("poison", "Make a data set unlearnable."),
    "ar-search": ("ar_search", "Find coefficients for the poison ar (also `ulfast poison ar-search`)."),
    "fit": ("fit", "Fit the linear model whose weights the projection removes."),
    "attack": ("attack", "Learn from poisoned data and measure it on clean test images."),
    "reproduce": ("reproduce", "Train a table of poisons x attacks, resumable."),
    "report": ("report", "Show runs and grids as one self-contained page."),
    "diagnose": ("diagnose", "Tell whether a data set is poisoned, and which attack to try."),
    "separability": ("separability", "Tell classes from perturbations alone by a linear model."),
    "dfr": ("dfr", "Refit the last layer of every epoch of a run to clean images."),
    "finetune": ("finetune", "Train a run's network on a few clean images."),
    "show": ("show", "Draw clean images, perturbations and poisoned images."),
    "data": ("data", "Get, inspect, import, export and convert data sets."),
    "profile": ("profile", "Race the kernels against what PyTorch users write."),
    "ls": ("ls", "List poisons, attacks, models, recipes and data sets."),
    "doctor": ("doctor", "Check the installation, with a real run of every kernel."),
}
DONE, OUR_FAULT, INPUT_WRONG, INTERRUPTED = 0, 1, 2, 130
# What click 8.2 and later raise if a group is called without a verb; older versions print the help themselves.
HELP_WANTED: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class ReaderGone(Exception):
    """Passes on a BrokenPipeError, which click would turn into exit code 1."""


class Verbs(click.Group):
    """Loads a verb's module on demand."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        with _named():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _named():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f".{VERBS[cmd_name][0]}", __package__).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["ulfast.arguments"] = list(args)  # for the processes of --nproc
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args[:2] == ["poison", "ar-search"]:
            args = args[1:]
        if args and args[0] not in VERBS:
            from ..registry import nearest

            raise click.UsageError(f"no verb {args[0]!r}{nearest(args[0], VERBS)}: known are {', '.join(VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except EOFError as error:  # from a truncated file; click would mistake it for Ctrl-D
        raise RuntimeError(f"EOFError: {error}") from error


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "-V", "--version", prog_name="ulfast")
def group() -> None:
    """Make unlearnable image data sets, learn from them anyway, and measure both.

    \b
    ulfast attack --method orthogonal                     on the embedded sample, offline
    ulfast poison --method lsp --data cifar10 --out poisoned/
    ulfast attack --method orthogonal --data poisoned/ --out runs/mine
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and exits with 0 (done), 2 (wrong input), 1 (our fault) or 130 (interrupted)."""
    code = run(arguments)
    if code != DONE and {"TORCHELASTIC_RUN_ID", "WORLD_SIZE"} & set(os.environ):
        # This is one of several processes, and the others may be gone: the threads of their group, which an error
        # leaves running, would abort the interpreter at exit, and the launcher would print that instead of the error.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line, reports an error in one line, and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or os.environ.get("ULFAST_DEBUG") == "1"
    # Otherwise libgomp's threads spin between two kernels and take the cores from everything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if "WORLD_SIZE" in os.environ and not debug:  # our one line replaces torch's reports about its processes
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    state: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            if not debug:  # about damaged files, which we report in one line
                warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.|torch\._weights_only_unpickler")
            code = group.main(arguments, prog_name="ulfast", standalone_mode=False, color=colors(), obj=state)
        sys.stdout.flush()  # here, where a failure is handled
        return code if isinstance(code, int) else DONE
    except HELP_WANTED as asked:
        click.echo(asked.ctx.get_help())
        return DONE
    except (InputError, click.ClickException) as error:
        if debug:
            raise
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        where = getattr(error, "ctx", None)
        hint = f" (try `{where.command_path} --help`)" if where is not None else ""
        complain(f"{' '.join(message.split())}{hint}", error)
        return INPUT_WRONG
    except WorkerError as error:
        if debug:
            raise
        complain(str(error))
        return OUR_FAULT
    except (KeyboardInterrupt, click.Abort):
        how = state.get("resumes", str)()
        complain(
            f"interrupted; finished work is kept: {how} continues from there"
            if how
            else "interrupted; nothing was written"
        )
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        # `ulfast ls | head`: the reader is gone, which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # raised wherever any path is checked
            complain(f"{str(error.filename)[:60]}... is too long for a path: give a shorter one", error)
            return INPUT_WRONG
        text = " ".join(str(error).split()) or "no message"
        complain(
            f"internal error, {type(error).__name__}: {text[:300]}; run again with --debug for the traceback", error
        )
        return OUR_FAULT


def colors() -> bool | None:
    """False if NO_COLOR is set (no-color.org), None to decide by the terminal. Rich checks NO_COLOR by itself."""
    return False if os.environ.get("NO_COLOR") else None


def complain(text: str, error: BaseException | None = None) -> None:
    """Prints one line on stderr; in one of several processes, hands it to the launcher to print."""
    from .common import printable

    text = printable(text)
    if error is not None and "TORCHELASTIC_ERROR_FILE" in os.environ:
        from .. import distributed

        if distributed.tell_launcher(text, error):
            return
        text = f"process {os.environ.get('RANK', '?')}: {text}"
    click.echo(f"{click.style('ulfast:', fg='red', bold=True)} {text}", err=True, color=colors())
