"""The pages that are generated when the site is built (a MkDocs hook): the command line, the Python API, the operators,
the parameters of poisons and attacks, and the files of the repository's root that belong to the site."""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def cell(text: object) -> str:
    """Text for a table cell. Code is written as HTML, where a bar can be an entity."""
    escaped = html.escape(str(text), quote=False).replace("|", "&#124;")
    return re.sub("`([^`]+)`", r"<code>\1</code>", escaped)


def command_line() -> str:
    """Every verb: its purpose, examples, options."""
    from ulfast.cli.main import VERBS, group

    root = click.Context(group, info_name="ulfast")
    lines = ["# Command line", "", "The same texts are in `ulfast VERB --help`.", ""]
    lines += ["| verb | |", "|---|---|"]
    lines += [f"| [`{name}`](#ulfast-{name}) | {cell(about)} |" for name, (_, about) in VERBS.items()]
    for name in VERBS:
        command = group.get_command(root, name)
        assert command is not None
        lines += verb(click.Context(command, root, info_name=name), 2)
    return "\n".join(lines) + "\n"


def verb(context: click.Context, level: int) -> Iterator[str]:
    """A verb, and the verbs below it."""
    command = context.command
    slug = context.command_path.replace(" ", "-")
    yield from ("", f"{'#' * level} {context.command_path} {{ #{slug} }}", "")
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    yield from (text.strip(), "")
    if examples:
        yield from ("```sh", examples.strip(), "```", "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from (f"Usage: `{context.command_path} {usage}`", "")
    options = [option.get_help_record(context) for option in command.get_params(context)]
    records = [record for record in options if record is not None]
    if records:
        yield from ("| option | |", "|---|---|")
        yield from (f"| {cell(f'`{names}`')} | {cell(about)} |" for names, about in records)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from verb(click.Context(below, context, info_name=name), level + 1)


TITLES = {
    "ops": "Operators",
    "projection": "Fits and layers",
    "data": "Data",
    "poisons": "Poisons",
    "attacks": "Attacks",
    "analysis": "Diagnosis",
    "grids": "Grids",
    "transforms": "Transforms",
    "distributed": "Several processes",
}


def python_api() -> str:
    """Every public name, by the package that it lives in."""
    import ulfast

    lines = ["# Python API", "", "Everything below is `ulfast.NAME`, and is imported at its first use.", ""]
    names = {home: [n for n, h in ulfast._HOME.items() if h == home] for home in TITLES}
    assert sum(map(len, names.values())) == len(ulfast._HOME)
    for home, title in TITLES.items():
        lines += [f"## {title}", ""]
        for name in names[home]:
            lines += [f"::: ulfast.{name}", ""]
            if name == "ops":
                lines[-1:] = ["    options: {members: false}", "", "[All operators](operators.md).", ""]
        if home == "analysis":  # not among the names of ulfast: they are there to compare with
            lines += ["::: ulfast.analysis.detectors", ""]
    lines += ["## Errors", ""]
    for name in ("InputError", "ExtensionError", "WorkerError"):
        lines += [f"::: ulfast.{name}", ""]
    return "\n".join(lines)


def operators() -> str:
    """Every operator of `ulfast.ops`: where its kernels are, and its documentation."""
    from ulfast.ops import schemas

    lines = [
        "# Operators",
        "",
        "All are in `ulfast.ops` and, by the same names, in `torch.ops.ulfast`. [The kernels](../guide/kernels.md) "
        "tells what they have in common. The twins in PyTorch are in `ulfast/ops/reference.py`.",
        "",
        "| operator | CPU | CUDA |",
        "|---|---|---|",
    ]
    for name in schemas.__all__:
        where = [kernel(folder, name) for folder in ("cpu", "cuda")]
        lines.append(f"| [`{name}`](#ulfast.ops.schemas.{name}) | {where[0]} | {where[1]} |")
    for name in schemas.__all__:
        lines += ["", f"::: ulfast.ops.schemas.{name}", "    options:", "      heading_level: 2"]
    return "\n".join(lines) + "\n"


def kernel(folder: str, name: str) -> str:
    """The file of an operator's kernel."""
    import torch

    base = re.sub(r"^(project|philox)_.*", r"\1", name)
    found = sorted((ROOT / "csrc" / folder).glob(f"{base}.c*"))
    if found:
        return f"`{found[0].relative_to(ROOT)}`"
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"ulfast::{name}", folder.upper()):
        return "PyTorch's own kernels"
    return "the twin"


def methods(title: str, registry: dict[str, Any], guide: str) -> str:
    """The parameters of every poison or attack, which `--set` and Python take."""
    lines = [f"# {title}", "", f"`--set NAME=VALUE` sets a parameter. [The guide]({guide}) says how to use them."]
    for name, method in registry.items():
        about = f"{method.summary[0].upper()}{method.summary[1:]}."
        if method.source:
            about += f" Source: {method.source}."
        lines += ["", f"## {name}", "", about]
        fields = dataclasses.fields(method)
        if fields:
            lines += ["", "| parameter | default | |", "|---|---|---|"]
        for field in fields:
            value = getattr(method, field.name)
            shown = (
                f"{value:g}" if isinstance(value, float) else str(value).lower() if value in (True, False) else value
            )
            default = cell(f"`{shown}`") if shown != "" else ""
            lines.append(f"| `{field.name}` | {default} | {cell(field.metadata['help'])} |")
    return "\n".join(lines) + "\n"


def poisons() -> str:
    from ulfast.poisons import POISONS

    return methods("Poisons", POISONS, "../guide/poison.md")


def attacks() -> str:
    from ulfast.attacks import ATTACKS

    return methods("Attacks", ATTACKS, "../guide/attack.md")


def copied(name: str) -> Callable[[], str]:
    """A file of the root, with its links to pages rewritten."""
    return lambda: re.sub(r"\]\(docs/", "](../", (ROOT / name).read_text(encoding="utf-8"))


PAGES: dict[str, Callable[[], str]] = {
    "reference/cli.md": command_line,
    "reference/api.md": python_api,
    "reference/operators.md": operators,
    "reference/poisons.md": poisons,
    "reference/attacks.md": attacks,
    "develop/contributing.md": copied("CONTRIBUTING.md"),
    "develop/changes.md": copied("CHANGELOG.md"),
}
