"""The cost of the whole path beyond this machine: bytes, flops and seconds for ImageNet-1k and 14 million images.

    python experiments/scale.py [--measured benchmarks/results/imagenet-photographs.json]

Every input is printed with where it comes from: `measured` by experiments/imagenet.py --data --full, or `assumed`.
Change them here or by --set NAME=VALUE. A stage takes the longest of what it reads, decodes and computes, as these
overlap.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "imagenet-photographs.json"
SIDE, CHANNELS = 224, 3
D = SIDE * SIDE * CHANNELS
SETS = {"ImageNet-1k": (1_281_167, 1000), "14 M images": (14_000_000, 1000)}
GPUS = (1, 8, 64)
# The linear fit counts images, not passes: three times ImageNet-1k, in batches of 1,024.
FIT_TOTAL, FIT_BATCH = 3 * 1_281_167, 1024
EPOCHS = 90


@dataclass(frozen=True)
class Input:
    value: float
    unit: str
    origin: str


def inputs(measured: dict | None) -> dict[str, Input]:
    """Rates; those of a stage on two processor cores come from the run at ImageNet's shape."""
    table = {
        "jpeg_bytes": Input(110e3, "bytes per image", "assumed: ImageNet's training set is 138 GB"),
        "disk": Input(2e9, "bytes/s a node", "assumed: one NVMe drive"),
        "cores": Input(12, "cores per GPU", "assumed: 96 cores for 8 GPUs"),
        "decode": Input(400, "images/s a core", "assumed; see the measured stages"),
        "gpu_flops": Input(400e12, "bf16 flop/s a GPU", "assumed: half of an H100's peak"),
        "train_share": Input(0.35, "of gpu_flops", "assumed: ResNet-50 in channels_last"),
        "link": Input(300e9, "bytes/s", "assumed: all-reduce between GPUs of a node"),
        "network": Input(40e9, "bytes/s", "assumed: all-reduce between nodes"),
        "model_flops": Input(3 * 2 * 4.1e9, "flop an image", "ResNet-50 at 224 px, forward and backward"),
        "generate": Input(400, "images/s a core", "assumed: a generator and a JPEG encoder"),
    }
    if measured:
        stages = {row["stage"]: row for row in measured["stages"]}
        start = stages["start-up"]["processor_seconds"]
        origin = f"measured ({MEASURED.name}): {{}}, a thread of {measured['environment']['cpu']}"

        def each(stage: str) -> float:
            """Processor seconds per image, start-up left out."""
            return (stages[stage]["processor_seconds"] - start) / stages[stage]["images"]

        full = measured["full"]
        files = f"measured ({MEASURED.name}): mean of {full['files']} files as they come"
        table["jpeg_bytes"] = Input(full["bytes"], "bytes per image", files)
        square = next(row["ms"] for row in full["costs"] if row["what"] == "ulfast, 224 px")
        table["decode"] = Input(1000 / square, "images/s a core", origin.format("whole files to 224 px"))
        # To arrays it decodes small files; whole ones take what is above.
        alone = next(row for row in measured["stages"] if row["stage"] == "simplejpeg alone")
        made = each("lsp to arrays") - alone["processor_seconds"] / alone["images"] + each("lsp to JPEG 90")
        rate = 1 / (max(made, 0) + square / 1000)
        table["generate"] = Input(rate, "images/s a core", origin.format("decoding, lsp and JPEG 90"))
    return table


def stages(n: int, classes: int, gpus: int, x: dict[str, Input]) -> list[dict]:
    """Bytes read, flops and seconds of each stage."""
    v = {name: entry.value for name, entry in x.items()}
    nodes = max(1, gpus // 8)
    k = classes - 1
    cores = v["cores"] * gpus
    read = n * v["jpeg_bytes"] / (nodes * v["disk"])
    decode = n / (cores * v["decode"])
    weights = classes * D * 4
    # A ring moves twice the weights through every link; a single GPU communicates nothing.
    exchange = 0.0 if gpus == 1 else 2 * weights / (v["link"] if nodes == 1 else v["network"])
    steps = FIT_TOTAL / FIT_BATCH
    fit_flops = FIT_TOTAL * 2 * 2 * classes * D
    project = n * 2 * 2 * k * D
    image = v["jpeg_bytes"]
    computing = (n * v["model_flops"] / v["train_share"] + project) / (gpus * v["gpu_flops"])

    def row(stage: str, passed: float, flops: float, seconds: float) -> dict:
        return {"stage": stage, "bytes": passed, "flops": flops, "seconds": seconds}

    out = [
        row("poison, to JPEG", 2 * n * image, 0, max(2 * read, n / (cores * v["generate"]))),
        row("convert to .beton (jpeg)", 2 * n * image, 0, max(2 * read, decode)),
        row(
            "fit, 3.8 M images",
            FIT_TOTAL * image,
            fit_flops,
            max(max(read, decode) / n * FIT_TOTAL, fit_flops / (gpus * v["gpu_flops"]) + steps * exchange),
        ),
        row(f"an epoch, projected (k = {k})", n * image, n * v["model_flops"] + project, max(read, decode, computing)),
    ]
    epoch = out[-1]
    out.append({"stage": f"{EPOCHS} epochs", **{key: EPOCHS * epoch[key] for key in ("bytes", "flops", "seconds")}})
    return out


def span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=Path, default=MEASURED)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of an input")
    options = parser.parse_args()
    table = inputs(json.loads(options.measured.read_text()) if options.measured.is_file() else None)
    for word in options.set:
        name, _, value = word.partition("=")
        if name not in table:
            parser.error(f"unknown input {name!r}: known are {', '.join(table)}")
        table[name] = Input(float(value), table[name].unit, "given")
    print("| input | value | unit | where from |\n|---|---|---|---|")
    for name, entry in table.items():
        print(f"| {name} | {entry.value:,.4g} | {entry.unit} | {entry.origin} |")
    for title, (n, classes) in SETS.items():
        print(f"\n{title}: {n:,} images of {SIDE} px, {classes:,} classes, d = {D:,}\n")
        print(
            "| stage | bytes read and written | flop | " + " | ".join(f"{g} GPU" + "s" * (g > 1) for g in GPUS) + " |"
        )
        print("|---|---|---|" + "---|" * len(GPUS))
        columns = [stages(n, classes, g, table) for g in GPUS]
        for rows in zip(*columns, strict=True):
            first = rows[0]
            times = " | ".join(span(row["seconds"]) for row in rows)
            print(f"| {first['stage']} | {first['bytes'] / 1e12:.2f} TB | {first['flops']:.1e} | {times} |")


if __name__ == "__main__":
    main()
