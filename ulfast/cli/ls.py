"""`ulfast ls`."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from .common import Output, verb

KINDS = ("poisons", "attacks", "models", "recipes", "data", "formats")


@verb("ls", seed=False, device=False)
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--long", "-l", "long_", is_flag=True, help="Also show parameters and sources.")
def command(output: Output, kind: str | None, long_: bool) -> None:
    """List poisons, attacks, models, recipes, data sets and formats.

    \b
    ulfast ls
    ulfast ls attacks --long
    """
    everything = {name: _entries(name) for name in KINDS if kind in (None, name)}
    output.result(everything)
    if output.json:
        return
    for name, entries in everything.items():
        click.secho(name, bold=True)
        width = max(len(entry) for entry in entries)
        for entry, about in entries.items():
            aliases = f" (also {', '.join(about['aliases'])})" if about.get("aliases") else ""
            click.echo(f"  {entry:<{width}}  {about['summary']}{aliases}")
            if long_:
                if about.get("source"):
                    click.secho(f"  {'':<{width}}  {about['source']}", dim=True)
                for key, parameter in about.get("parameters", {}).items():
                    click.echo(f"  {'':<{width}}    {key} = {parameter['default']}: {parameter['help']}")


def _entries(kind: str) -> dict[str, dict[str, Any]]:
    if kind == "poisons":
        from ..poisons import POISONS

        return {name: _method(method) for name, method in POISONS.items()}
    if kind == "attacks":
        from ..attacks import ATTACKS

        return {name: _method(method) for name, method in ATTACKS.items()}
    if kind == "models":
        from ..training import MODELS

        patterns = {"resnet18-WIDTH": {"summary": "any width"}, "timm:NAME": {"summary": "any network of timm"}}
        return {name: {"summary": text} for name, (_, text) in MODELS.items()} | patterns
    if kind == "recipes":
        from ..training import RECIPES

        return {name: {"summary": text} for name, (_, text) in RECIPES.items()}
    if kind == "data":
        from ..data import NAMES

        return {name: {"summary": source.summary, "aliases": list(source.aliases)} for name, source in NAMES.items()}
    from ..data import READERS

    return {name: {"summary": reader.summary} for name, reader in READERS.items()}


def _method(method: Any) -> dict[str, Any]:
    parameters = {
        f.name: {"default": getattr(method, f.name), "help": f.metadata["help"]} for f in dataclasses.fields(method)
    }
    return {
        "summary": method.summary,
        "source": method.source,
        "aliases": list(method.aliases),
        "parameters": parameters,
    }
