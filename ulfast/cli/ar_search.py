"""`ulfast poison ar-search`."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .common import Output, verb


@verb("ar-search", device=False)
@click.option(
    "--classes", type=click.IntRange(2), default=10, show_default=True, help="Number of processes (classes) to find."
)
@click.option("--size", type=click.IntRange(8), default=32, show_default=True, help="Side of the images, in pixels.")
@click.option(
    "--channels", type=click.Choice(["1", "3"]), default="3", show_default=True, help="Channels of the images."
)
@click.option("--check", type=click.Path(path_type=Path), help="Judge this set of windows instead of finding one.")
@click.option("--out", "-o", type=click.Path(path_type=Path), help="JSON file for the windows.")
@click.option("--overwrite", is_flag=True, help="Replace --out.")
def command(
    output: Output,
    classes: int,
    size: int,
    channels: str,
    check: Path | None,
    out: Path | None,
    overwrite: bool,
    seed: int,
) -> None:
    """Find stable, mutually distinguishable coefficient windows for the poison `ar`, or judge a set, by the published
    test: the channels' responses are summed before the positive part is taken, and must reach 10 at 32 px (3 for 100
    classes or more).

    \b
    ulfast poison ar-search --classes 100 --out windows.json
    ulfast poison --method ar --set coefficients=windows.json --data sample --out poisoned/
    ulfast poison ar-search --check params-classes-10-mr-10.pt
    """
    from ..poisons.ar import find_coefficients, judge, load_coefficients, save_coefficients
    from ..runtime.files import check_free

    if (out is None) == (check is None):
        raise InputError("give --out FILE.json for a new set, or --check FILE for an existing one")
    if check is not None:
        windows = load_coefficients(str(check), classes, int(channels))
    else:
        assert out is not None
        if out.suffix != ".json":
            raise InputError(f"--out {out} must end in .json")
        check_free(out, overwrite)
        output.claim(out)
        windows = find_coefficients(classes, seed, (size, size), int(channels), accept="published")
        out.parent.mkdir(parents=True, exist_ok=True)
        save_coefficients(windows, out)
    about = judge(windows, (size, size), seed)
    output.result(
        {
            "classes": len(windows),
            "size": size,
            "channels": int(channels),
            "seed": seed,
            "file": str(out or check),
            **about,
        }
    )
    output.say(f"{len(windows)} processes of {channels} windows for {size} px: {out or check}")
    output.say(
        f"largest signal norm {about['largest_norm']:.1f}; response of a process's own filter at most"
        f" {about['own_response']:.1e}, of an earlier one's at least {about['least_response']:.1f} (signals of norm 1;"
        f" {about['threshold']:.1f} is enough)"
    )
    if not about["stable"]:
        output.say("warning: not every process is stable at this size")
    elif not about["accepted"]:
        output.say("warning: the published test would not accept this set: two processes are too alike")
