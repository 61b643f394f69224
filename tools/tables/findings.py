"""Tables of the experiments on poisons: what is separable, what is found, what is undone."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from .lines import machine, machines, rows


def separability(result: dict[str, Any]) -> list[str]:
    """What experiments/separability.py wrote."""
    body = []
    for name, row in result["results"].items():
        ended = "converged" if row["converged"] else "stopped"
        share = f"{100 * row['accuracy']:.1f} %"
        body.append([f"`{name}`", share, f"{row['evaluations']:,} ({ended})", f"{row['loss']:.3g}"])
    return [
        *rows(["perturbations of", "train accuracy", "evaluations", "loss"], body),
        "",
        f"`python experiments/separability.py`: {result['images']:,} images of {result['data']}, at most "
        f"{result['steps']} steps of 20 evaluations, seed {result['seed']}; {machine(result['environment'])}.",
    ]


def deconvolution(result: dict[str, Any]) -> list[str]:
    """What experiments/deconvolution.py wrote."""
    body = []
    for row in result["rows"]:
        size = f"{row['name']}, {row['images']:,} images of {row['shape'][0]} px, {row['classes']} classes"
        wrong = "" if row["false"] is None else f"{100 * row['false']:.1f} %"
        body.append(
            [
                size,
                f"{100 * row['rate']:.0f} %",
                f"{100 * row['clean_share']:.1f} %",
                f"{100 * row['share']:.1f} %",
                f"{row['kernel_error_mean']:.3f}",
                f"{100 * row['found']:.1f} %",
                wrong,
                f"{row['psnr_before']:.1f}",
                f"{row['psnr_after']:.1f} ({row['psnr_after_least']:.1f})",
            ]
        )
    head = ["images", "poisoned", "dark borders: clean", "poisoned", "error of a weight", "found", "wrongly found"]
    head += ["PSNR poisoned, dB", "restored (worst class)"]
    return [
        *rows(head, body),
        "",
        f"`python experiments/deconvolution.py`: seed {result['seed']}; {machine(result['environment'])}.",
    ]


def centring(result: dict[str, Any]) -> list[str]:
    """What experiments/centring.py wrote."""
    edges = result["edges"]
    spans = [f"{a} to {b - 1}" for a, b in itertools.pairwise(edges)] + [f"from {edges[-1]}"]
    body = [
        [
            f"{row['data']}, {row['images']:,} images, {row['classes']} classes" if row["poison"] == "clean" else "",
            row["poison"],
            *(f"{value:.3f}" for value in row["ratios"]),
            f"{row['few']:.4f}",
            f"{row['norm']:.2f}",
            f"{row['projection_takes']:.3f}",
        ]
        for row in result["rows"]
    ]
    body.append(["photographs at most, beside 1 / m", "", *(f"{value:.3f}" for value in result["law"]), "", "", ""])
    whole = ", ".join(f"{row['poison']} {100 * row['test_accuracy']:.1f}" for row in result["whole"])
    return [
        *rows(["data", "poison", *spans, "1 / m", "norm subtracted", "a projection takes"], body),
        "",
        f"`python experiments/centring.py`: seed {result['seed']}; {machine(result['environment'])}. With the whole"
        f" difference subtracted `cnn` reaches, on the sample images: {whole} (%).",
    ]


def unlearned(result: dict[str, Any]) -> list[str]:
    """What experiments/unlearned.py wrote."""
    body = [[row["noise"], f"{100 * row['test_accuracy']:.1f}", row["verdict"]] for row in result["rows"]]
    return [
        *rows(["noise", "test accuracy, %", "`diagnose`"], body),
        "",
        f"`python experiments/unlearned.py`: `{result['model']}`, recipe `{result['recipe']}`, {result['images']:,}"
        f" sample images, seed {result['seed']}; {machine(result['environment'])}.",
    ]


def diagnosis(result: dict[str, Any]) -> list[str]:
    """What experiments/diagnosis.py --plain wrote: evidence and verdicts."""
    body = []
    for row in result["rows"]:
        wrong = row["verdict"] == ("clean" if row["poisoned"] else "poisoned")
        verdict = f"*{row['verdict']}*" if wrong else row["verdict"]
        values = [f"{evidence['value']:.3g}" for evidence in row["evidence"]]
        body.append([row["name"], *values, verdict, row["suggested_attack"]])
    head = ["data", *(evidence["name"] for evidence in result["rows"][0]["evidence"]), "verdict", "suggested"]
    about = (
        f"{result['images']:,} images of {result['data']} at {result['image_shape'][0]} px, {result['classes']} classes"
    )
    return [*rows(head, body), "", f"{about}; {machine(result['environment'])}."]


def looked(result: dict[str, Any]) -> list[str]:
    """The same, with the time that it took."""
    table = diagnosis(result)
    count = len(result["rows"])
    seconds = sum(row["processor_seconds"] for row in result["rows"]) / count
    how = next((f"{key} {result[key]} px" for key in ("centre", "shrink") if result[key]), "whole images")
    return [*table[: 2 + count], "", f"{how}: {seconds:.0f} processor seconds per set. {table[-1]}"]


def detectors(result: dict[str, Any], part: Any = ("sets",)) -> list[str]:
    """What experiments/detectors.py wrote: `part=sets`, the verdicts; `part=images`, the errors; `part=costs`."""
    cells = {(cell["set"], cell["rate"], cell["seed"], cell["detector"]): cell for cell in result["cells"]}
    names = list(result["settings"])

    def verdict(cell: dict[str, Any] | None) -> str:
        if cell is None:
            return ""
        wrong = cell["verdict"] == ("clean" if cell["rate"] else "poisoned")
        said = f"*{cell['verdict']}*" if wrong else cell["verdict"]
        return f"{said} ({cell['accuracy']:.2f})" if "accuracy" in cell else said

    def errors(cell: dict[str, Any] | None) -> list[str]:
        keys = ("false_alarms", "misses", "half_total")
        return ["" if cell is None or cell[key] is None else f"{cell[key]:.3f}" for key in keys]

    if part[0] == "sets":
        columns = [name for name in names if any("verdict" in cells[key] for key in cells if key[3] == name)]
        body = []
        for name, rate, seed in dict.fromkeys(key[:3] for key in cells if key[3] != "diagnose"):
            row = [cells.get((name, rate, seed, detector)) for detector in columns]
            if any(cell is not None for cell in row[1:]):
                about = f"{name}, seed {seed}" if seed else f"{name}, rate {rate:g}" if 0 < rate < 1 else name
                body.append([about, *map(verdict, row)])
        return rows(["set", *columns], body)
    if part[0] == "images":
        body = []
        keys = [key[:3] for key in cells if key[3] == "iterative filtering"]
        names = list(dict.fromkeys(name for name, _, _ in keys))
        for name, rate, seed in sorted(keys, key=lambda key: (names.index(key[0]), -key[1])):
            ours, filtering = (cells.get((name, rate, seed, key)) for key in ("diagnose", "iterative filtering"))
            body.append([name, f"{rate:g}" if rate else "", verdict(ours), *errors(ours), *errors(filtering)])
        head = [
            f"{who}: {what}" for who in ("marked", "filtering") for what in ("false alarms", "misses", "half total")
        ]
        return rows(["poison", "rate", "verdict of `diagnose`", *head], body)
    body = []
    for name, settings in result["settings"].items():
        whole = [cell for key, cell in cells.items() if key[3] == name and cell["images"] == result["images"]]
        spent = [cell["processor_seconds"] for cell in whole]
        how = ", ".join(f"{key} {value}" for key, value in settings.items())
        body.append([name, how, f"{statistics.median(spent):.1f}"])
    about = (
        f"{result['images']:,} images of {result['data']}, fewer in halves, few classes and digits; poisons of seed 0"
    )
    made = machines(result["environments"])
    table = rows(["detector", "settings", "processor seconds per set (median)"], body)
    return [*table, "", f"`python experiments/detectors.py`: {about}, on a machine that other work shared; {made}."]


def rules(result: dict[str, Any]) -> list[str]:
    """The same: what the linear fit holds from either start, and what `partial` removes of its directions."""
    body = []
    for row in result["rows"]:
        if "class_means_zero" not in row:
            continue
        shares = [
            f"{100 * row[f'{part}_zero']:.0f} / {100 * row[f'{part}_torch']:.0f} %" if f"{part}_zero" in row else ""
            for part in ("perturbation", "class_means")
        ]
        removed = f"{100 * row['removed_mean']:.0f} % ({100 * row['removed_least']:.0f} %)"
        body.append([row["name"], *shares, removed, f"{row['levels']:.1f}"])
    head = ["data", "perturbation held: zero / random start", "class means held", "`partial` removes (least)", "levels"]
    return rows(head, body)
