"""What `ulfast diagnose` says of every poison made here, at several rates, and of clean sets: a confusion table.

    python experiments/diagnosis.py [--data cifar10] [--limit 10000] [--poisoned FOLDER ...] [--only WORD] [--json FILE]
    python experiments/diagnosis.py --plain --data FOLDER [--resize S] [--centre S] [--poisons lsp ...] [--rates 1 ...]

Clean sets are the data itself, random halves and tenths of it, and what is done to clean data in practice: gray,
blurred, mirrored, enlarged, compressed, some classes cut short, turned for more classes; and other data: scikit-learn's
digits and pieces of its two photographs. `--poisoned` adds folders that `ulfast poison` wrote, `--only` leaves out the
sets whose name does not have the word.

`--plain` is for other photographs: without the sets that are made of CIFAR-10's classes or bring their own images.
Besides the verdict it says what the linear fit holds from either start (the share of the perturbations' energy, and of
what the class means differ by), and how far `partial` removes its directions. `--centre` and `--shrink` are shorter
looks at large images: the linear model and the patches see the central S x S pixels, or everything sees the images
shrunk to S x S after they were poisoned. What the JSON file has already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import simplejpeg
import sklearn.datasets
import torch
from orientations import oriented
from torch.nn import functional as F

import ulfast
from ulfast.analysis.diagnosis import diagnose
from ulfast.data import Dataset
from ulfast.data.class_moments import class_moments
from ulfast.data.resize import centre_square
from ulfast.poisons import perturbation
from ulfast.projection.other_fits import partial_rows
from ulfast.runtime import environment

POISONS = ("lsp", "ops", "ar", "regions-4", "regions-16", "cwrandom", "cuda", "pil")
RATES = (1.0, 0.5, 0.2, 0.1, 0.05)
STEPS, HELD = 1000, 2000  # of the fits that `rules` compares, and images whose perturbation it looks for
Named = tuple[str, Callable[[], Dataset]]


def changed(data: Dataset, change: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    return Dataset(np.ascontiguousarray(change(np.ascontiguousarray(data.images))), data.labels, data.classes)


def gray(images: np.ndarray) -> np.ndarray:
    """As it is defined for JPEG; in three equal channels."""
    one = (images @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    return np.repeat(one[..., None], 3, 3)


def mirrored(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::-1]


def jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    return np.stack([simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(image, quality)) for image in images])


def pooled(images: np.ndarray) -> np.ndarray:
    x = F.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 3, 1, 1, count_include_pad=False)
    return x.round().byte().permute(0, 2, 3, 1).numpy()


def shrunk(images: np.ndarray, side: int) -> np.ndarray:
    return np.stack([centre_square(image, side) for image in images])


def enlarged(images: np.ndarray) -> np.ndarray:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def clean_sets(data: Dataset) -> Iterator[Named]:
    n = len(data)
    yield "clean", lambda: data
    for seed in (1, 2, 3):
        yield f"random half {seed}", partial(data.balanced, n // 2, seed)
    yield "random tenth", partial(data.balanced, n // 10, 1)
    yield "gray", partial(changed, data, gray)
    yield "blurred", partial(changed, data, pooled)
    yield "mirrored", partial(changed, data, mirrored)
    yield "enlarged to twice the side", partial(changed, data.balanced(n // 2, 4), enlarged)
    for quality in (75, 30, 10):
        yield f"JPEG {quality}", partial(changed, data, partial(jpeg, quality=quality))
    most = n // data.num_classes
    keep = [
        np.flatnonzero(data.labels == c)[: round(most * 0.74 ** (9 * c / (data.num_classes - 1)))]
        for c in range(data.num_classes)
    ]
    yield (
        f"imbalanced ({len(keep[0])} to {len(keep[-1])} per class)",
        partial(data.subset, np.sort(np.concatenate(keep))),
    )
    yield "swrandom (control)", partial(ulfast.poison, data, "swrandom")


def of_classes(data: Dataset) -> Iterator[Named]:
    """Clean sets of few, easy or many classes, made of CIFAR-10's; and other data."""
    for name, classes in (("airplanes and frogs", (0, 6)), ("dog to truck", (5, 6, 7, 8, 9))):
        yield name, partial(some_classes, data, classes)
    vehicle = np.isin(data.labels, (0, 1, 8, 9)).astype(np.int64)
    yield "animals and vehicles", partial(Dataset, data.images, vehicle, ("animal", "vehicle"))
    yield "two orientations, 20 classes", partial(oriented, data, 2)
    yield "four orientations, 40 classes", partial(oriented, data, 4)
    yield "digits", digits
    yield "pieces of two photographs", pieces


def some_classes(data: Dataset, classes: tuple[int, ...]) -> Dataset:
    rows = np.flatnonzero(np.isin(data.labels, classes))
    return Dataset(
        data.images[rows], np.searchsorted(classes, data.labels[rows]), tuple(data.classes[c] for c in classes)
    )


def digits() -> Dataset:
    bunch = sklearn.datasets.load_digits()
    x = F.interpolate(torch.from_numpy(bunch.images / 16 * 255).float()[:, None], size=(32, 32), mode="bilinear")
    images = x.round().byte().permute(0, 2, 3, 1).repeat(1, 1, 1, 3).contiguous().numpy()
    return Dataset(images, bunch.target.astype(np.int64), tuple("0123456789"))


