"""Images per second of FFCV, of ours over FFCV, of the default loader and of a DataLoader, on the same images.

    python benchmarks/loaders.py [--set raw32 raw224 jpeg224] [--images N] [--json FILE]

The images are made here: smooth noise with JPEG-like content. The raw sets are a memory-mapped folder of ulfast and
a raw .beton; the JPEG set is a folder of JPEGs and a .beton with the same quality. What each is asked for:
crop with padding 4 and flip at 32 px, normalised float32 batches at 224 px; bare FFCV decodes and converts only. Every
round runs each loader for one epoch, in turn; rounds before the first are not counted (compilation, page cache); the
median is shown. For the JPEG folder also the linear fit over it: its share of the default loader's rate, and of that of
decoding the same batches and doing nothing with them. Peak memory is of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

import ulfast
from ulfast import InputError
from ulfast.data import Augment, Dataset, MemoryLoader, load_dataset, write_dataset
from ulfast.data.beton import FFCVLoader, engine, write_beton
from ulfast.data.lazy import prefetch
from ulfast.runtime import environment

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COUNTS = {"raw32": 20_000, "raw224": 1_000, "jpeg224": 1_000}
QUALITY = 90


def make(n: int, side: int) -> Dataset:
    """Coarse colours enlarged, with a little grain: JPEGs of about 20 kB at 224 px."""
    rng = np.random.default_rng(0)
    images = np.empty((n, side, side, 3), np.uint8)
    for i in range(n):
        coarse = rng.integers(0, 256, (8, 8, 3))
        scale = side // 8
        image = coarse.repeat(scale, 0).repeat(scale, 1) + rng.integers(-6, 7, (side, side, 3))
        images[i] = image.clip(0, 255)
    return Dataset(images, np.arange(n) % 10, tuple("0123456789"))


class Usual(torch.utils.data.Dataset):
    """The usual data set: one image, decoded by Pillow if it is a file, cropped, flipped, normalised."""

    def __init__(self, images, labels, augment):
        self.images, self.labels, self.augment = images, labels, augment
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        from PIL import Image

        image = self.images[i]
        if isinstance(image, Path):
            with Image.open(image) as picture:
                image = np.array(picture.convert("RGB"))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        if self.augment:
            x = torch.nn.functional.pad(x, (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,)).tolist()
            x = x[:, top : top + 32, left : left + 32]
            if torch.rand(()) < 0.5:
                x = x.flip(2)
        return (x - self.mean) / self.std, int(self.labels[i])


def contestants(name, n, folder):
    """{loader's name: function that makes an iterable for one epoch}."""
    side = 32 if "32" in name else 224
    data = make(n, side)
    augment = Augment() if side == 32 else None
    batch = 128 if side == 32 else 64
    options = {"mean": MEAN, "std": STD, "augment": augment, "shuffle": True}
    jpeg = name.startswith("jpeg")
    write_beton(folder / "x.beton", data, mode="jpeg" if jpeg else "raw", quality=QUALITY)
    if jpeg:
        import simplejpeg

        for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            path = folder / "jpegs" / "train" / str(label) / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(image, QUALITY, colorsubsampling="420"))
        ours = load_dataset(folder / "jpegs", stream=True)
        source = sorted((folder / "jpegs" / "train").rglob("*.jpg"))
    else:
        write_dataset(folder / "set", data)
        ours = load_dataset(folder / "set")
        source = ours.images
    del data
    usual = torch.utils.data.DataLoader(
        Usual(source, ours.labels, augment), batch, shuffle=True, num_workers=2, persistent_workers=True
    )
    table = {"DataLoader, 2 workers": usual, "default loader": MemoryLoader(ours, batch, **options)}
    try:
        engine.load()
    except InputError as error:
        print(f"without FFCV: {error}", file=sys.stderr)
        return table
    table["FFCV, ours"] = FFCVLoader(folder / "x.beton", batch, **options)
    table["FFCV, bare + ours after"] = Bare(folder / "x.beton", batch, augment)
    return table


