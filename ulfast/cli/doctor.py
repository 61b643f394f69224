"""`ulfast doctor`."""

from __future__ import annotations

from typing import Any

import click

from .common import Output, verb


@verb("doctor", seed=False, device=False)
def command(output: Output) -> None:
    """Check the installation: versions, kernels (each against its readable twin), threads, GPU, optional parts.

    The exit code is 1 if something is broken.
    """
    from ..profiling.doctor import examine

    report: dict[str, Any] = examine()
    output.result(report)
    if not output.json:
        for check in report["checks"]:
            mark = click.style("ok  ", fg="green") if check["ok"] else click.style("FAIL", fg="red", bold=True)
            if check["ok"] is None:
                mark = click.style("-   ", dim=True)
            click.echo(f"{mark} {check['name']:<22} {check['text']}")
    if not report["ok"]:
        broken = ", ".join(check["name"] for check in report["checks"] if check["ok"] is False)
        output.remark(f"broken: {broken}")
        raise SystemExit(1)
