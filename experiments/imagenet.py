"""The whole way at 224 px, a command of `ulfast` per stage, on photographs or on made-up images of 1,000 classes.

    python experiments/imagenet.py --data FOLDER [--images 2000] [--full FOLDER] [--out RESULTS.json]
    python experiments/imagenet.py [--images 2000 4000] [--out RESULTS.json]

FOLDER has train/CLASS/*.JPEG and val/CLASS/*.JPEG of one size; `--images` of the training images, the same number of
every class, and a quarter as many validation images are copied and taken all the way: every poison that needs no
network, from the folder to arrays, to shards of PNG and to a .beton of JPEG 90; of `lsp` the linear fit, `diagnose` and
an epoch of `--model` projected on the way. Each command is a process of its own. The peer is simplejpeg alone over the
same files on as many threads, before and after all else. `--full` names a folder of JPEGs of any size: what decoding
them costs, with the centre square and in a loader.

Without `--data` the images are made up, coarse colours of 1,000 classes with grain (d = 150,528): `data convert` to
.beton, `fit`, `attack` for one epoch, `poison`; with two counts of images, to see that memory does not grow with them.

Images are decoded when they are needed, as they are for a set that does not fit into memory.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import simplejpeg
import torch
from PIL import Image

import ulfast
from ulfast.data import MemoryLoader, load_dataset
from ulfast.data.readers.image import decode
from ulfast.data.resize import centre_square
from ulfast.poisons.registry import POISONS
from ulfast.runtime import environment

SIDE, CLASSES, QUALITY = 224, 1000, 90
FIT_STEPS, FIT_BATCH = 20, 256
PHOTO_STEPS = 50  # of photographs, whose classes are fewer
POISONED = [name for name, poison in POISONS.items() if not poison.trains and name != "file"]
COMPARED = 400  # images whose perturbation is looked for after JPEG
DECODED = """
import sys, json, simplejpeg
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, process_time