def pieces(side: int = 32) -> Dataset:
    bunch = sklearn.datasets.load_sample_images()
    cut, labels = [], []
    for label, photo in enumerate(bunch.images):
        for i in range(0, photo.shape[0] - side + 1, side // 2):
            for j in range(0, photo.shape[1] - side + 1, side // 2):
                cut.append(photo[i : i + side, j : j + side])
                labels.append(label)
    return Dataset(np.stack(cut), np.array(labels), tuple(Path(name).stem for name in bunch.filenames))


def poisoned_sets(data: Dataset, poisons: Sequence[str], rates: Sequence[float]) -> Iterator[Named]:
    for method in poisons:
        for rate in rates:
            yield method + ("" if rate == 1 else f", rate {rate:g}"), partial(ulfast.poison, data, method, rate=rate)


def many_classes(data: Dataset) -> Iterator[Named]:
    yield "ar, L-infinity", partial(ulfast.poison, data, "ar", norm="linf")
    many = cache(partial(oriented, data, 4))
    for method in POISONS:
        yield f"{method}, 40 classes", lambda method=method: ulfast.poison(many(), method)


def rules(clean: Dataset, data: Dataset) -> dict[str, Any]:
    """What the fit from either start holds, and the shares in which `partial` removes its directions."""
    means = class_moments(data).means().float()
    parts = {"class_means": means - means.mean(0)}
    if data is not clean and data.images.shape == clean.images.shape:
        rows = np.sort(np.random.default_rng(0).permutation(len(data))[:HELD])
        parts["perturbation"] = perturbation(clean.subset(rows), data.subset(rows)).flatten(1)
    found: dict[str, Any] = {}
    for init in ("zero", "torch"):
        basis = ulfast.fit_basis(data, init=init, steps=STEPS)
        for name, x in parts.items():
            found[f"{name}_{init}"] = float((x @ basis.rows.T).square().sum() / x.square().sum())
        if init == "zero":
            removed = partial_rows(basis, data).square().sum(1)
            found |= {"removed_least": float(removed.min()), "removed_mean": float(removed.mean())}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--resize", type=int, metavar="S")
    parser.add_argument("--centre", type=int, metavar="S")
    parser.add_argument("--shrink", type=int, metavar="S")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--no-rules", action="store_true", help="with --plain: the verdicts alone")
    parser.add_argument("--poisons", nargs="*", default=POISONS)
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--poisoned", nargs="*", default=[], metavar="FOLDER")
    parser.add_argument("--sets", nargs="*", metavar="NAME", help="these sets alone")
    parser.add_argument("--only", default="", metavar="WORD")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = ulfast.load_dataset(options.data, limit=options.limit, resize=options.resize)
    rows: list[dict[str, Any]] = []
    if options.json and options.json.is_file():
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    plain = {"clean", *options.poisons} if options.plain and not options.no_rules else set()

    def say(name: str, make: Callable[[], Dataset], poisoned: bool) -> None:
        if options.sets and name not in options.sets:
            return
        if options.only not in name or name in {row["name"] for row in rows}:
            return
        given = seen = make()
        if options.shrink:
            seen = changed(given, partial(shrunk, side=options.shrink))
        start = time.process_time()
        found = diagnose(seen, centre=options.centre)
        about = {"name": name, "poisoned": poisoned, "processor_seconds": time.process_time() - start}
        wrong = found.verdict == ("clean" if poisoned else "poisoned")
        values = " | ".join(f"{e.value:.3g}" for e in found.evidence)
        verdict = f"*{found.verdict}*" if wrong else found.verdict
        print(f"| {name} | {values} | {verdict} | {found.suggested_attack} |", flush=True)
        extra = rules(data, given) if name in plain else {}
        rows.append({**about, **found.to_dict(), "levels": found.linear.levels, **extra})
        if options.json:  # as far as it has come
            height, width, channels = data.image_shape
            of = {"data": data.name, "images": len(data), "image_shape": [height, width, channels]}
            looked = {"centre": options.centre, "shrink": options.shrink, "classes": data.num_classes}
            content = {"environment": environment.describe(), **of, **looked, "rows": rows}
            options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    heads = (
        "linear model",
        "fine detail",
        "marked images",
        "smooth patches",
        "all patches",
        "constant pixel",
        "border",
    )
    print(f"| data | {' | '.join(heads)} | verdict | suggested |\n|---|{'---|' * len(heads)}---|---|")
    for name, make in [*clean_sets(data), *(() if options.plain else of_classes(data))]:
        say(name, make, False)
    for name, make in poisoned_sets(data, options.poisons, options.rates):
        say(name, make, True)
    for name, make in () if options.plain else many_classes(data):
        say(name, make, True)
    for folder in options.poisoned:
        say(Path(folder).name, partial(ulfast.load_dataset, folder), True)
    for poisoned in (False, True):
        verdicts = [row["verdict"] for row in rows if row["poisoned"] == poisoned]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("poisoned", "unknown", "clean"))
        print(f"\n{'poisoned' if poisoned else 'clean'}: {len(verdicts)} sets, called {counts}")


if __name__ == "__main__":
    main()
