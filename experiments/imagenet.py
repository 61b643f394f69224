"""The whole path at ImageNet's shape: 224 px, 1,000 classes, d = 150,528, and as many images as there is time for.

    python experiments/imagenet.py [--images 2000 4000] [--model resnet18-16] [--json FILE]

Makes a folder of JPEGs (coarse colours of the class, grain of the image), then runs one command of `ulfast` a stage,
each in a process of its own: `data convert` to .beton, `fit`, `attack` for one epoch; then `poison` from the JPEGs.
Images are decoded when they are needed, as they are for a set that does not fit into memory. Printed: seconds,
milliseconds per image, and the largest memory that the process took; with two counts of images, that it does not grow.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import simplejpeg

from ulfast.runtime import environment

SIDE, CLASSES, QUALITY = 224, 1000, 90
FIT_STEPS, FIT_BATCH = 20, 256


def make(folder: Path, n: int, test: int) -> int:
    """`n` training and `test` test images as JPEG; returns the training set's bytes."""
    colours = np.random.default_rng(0).integers(40, 216, (CLASSES, 4, 4, 3))
    total = 0
    for split, count in (("train", n), ("val", test)):
        for i in range(count):
            rng = np.random.default_rng((split == "val", i))
            label = i % CLASSES
            coarse = colours[label].repeat(2, 0).repeat(2, 1) + rng.integers(-40, 41, (8, 8, 3))
            image = coarse.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1) + rng.integers(-6, 7, (SIDE, SIDE, 3))
            path = folder / split / f"{label:04d}" / f"{i:07d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            data = simplejpeg.encode_jpeg(image.clip(0, 255).astype(np.uint8), QUALITY, colorsubsampling="420")
            path.write_bytes(data)
            total += len(data) if split == "train" else 0
    return total


def run(stage: str, images: int, *words: str) -> dict:
    """One command in a process of its own: seconds by the clock, peak resident memory, what it printed as JSON."""
    command = [sys.executable, "-m", "ulfast", *words, "--json", "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{stage} ended with {process.returncode}: {' '.join(command)}")
    row = {
        "stage": stage,
        "command": " ".join(["ulfast", *words]),
        "images": images,
        "seconds": seconds,
        "ms_an_image": 1000 * seconds / images,
        "peak_mb": usage.ru_maxrss / 1024,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "result": json.loads(output),
    }
    print(f"| {stage} | {images:,} | {seconds:.1f} | {row['ms_an_image']:.2f} | {row['peak_mb']:,.0f} |", flush=True)
    return row


def path(folder: Path, n: int, model: str) -> list[dict]:
    """All stages for `n` images."""
    size = make(folder / "jpegs", n, CLASSES)
    beton, basis = folder / "x.beton", folder / "basis.safetensors"
    rows = [
        run("convert", n + CLASSES, "data", "convert", str(folder / "jpegs"), "--mode", "jpeg", "--out", str(beton)),
        run(
            "fit",
            FIT_STEPS * FIT_BATCH + n,
            "fit",
            "--data",
            str(beton),
            "--steps",
            str(FIT_STEPS),
            "--out",
            str(basis),
        ),
        run(
            "attack",
            n,
            "attack",
            "--data",
            str(beton),
            "--basis",
            str(basis),
            "--model",
            model,
            "--epochs",
            "1",
            "--out",
            str(folder / "run"),
        ),
        run("poison", n, "poison", "--method", "lsp", "--data", str(folder / "jpegs"), "--out", str(folder / "lsp")),
    ]
    for row in rows:
        row |= {"training_images": n, "jpeg_bytes_an_image": size / n}
    return json.loads(json.dumps(rows).replace(str(folder), "WORK"))  # a folder that is gone by then


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 4000], metavar="N")
    parser.add_argument("--model", default="resnet18-16")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["ULFAST_STREAM_BYTES"] = "0"
    if options.json:  # found out now, not after minutes
        options.json.parent.mkdir(parents=True, exist_ok=True)
    about = environment.describe()
    print("| stage | images | seconds | ms per image | peak MB |\n|---|---|---|---|---|")
    rows = []
    for n in options.images:
        with tempfile.TemporaryDirectory(prefix="ulfast-imagenet-") as folder:
            rows += path(Path(folder), n, options.model)
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "model": options.model, "stages": rows}, indent=1))


if __name__ == "__main__":
    main()