files = [file for file in sorted(Path(sys.argv[1]).rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
begin, processor = perf_counter(), process_time()
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(lambda file: simplejpeg.decode_jpeg(file.read_bytes()).shape, files, chunksize=16))
about = {"seconds": perf_counter() - begin, "processor_seconds": process_time() - processor}
print(json.dumps({"images": len(files), **about}))
"""
# Between this process and a command: a process starts with the peak memory of the one that started it.
LAUNCHED = """
import json, os, sys, time

begin = time.perf_counter()
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - begin
about = [os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss, usage.ru_utime + usage.ru_stime]
print(json.dumps(about), file=sys.stderr)
"""
ROOT = Path(ulfast.__file__).resolve().parent.parent


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


def run(stage: str, images: int, *words: str) -> dict[str, Any]:
    """One command of ulfast."""
    return process(stage, images, " ".join(["ulfast", *words]), "-m", "ulfast", *words, "--json", "--quiet")


def process(stage: str, images: int, shown: str, *words: str) -> dict[str, Any]:
    """A Python of its own: seconds by the clock and of the processors, peak resident memory, what it printed as
    JSON."""
    command = [sys.executable, "-S", "-c", LAUNCHED, *words]
    there = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=there)
    *said, told = done.stderr.strip().splitlines() or [""]
    code, seconds, peak, processor = json.loads(told)
    if code:
        sys.exit("\n".join([*said, f"{stage} ended with {code}: {shown}"]))
    row = {
        "stage": stage,
        "command": shown,
        "images": images,
        "seconds": seconds,
        "ms_an_image": 1000 * seconds / max(1, images),
        "peak_mb": peak / 1024,
        "processor_seconds": processor,
        "result": json.loads(done.stdout),
    }
    print(f"| {stage} | {images:,} | {seconds:.1f} | {row['ms_an_image']:.2f} | {row['peak_mb']:,.0f} |", flush=True)
    return row


def made_up(folder: Path, n: int, model: str) -> list[dict[str, Any]]:
    """All stages for `n` images."""
    size = make(folder / "jpegs", n, CLASSES)
    jpegs, beton, basis = str(folder / "jpegs"), str(folder / "x.beton"), str(folder / "basis.safetensors")
    fit = ["fit", "--data", beton, "--steps", str(FIT_STEPS), "--out", basis]
    attack = ["attack", "--data", beton, "--basis", basis, "--model", model, "--epochs", "1"]
    rows = [
        run("convert", n + CLASSES, "data", "convert", jpegs, "--mode", "jpeg", "--out", beton),
        run("fit", FIT_STEPS * FIT_BATCH + n, *fit),
        run("attack", n, *attack, "--out", str(folder / "run")),
        run("poison", n, "poison", "--method", "lsp", "--data", jpegs, "--out", str(folder / "lsp")),
    ]
    for row in rows:
        row |= {"training_images": n, "jpeg_bytes_an_image": size / n}
    return json.loads(json.dumps(rows).replace(str(folder), "WORK"))  # a folder that is gone by then


def some(data: Path, folder: Path, n: int) -> tuple[int, int, float]:
    """Copies about `n` training and `n` / 4 validation images; their numbers, and the bytes of a training image."""
    counts, size = [], 0
    for split, count in (("train", n), ("val", n // 4)):
        classes = sorted(path for path in (data / split).iterdir() if path.is_dir())
        each = max(2, count // len(classes))
        chosen = [file for path in classes for file in sorted(path.iterdir())[:each]]
        for file in chosen:
            target = folder / split / file.parent.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            size += file.stat().st_size if split == "train" else 0
        counts.append(len(chosen))
    return counts[0], counts[1], size / counts[0]


def photographs(
    data: Path, folder: Path, n: int, model: str, methods: list[str], keep: Callable[[dict[str, Any]], None]
) -> None:
    """All stages for photographs, and what JPEG leaves of each perturbation; `keep` gets what there is so far."""
    photos, lsp, basis = folder / "photos", folder / "lsp.beton", folder / "basis.safetensors"
    train, test, size = some(data, photos, n)
    print(f"{train:,} training and {test:,} validation images of {size / 1000:.0f} kB", flush=True)
    both = train + test

    def alone() -> dict[str, Any]:
        threads = str(torch.get_num_threads())
        row = process("simplejpeg alone", both, "", "-c", DECODED, str(photos), threads)
        assert row["result"]["images"] == both
        row |= {key: row["result"][key] for key in ("seconds", "processor_seconds")}  # without Python's start
        return row | {"ms_an_image": 1000 * row["seconds"] / both}

    about = {"data": data.name, "training_images": train, "test_images": test, "jpeg_bytes_an_image": size}
    rows, left = [alone(), run("start-up", 0, "ls", "poisons")], []

    def so_far() -> None:
        shown = json.loads(json.dumps(rows).replace(str(folder), "WORK"))
        keep({**about, "stages": shown, "after_jpeg": left})

    clean = folder / "clean.beton"
    convert = ["data", "convert", "--mode", "jpeg", "--quality", str(QUALITY)]
    rows.append(run("convert to .beton, JPEG 90", both, *convert, str(photos), "--out", str(clean)))
    rows.append(
        run("convert to WebDataset", both, "data", "convert", str(photos), "--to", "wds", "--out", f"{folder}/w")
    )
    shutil.rmtree(folder / "w")
    for method in methods:
        arrays, shards, beton = folder / method, folder / f"{method}-png", folder / f"{method}.beton"
        words = ["poison", "--method", method, "--data", str(photos)]
        rows.append(run(f"{method} to arrays", train, *words, "--out", str(arrays)))
        rows.append(run(f"{method} to PNG", both, *words, "--to", "wds", "--out", str(shards)))
        rows.append(run(f"{method} to JPEG 90", both, *convert, str(arrays), "--out", str(beton)))
        sizes = [sum(f.stat().st_size for f in shards.glob("train-*.tar")), beton.stat().st_size]
        left.append({"method": method, **after_jpeg(photos, arrays, clean, beton)})
        left[-1] |= {"png_bytes_an_image": sizes[0] / train, "jpeg_bytes_an_image": sizes[1] / train}
        print(left[-1], flush=True)
        shutil.rmtree(arrays)
        shutil.rmtree(shards)
        if beton != lsp:
            beton.unlink()
        so_far()
    if "lsp" not in methods:
        return
    looked = PHOTO_STEPS * FIT_BATCH + train
    rows.append(run("fit", looked, "fit", "--data", str(lsp), "--steps", str(PHOTO_STEPS), "--out", str(basis)))
    so_far()
    rows.append(run("diagnose", train, "diagnose", str(lsp)))
    rows.append(run("diagnose at 64 px", train, "diagnose", str(lsp), "--resize", "64"))
    words = ["attack", "--data", str(lsp), "--basis", str(basis), "--model", model, "--epochs", "1"]
    rows.append(run("an epoch, projected", train, *words, "--out", str(folder / "run")))
    rows.append(alone())
    so_far()


def after_jpeg(photos: Path, arrays: Path, clean: Path, beton: Path) -> dict[str, float]:
    """What is left of a perturbation in JPEGs: the difference between the poisoned and the clean image, both
    compressed in the same way, against the difference before. `energy` is the ratio of the sums of squares, `gain` how
    much of the perturbation it has (1: all), `correlation` the cosine; medians over images."""
    before = [load_dataset(arrays, stream=True), load_dataset(photos, stream=True)]
    after = [load_dataset(beton, stream=True), load_dataset(clean, stream=True)]
    rows = np.unique(np.linspace(0, len(before[0]) - 1, COMPARED).astype(int))
    found: dict[str, list[float]] = {"energy": [], "gain": [], "correlation": [], "levels": []}
    for block in np.array_split(rows, max(1, len(rows) // 50)):
        was, now = (
            (pair[0].images[block].astype(np.float32) - pair[1].images[block]).reshape(len(block), -1)
            for pair in (before, after)
        )
        there = (was != 0).any(1)  # ops finds a pixel that has the colour already
        was, now = was[there], now[there]
        power, kept, both = (was**2).sum(1), (now**2).sum(1), (was * now).sum(1)
        found["energy"] += (kept / power).tolist()
        found["gain"] += (both / power).tolist()
        found["correlation"] += (both / np.sqrt(power * kept).clip(1e-9)).tolist()
        found["levels"] += np.sqrt(power / was.shape[1]).tolist()
    return {key: statistics.median(values) for key, values in found.items()} | {"compared": len(rows)}


def full_size(folder: Path, work: Path) -> dict[str, Any]:
    """Costs of whole ImageNet files, in one thread, and of loaders over them."""
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in (".jpg", ".jpeg")]
    data = [file.read_bytes() for file in files]
    sides = [simplejpeg.decode_jpeg_header(one)[:2] for one in data]

    def pillow(i: int) -> np.ndarray:
        """What torchvision does to a file: Resize(224), CenterCrop(224)."""
        with Image.open(io.BytesIO(data[i])) as opened:
            picture = opened.convert("RGB")
        scale = SIDE / min(picture.size)
        wide, high = (max(SIDE, round(length * scale)) for length in picture.size)
        left, top = (wide - SIDE) // 2, (high - SIDE) // 2
        resized = picture.resize((wide, high), Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)))

    def scaled(i: int, side: int) -> np.ndarray | None:
        """By libjpeg's halved sizes, as long as twice the wanted side is left; None where there is no such size."""
        factor = next((f for f in (8, 4, 2) if min(sides[i]) >= 2 * side * f), 1)
        if factor == 1:
            return None
        height, width = (-(-length // factor) for length in sides[i])
        small = simplejpeg.decode_jpeg(data[i], min_height=height, min_width=width)
        return centre_square(small, side)

    def cost(work: Callable[[int], Any], repeats: int = 3) -> float:
        """Least processor milliseconds per file."""
        taken = []
        for _ in range(repeats):
            start = time.thread_time()
            for i in range(len(data)):
                work(i)
            taken.append(time.thread_time() - start)
        return 1000 * min(taken) / len(data)

    rows = [
        {"what": "simplejpeg alone", "ms": cost(lambda i: simplejpeg.decode_jpeg(data[i]))},
        {"what": "ulfast, whole", "ms": cost(lambda i: decode(files[i]))},
        {"what": "ulfast, 224 px", "ms": cost(lambda i: decode(files[i], SIDE))},
        {"what": "ulfast, 64 px", "ms": cost(lambda i: decode(files[i], 64))},
        {"what": "Pillow, 224 px", "ms": cost(pillow)},
    ]
    for side in (SIDE, 64):
        worse, applies = [], 0
        for i in range(len(data)):
            small = scaled(i, side)
            if small is not None:
                whole = centre_square(simplejpeg.decode_jpeg(data[i]), side)
                error = np.mean((small.astype(np.float64) - whole) ** 2)
                worse.append(10 * np.log10(255**2 / max(error, 1e-9)))
                applies += 1
        one = lambda i, side=side: scaled(i, side) if min(sides[i]) >= 4 * side else decode(files[i], side)  # noqa: E731
        rows.append({"what": f"scaled decoding, {side} px", "ms": cost(one), "applies": applies})
        rows[-1] |= {"psnr_db": statistics.median(worse), "least_psnr_db": min(worse)} if worse else {}
    for row in rows:
        print(row, flush=True)
    shape = {"files": len(data), "bytes": statistics.mean(map(len, data)), "side": statistics.median(map(min, sides))}
    return {**shape, "costs": rows, "loaders": loaders(files, work)}


class Usual(torch.utils.data.Dataset):
    """What everybody writes: Pillow, Resize(224), CenterCrop(224), ToTensor, Normalize."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[i]) as opened:
            picture = opened.convert("RGB")
        scale = SIDE / min(picture.size)
        wide, high = (max(SIDE, round(length * scale)) for length in picture.size)
        left, top = (wide - SIDE) // 2, (high - SIDE) // 2
        square = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
        return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float().div_(255) - 0.45) / 0.23, 0


def loaders(files: list[Path], work: Path, times: int = 5, rounds: int = 5) -> dict[str, float]:
    """Images per second of the default loader and of a DataLoader with a worker per core, medians; each file comes
    `times` times."""
    for i, file in enumerate(files):
        for k in range(times):
            target = work / "full" / "train" / f"{i:04d}" / f"{k}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    data = load_dataset(work / "full", resize=SIDE, stream=True)
    ours = MemoryLoader(data, 64, mean=(0.45,) * 3, std=(0.23,) * 3, shuffle=True)
    copies = sorted((work / "full" / "train").rglob("*.jpg"))
    workers = torch.get_num_threads()
    usual = torch.utils.data.DataLoader(Usual(copies), 64, shuffle=True, num_workers=workers, persistent_workers=True)
    rates: dict[str, list[float]] = {"default loader": [], "DataLoader": []}
    for number in range(rounds + 1):  # the first starts threads and workers
        for name, loader in (("default loader", ours), ("DataLoader", usual)):
            start = time.perf_counter()
            count = sum(len(x) for x, _ in loader)
            if number:
                rates[name].append(count / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    found = {name: statistics.median(values) for name, values in rates.items()} | {"ratio": ratio}
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--full", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, nargs="+", metavar="N")
    parser.add_argument("--model", default="resnet18-16")
    parser.add_argument("--methods", nargs="+", choices=POISONED, default=POISONED, metavar="POISON")
    parser.add_argument("--out", type=Path, metavar="RESULTS.json")
    options = parser.parse_args()
    os.environ["ULFAST_STREAM_BYTES"] = "0"
    if options.out:  # found out now, not after minutes
        options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment.describe(), "model": options.model}
    print("| stage | images | seconds | ms per image | peak MB |\n|---|---|---|---|---|")
    start = time.perf_counter()

    def keep(found: dict[str, Any]) -> None:
        result.update(found, seconds=time.perf_counter() - start)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory(prefix="ulfast-imagenet-") as folder:
        work = Path(folder)
        if options.full:
            keep({"full": full_size(options.full, work)})
        if options.data:
            images = options.images or [2000]
            photographs(options.data.resolve(), work, *images, options.model, options.methods, keep)
        elif not options.full:
            stages: list[dict[str, Any]] = []
            for n in options.images or [2000, 4000]:
                with tempfile.TemporaryDirectory(prefix="ulfast-imagenet-") as each:
                    stages += made_up(Path(each), n, options.model)
                keep({"stages": stages})


if __name__ == "__main__":
    main()