class Bare:
    """FFCV's own loader, followed by the same augmentation and normalisation in the same kernel."""

    def __init__(self, path, batch, augment):
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        threads = torch.get_num_threads()
        cores = len(os.sched_getaffinity(0))
        self.loader = Loader(
            str(path),
            batch_size=batch,
            num_workers=cores,
            order=OrderOption.RANDOM,
            seed=0,
            drop_last=False,
            batches_ahead=2,
            os_cache=True,
            pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()]},
        )
        torch.set_num_threads(threads)
        self.augment, self.mean, self.std = augment, torch.tensor(MEAN), torch.tensor(STD)

    def __iter__(self):
        from ulfast import ops

        threads = torch.get_num_threads()
        draws = self.augment.draw(len(self.loader.indices), 0, 0) if self.augment else (None, None)
        seen = 0
        for x, y in self.loader:
            torch.set_num_threads(threads)
            shift, flip = (None if d is None else d[seen : seen + len(x)] for d in draws)
            yield ops.ingest(x, None, self.mean, self.std, shift=shift, flip=flip), y
            seen += len(x)


def fit_against_decoding(images, rounds):
    """Images per second of decoding alone, and of the linear fit with its last pass, over the same images."""
    n, batch = len(images), 64
    steps = n // batch
    rng = np.random.default_rng(0)
    batches = [rng.permutation(n)[:batch] for _ in range(steps)] + list(np.array_split(np.arange(n), -(-n // batch)))
    seconds = {"decoding alone": [], "linear fit": []}
    for turn in range(rounds + 1):
        for name, values in seconds.items():
            begun = time.perf_counter()
            if name == "linear fit":
                ulfast.fit_basis(images, steps=steps, batch_size=batch, device="cpu")
            else:
                for _ in prefetch(images.images, batches):
                    pass
            if turn:
                values.append(time.perf_counter() - begun)
    return {name: (steps * batch + n) / statistics.median(values) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--images", type=int, help="of each set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = environment.describe()
    print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, ulfast {about['commit']}\n")
    print("| set | loader | images/s | x DataLoader |\n|---|---|---|---|")
    rows = []
    for name in options.set:
        n = options.images or COUNTS[name]
        with tempfile.TemporaryDirectory() as folder:
            table = contestants(name, n, Path(folder))
            seconds = {key: [] for key in table}
            for turn in range(options.rounds + 1):
                for key, loader in table.items():
                    begun = time.perf_counter()
                    seen = sum(len(y) for _, y in loader)
                    assert seen == n, (key, seen)
                    if turn:
                        seconds[key].append(time.perf_counter() - begun)
            rates = {key: n / statistics.median(values) for key, values in seconds.items()}
            for key, rate in rates.items():
                print(
                    f"| {name}, {n} | {key} | {rate:,.0f} | {rate / rates['DataLoader, 2 workers']:.1f} |", flush=True
                )
                rows.append({"set": name, "images": n, "loader": key, "rate": rate, "seconds": seconds[key]})
            if name.startswith("jpeg"):
                found = fit_against_decoding(load_dataset(Path(folder) / "jpegs", stream=True), options.rounds)
                for key, rate in found.items():
                    print(f"| {name}, {n} | {key} | {rate:,.0f} | {rate / rates['DataLoader, 2 workers']:.1f} |")
                    rows.append({"set": name, "images": n, "loader": key, "rate": rate})
                fit = found["linear fit"]
                print(
                    f"\nThe linear fit runs at {fit / rates['default loader']:.0%} of the default loader's rate, at"
                    f" {fit / found['decoding alone']:.0%} of that of decoding alone.\n",
                    flush=True,
                )
            del table
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory {peak:,.0f} MB")
    if options.json:
        options.json.write_text(json.dumps({"environment": about, "rows": rows, "peak_mb": peak}, indent=2) + "\n")


if __name__ == "__main__":
    main()
