"""Tables of large photographs, of large data sets, of hostile files and of other libraries."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .lines import machine, rows

ROOT = Path(__file__).resolve().parents[2]


def imagenet(result: dict[str, Any]) -> list[str]:
    """What experiments/imagenet.py wrote."""
    body = [
        [
            row["stage"],
            f"{row['images']:,}",
            f"{row['seconds']:.1f}",
            f"{row['ms_an_image']:.2f}",
            f"{row['peak_mb']:,.0f}",
        ]
        for row in result["stages"]
    ]
    head = ["stage", "images", "seconds", "ms per image", "peak MB"]
    return [*rows(head, body), "", f"`{result['model']}`; {machine(result['environment'])}."]


def looks(result: dict[str, Any]) -> list[str]:
    """What experiments/looks.py wrote."""
    peer = result["stages"][0]["processor_seconds"] / result["stages"][0]["images"]
    body = [
        [
            row["stage"],
            f"{row['images']:,}",
            f"{row['seconds']:.1f}",
            f"{row['processor_seconds']:.1f}",
            f"{row['processor_seconds'] / row['images'] / peer:.1f}",
        ]
        for row in result["stages"]
    ]
    head = ["stage", "images", "seconds", "processor seconds", "of simplejpeg's per image"]
    repeats = result["stages"][0]["repeats"]
    runs = "one run" if repeats == 1 else f"medians of {repeats} runs"
    about = f"`{result['data']}`, {runs}"
    return [*rows(head, body), "", f"{about}; {machine(result['environment'])}."]


def photographs(result: dict[str, Any]) -> list[str]:
    """What experiments/imagenet.py --data wrote: the stages."""
    alone = [row for row in result["stages"] if row["stage"] == "simplejpeg alone"]
    start = next(row for row in result["stages"] if row["stage"] == "start-up")
    # Decoding includes next to no start-up; of the other stages the same is left out.
    peer = sum(row["processor_seconds"] / row["images"] for row in alone) / len(alone)
    body = []
    for row in result["stages"]:
        images = f"{row['images']:,}" if row["images"] else ""
        apart = 0.0 if row in alone else start["processor_seconds"]
        each = (row["processor_seconds"] - apart) / max(1, row["images"])
        costs = [f"{1000 * each:.2f}", f"{each / peer:.1f}"] if row["images"] else ["", ""]
        body.append([row["stage"], images, f"{row['seconds']:.1f}", *costs, f"{row['peak_mb']:,.0f}"])
    head = ["stage", "images", "seconds", "processor ms per image", "× decoding", "peak MB"]
    about = (
        f"{result['training_images']:,} training and {result['test_images']:,} validation images of {result['data']}"
    )
    return [
        *rows(head, body),
        "",
        f"{about}, `{result['model']}`; {machine(result['environment'])}.",
    ]


def after_jpeg(result: dict[str, Any]) -> list[str]:
    """The same: what JPEG leaves of the perturbations."""
    body = []
    for row in result["after_jpeg"]:
        shares = [f"{100 * row[key]:.0f} %" for key in ("energy", "gain")]
        sizes = [f"{row[key] / 1000:.0f}" for key in ("png_bytes_an_image", "jpeg_bytes_an_image")]
        body.append([f"`{row['method']}`", f"{row['levels']:.1f}", *shares, f"{row['correlation']:.2f}", *sizes])
    head = [
        "perturbation",
        "levels (rms)",
        "energy left",
        "of it the perturbation",
        "correlation",
        "PNG, kB",
        "JPEG, kB",
    ]
    return [*rows(head, body), "", f"Medians over {result['after_jpeg'][0]['compared']} images."]


def full_size(result: dict[str, Any]) -> list[str]:
    """The same: costs of ImageNet's files as they come, and loaders over them."""
    full = result["full"]
    first = full["costs"][0]["ms"]
    body = []
    for row in full["costs"]:
        left = ""
        if "applies" in row:
            quality = f", PSNR {row['psnr_db']:.0f} dB, at worst {row['least_psnr_db']:.0f}" if "psnr_db" in row else ""
            left = f"{row['applies']} of {full['files']} files{quality}"
        body.append([row["what"], f"{row['ms']:.2f}", f"{row['ms'] / first:.1f}", left])
    ours, usual, ratio = (full["loaders"][key] for key in ("default loader", "DataLoader", "ratio"))
    return [
        *rows(["one thread", "processor ms per file", "× decoding", "scaled"], body),
        "",
        f"{full['files']} files of {full['bytes'] / 1000:.0f} kB, the shorter side {full['side']:.0f} px (median). Over"
        f" them the default loader makes {ours:.0f} images per second, a DataLoader with Pillow and a worker per core"
        f" {usual:.0f}: {ratio:.1f} times.",
    ]


