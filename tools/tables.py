"""The tables of README.md and docs/: what stands in a result file, as lines of Markdown. results.py puts them there."""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def rows(head: list[str], body: Iterable[list[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *body)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def machine(about: dict[str, Any]) -> str:
    """The environment of a result, in a few words."""
    where = about.get("gpu") or f"{about['cpu']} ({about['cpu_level']}), {about['threads']} threads"
    commit = f", commit {about['commit']}" if about.get("commit") else ""
    return f"{where}, torch {about['torch']}, ulfast {about['ulfast']}{commit}"


def grid(
    result: dict[str, Any],
    poisons: Any = None,
    attacks: Any = None,
    models: Any = None,
    short: Any = None,
    regret: Any = None,
) -> list[str]:
    """Poisons x attacks of a grid, and how it was made; `short=1` leaves that out. `regret=auto` adds, for one model,
    how far that attack is below the best of all.
    """
    asked = result["grid"]
    poisons = poisons or [poison["label"] for poison in asked["poisons"]]
    attacks = attacks or [attack["label"] for attack in asked["attacks"]]
    models = models or asked["models"]
    found = {(row["poison"], row["attack"], row["model"]): row for row in result["rows"]}

    def accuracy(row: dict[str, Any] | None) -> str:
        if row is None:
            return ""
        spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
        return f"{100 * row['mean']:.1f}{spread}"

    columns = [(model, attack) for model in models for attack in attacks]
    named = [f"`{model}`: {attack}" if len(models) > 1 else attack for model, attack in columns]
    body = [
        [poison, *(accuracy(found.get((poison, attack, model))) for model, attack in columns)] for poison in poisons
    ]
    if regret:
        (chosen,), (model,) = regret, models
        named.append(f"best less {chosen}")
        for poison, line in zip(poisons, body, strict=True):
            cells = [found.get((poison, attack, model)) for attack in attacks]
            best = max(row["mean"] for row in cells if row is not None)
            line.append(f"{100 * (best - found[poison, chosen, model]['mean']):.1f}")
    table = rows(["trained on", *named], body)
    if short:
        return table
    images = f"{asked['limit']:,} images of {asked['data']}" if asked["limit"] else f"all images of {asked['data']}"
    images += f" at {asked['resize']} px" if asked.get("resize") else ""
    model = f"`{models[0]}`, " if len(models) == 1 else ""
    epochs = f", {asked['epochs']} epochs" if asked.get("epochs") else ""
    seeds = asked["seeds"]
    count = "one seed" if len(seeds) == 1 else f"mean ± standard deviation of {len(seeds)} seeds"
    minutes = sum(row["seconds"] * len(row["seeds"]) for row in result["rows"]) / 60
    cells = sum(len(row["seeds"]) for row in result["rows"])
    made = "; ".join(machine(about) for about in result.get("environments", []))
    return [
        *table,
        "",
        f"`ulfast reproduce {asked['name']}`: {model}recipe `{asked['recipe']}`{epochs}, {images}, {count}; clean test "
        f"accuracy in %. {cells} trainings of {minutes / cells:.1f} minutes on average{f'; {made}' if made else ''}.",
    ]


def attack(result: dict[str, Any], short: Any = None) -> list[str]:
    """One attack with its baselines; `short=1` leaves out how it was made."""
    head = ["trained on", "test accuracy", "train accuracy"]
    names = {"clean": "clean images", "poisoned": f"poisoned images ({result['poison']})"}
    body = [
        [name, f"{100 * result['baselines'][key]:.1f} %", f"{100 * result['baseline_train'][key]:.1f} %"]
        for key, name in names.items()
    ]
    last = [f"{100 * result[key]:.1f} %" for key in ("test_accuracy", "train_accuracy")]
    body.append([f"poisoned images, {result['method']}", *last])
    if short:
        return rows(head, body)
    about = (
        f"`{result['model']}`, recipe `{result['recipe']}`, seed {result['seed']}; {machine(result['environment'])}."
    )
    return [*rows(head, body), "", about]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f}"


def times(ratio: float) -> str:
    return f"{ratio:,.{0 if ratio >= 100 else 1}f}"


def speed(result: dict[str, Any], cases: Any = None) -> list[str]:
    """What benchmarks/run.py --json wrote: all cases with how they were measured, or the main columns of some."""
    from ulfast import ops

    body = []
    for row in result["rows"]:
        first, _, rest = row["case"].replace(" x ", " × ").partition(" ")
        case = " ".join([f"`{first}`" if hasattr(ops, first) else first, rest]).strip()
        ours, peer = (milliseconds(row["seconds"][row[key]]) for key in ("ours", "best_peer"))
        if cases is None:
            roof = f"{row['x_roof']:.2f}" if row["x_roof"] is not None else ""
            peer = f"{peer} ({row['best_peer']})"
            body.append([case, ours, peer, times(row["x_best"]), times(row["x_plain"]), roof])
        elif row["key"] in cases:
            body.append([case, ours, peer, times(row["x_best"])])
    about, top = result["environment"], result["roof"]
    if cases is not None:
        level = {"v4": "AVX-512", "v3": "AVX2"}.get(about["cpu_level"], about["cpu_level"])
        return rows([f"{about['threads']} threads, {level}", "ours, ms", "best peer, ms", "×"], body)
    measured = f"copy {top['copy_bytes_per_s'] / 1e9:.0f} GB/s, sgemm {top['sgemm_flops_per_s'] / 1e9:.0f} GFLOP/s"
    return [
        *rows(["", "ours, ms", "best peer, ms", "× best", "× plain", "of roof"], body),
        "",
        f"`python benchmarks/run.py --compile`: {machine(about)}; {measured}.",
    ]


def loaders(result: dict[str, Any]) -> list[str]:
    """What benchmarks/loaders.py --json wrote: a column per set."""
    titles = {"raw32": "raw, 32 px", "raw224": "raw, 224 px", "jpeg224": "JPEG 90, 224 px"}
    rates: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        rates.setdefault(row["loader"], {})[row["set"]] = f"{row['rate']:,.0f}"
    sets = list(dict.fromkeys(row["set"] for row in result["rows"]))
    counts = {row["set"]: row["images"] for row in result["rows"]}
    rounds = {row["set"]: len(row["seconds"]) for row in result["rows"] if "seconds" in row}
    body = [[name, *(found.get(one, "") for one in sets)] for name, found in rates.items()]
    each = ", ".join(f"{counts[one]:,} ({titles[one]}; {rounds[one]} rounds)" for one in sets)
    return [
        *rows(["images per second", *(titles[one] for one in sets)], body),
        "",
        f"`python benchmarks/loaders.py`: medians over passes of {each}; {machine(result['environment'])}.",
    ]


def gpu(result: dict[str, Any]) -> list[str]:
    """What benchmarks/gpu.sh measure wrote: time, share of a copy's speed, and how much longer PyTorch takes."""
    body = []
    for row in result["rows"]:
        ratio = {name: f"{value:.1f}" for name, value in row["ratio"].items()}
        peers = [ratio.get(name, "") for name in ("eager", "compile", "addmm")]
        body.append([row["case"], f"{1e6 * row['seconds']['ulfast']:.1f}", f"{row['of_copy']:.2f}", *peers])
    about = result["environment"]
    head = ["case", "µs", "share of a copy", "× PyTorch, eager", "× `torch.compile`", "× `addmm`"]
    return [*rows(head, body), "", f"{machine(about)}, driver {about['driver']}, CUDA {about['cuda']}."]


def gpu_train(result: dict[str, Any]) -> list[str]:
    """What benchmarks/gpu_train.py wrote."""
    body = []
    for cell in result["cells"]:
        seconds = [f"{cell['seconds'][part]:.1f}" for part in ("attack", "fit", "train")]
        body.append([cell["name"], f"{100 * cell['test_accuracy']:.2f}", *seconds])
    head = ["poison, attack, recipe", "test accuracy, %", "seconds in all", "fit", "training"]
    return [*rows(head, body), "", f"{machine(result['environment'])}; {result['data']}."]


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
    made = "; ".join(machine(one) for one in result["environments"])
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


KINDS: dict[str, Callable[..., list[str]]] = {
    "grid": grid,
    "attack": attack,
    "speed": speed,
    "loaders": loaders,
    "gpu": gpu,
    "gpu-train": gpu_train,
    "separability": separability,
    "imagenet": imagenet,
    "deconvolution": deconvolution,
    "centring": centring,
    "unlearned": unlearned,
    "looks": looks,
    "campaign": campaign,
    "compat": compat,
    "photographs": photographs,
    "after-jpeg": after_jpeg,
    "full-size": full_size,
    "diagnosis": diagnosis,
    "looked": looked,
    "detectors": detectors,
    "rules": rules,
    "plan": plan,
}
