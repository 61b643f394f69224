"""Tables of the benchmarks: kernels, loaders, GPUs."""

from __future__ import annotations

from typing import Any

from .lines import machine, milliseconds, rows, times


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