def plan(result: dict[str, Any]) -> list[str]:
    """What experiments/scale.py computes from the measured rates of experiments/imagenet.py."""
    spec = importlib.util.spec_from_file_location("scale", ROOT / "experiments" / "scale.py")
    assert spec is not None
    assert spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = scale  # where its dataclass looks for itself
    spec.loader.exec_module(scale)
    table = scale.inputs(result)
    lines = rows(
        ["input", "value", "unit", "where from"],
        [[name, f"{one.value:,.4g}", one.unit, one.origin] for name, one in table.items()],
    )
    for title, (n, classes) in scale.SETS.items():
        columns = [scale.stages(n, classes, gpus, table) for gpus in scale.GPUS]
        body = [
            [
                each[0]["stage"],
                f"{each[0]['bytes'] / 1e12:.2f} TB",
                f"{each[0]['flops']:.1e}",
                *(scale.span(row["seconds"]) for row in each),
            ]
            for each in zip(*columns, strict=True)
        ]
        head = [title, "bytes read and written", "flop", *(f"{g} GPU{'s' * (g > 1)}" for g in scale.GPUS)]
        lines += ["", *rows(head, body)]
    return lines


def campaign(result: dict[str, Any]) -> list[str]:
    """What tools/campaign.sh --json wrote."""
    body, about = [], []
    for part, found in result["parts"].items():
        ends = ", ".join(f"{times:,} {end.replace('InputError', 'one line')}" for end, times in found["ends"].items())
        rate = found["tries"] / found["seconds"]
        hours = f"{found['seconds'] / 3600:.1f} h" if found["seconds"] >= 3600 else f"{found['seconds'] / 60:.0f} min"
        body.append([f"`{part}`", f"{found['tries']:,}", hours, f"{rate:.3g}", f"{len(found['findings']):,}", ends])
        made = f"{machine(found['environment'])}, seed {found['seed']}"
        about += [made] if made not in about else []
    head = ["part", "tries", "time", "a second", "findings", "how they ended"]
    return [*rows(head, body), "", f"`tools/campaign.sh`: {'; '.join(about)}; other work shared the machine."]


def compat(result: dict[str, Any]) -> list[str]:
    """What tools/compat.sh wrote: a column for each environment; libraries, examples and tests as rows."""
    made = result["environments"]

    def row(name: str, value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(value(one) for one in made)]

    def outcome(one: dict[str, Any], name: str) -> str:
        ran = one["examples"].get(name, {"outcome": ""})
        return f"{ran['outcome']}: {ran['reason']}" if "reason" in ran else ran["outcome"]

    def counts(one: dict[str, Any]) -> str:
        tests = one["tests"]
        return f"{tests['passed']:,} passed, {len(tests['failed'])} failed, {len(tests['skipped'])} skipped"

    packages = list(dict.fromkeys(name for one in made for name in one["packages"] if name != "torch"))
    examples = list(dict.fromkeys(name for one in made for name in one["examples"]))
    body = [row("Python", lambda one: one["python"])]
    body += [row(name, lambda one, name=name: one["packages"].get(name) or "not installed") for name in packages]
    body += [row(f"`{name}.py`", lambda one, name=name: outcome(one, name)) for name in examples]
    body += [row("tests", counts), row("commit", lambda one: one["commit"])]
    return rows(["torch", *(one["packages"]["torch"] for one in made)], body)
