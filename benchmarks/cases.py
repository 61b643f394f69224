"""The measured cases: the operators from ulfast's own registry, and whole tasks: a linear fit, poisons, a loader.

The first contestant of a case is ours. Operators are measured by `ulfast.profiling`; `ulfast profile` has the same
ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ulfast import ops
from ulfast.data.dataset import chunks
from ulfast.poisons import Workplace
from ulfast.poisons.run import CHUNK_BYTES
from ulfast.profiling.cases import Case, Shape, Thunk
from ulfast.profiling.registry import OPERATORS


def operator(name: str, shape: str, dtype: torch.dtype | None, compiled: bool) -> Case:
    """A case of the registry."""
    entry = OPERATORS[name]
    return entry.make(Shape.parse(shape), dtype or entry.dtypes[0], torch.device("cpu"), compiled)


def fit(n: int, d: int, classes: int, batch: int) -> Case:
    images = torch.randint(0, 256, (n, d), dtype=torch.uint8)
    labels, order = torch.randint(0, classes, (n,)), torch.randperm(n)

    def ours() -> torch.Tensor:
        weight = torch.zeros(classes, d)
        for index in order.split(batch):
            ops.softmax_regression_step(images, labels, weight, 0.1, index=index)
        return weight

    def tensors() -> torch.Tensor:
        weight = torch.zeros(classes, d)
        for index in order.split(batch):
            x = images[index].float().div_(255)
            p = (x @ weight.T).softmax(1)
            p[torch.arange(len(index)), labels[index]] -= 1
            weight.sub_(p.T @ x, alpha=0.1 / len(index))
        return weight

    def autograd() -> torch.Tensor:
        model = torch.nn.Linear(d, classes, bias=False)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for index in order.split(batch):
            loss = torch.nn.functional.cross_entropy(model(images[index].float().div_(255)), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model.weight

    # One step from a small start: after many steps on such data, the rounding of the first decides the rest.
    few, a = slice(0, batch), torch.full((classes, d), 1e-3)
    b = a.double()
    ops.softmax_regression_step(images[few], labels[few], a, 0.1)
    x = images[few].double() / 255
    p = (x @ b.T).softmax(1)
    p[torch.arange(len(x)), labels[few]] -= 1
    b -= 0.1 / len(x) * p.T @ x
    return Case(
        f"linear fit, one epoch of {n} x {d} u8, batch {batch}",
        {"softmax_regression_step": ours},
        {"tensor loop": tensors, "nn.Linear and SGD": autograd},
        float(n * d),
        4.0 * n * d * classes,
        (float((a - b).abs().max()), math.nan),
        repeats=5,
        goals={"best": 4},
    )


def lsp(n: int, whole: bool = False) -> Case:
    """The generator, or the whole of `ulfast.poison` with its statistics and checksums."""
    from sklearn.datasets import make_classification

    from ulfast import poison
    from ulfast.data import Dataset
    from ulfast.poisons.lsp import LSP

    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(n) % 10
    data = Dataset(images, labels, tuple("0123456789"))

    def generator() -> None:
        perturb = LSP().prepare(data, 0, Workplace())
        for first, stop in chunks(images, CHUNK_BYTES):
            perturb(first, images[first:stop], labels[first:stop])

    def published() -> np.ndarray:
        """As the authors compute it, in float32: draw with scikit-learn, enlarge, scale, add, clip, truncate."""
        latent, y = make_classification(
            n,
            48,
            n_informative=48,
            n_redundant=0,
            n_repeated=0,
            n_classes=10,
            n_clusters_per_class=1,
            class_sep=10.0,
            flip_y=0.0,
            random_state=0,
        )
        noise = latent.reshape(n, 4, 4, 3).repeat(8, 1).repeat(8, 2).astype(np.float32)
        noise *= (6 / 255 * math.sqrt(3072)) / np.linalg.norm(noise.reshape(n, -1), axis=1)[:, None, None, None]
        own = np.empty_like(noise)
        own[np.argsort(labels, kind="stable")] = noise[np.argsort(y, kind="stable")]
        return ((images / np.float32(255) + own).clip(0, 1) * 255).astype(np.uint8)

    ours: dict[str, Thunk] = {"prepare, perturb_lsp": generator}
    if whole:
        ours = {"ulfast.poison": lambda: poison(data, "lsp")}
    return Case(
        f"{'ulfast.poison, ' if whole else ''}lsp, {n} images of 32 px",
        ours,
        {"scikit-learn": published},
        2.0 * n * 3072,
        2.0 * n * 48 * 48,
        repeats=3,
        goals={"best": 5 if whole else 30},
    )


def generated(method: str, n: int) -> tuple[np.ndarray, np.ndarray, Thunk]:
    """Images of 32 px, their labels, and the whole poison of them by ours: preparation, perturbation, rounding."""
    from ulfast.data import Dataset
    from ulfast.poisons import get_poison

    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(n) % 10
    data = Dataset(images, labels, tuple("0123456789"))

    def ours() -> None:
        perturb = get_poison(method)[1].prepare(data, 0, Workplace())
        for first, stop in chunks(images, CHUNK_BYTES):
            perturb(first, images[first:stop], labels[first:stop])

    return images, labels, ours


def scaled(run: Thunk, times: float) -> Thunk:
    """A peer so slow that it runs on a part of the data: its time is multiplied."""
    run.times = times  # type: ignore[attr-defined]
    return run


def logistic(n: int) -> Case:
    """Twenty iterations of full-batch logistic regression on perturbations, LBFGS, without a penalty."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    from ulfast.analysis.separability import ITERATIONS, separability

    steps = 1
    g = torch.Generator().manual_seed(0)
    levels = torch.randint(-16, 17, (n, 3072), generator=g, dtype=torch.int8).float() / 255
    labels = torch.arange(n) % 10
    x, y = ((levels - levels.min()) / (levels.max() - levels.min())).numpy(), labels.numpy()

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about not having converged
            model = LogisticRegression(C=np.inf, tol=0, max_iter=steps * ITERATIONS).fit(x, y)
        assert model.n_iter_[0] == steps * ITERATIONS

    return Case(
        f"separability, {n} x 3072, 10 classes, {steps * ITERATIONS} iterations",
        {"softmax_regression_step": lambda: separability(levels, labels, steps=steps)},
        {"scikit-learn": theirs},
        1.0 * n * 3072 * steps * ITERATIONS,
        4.0 * n * 3072 * 10 * steps * ITERATIONS,
        repeats=3,
        goals={"best": 5},
    )


def ops_search(n: int) -> Case:
    """The published search: one tensor expression per position and corner colour of every class."""
    images, labels, _ = generated("ops", n)
    from ulfast.data import Dataset
    from ulfast.data.class_moments import class_moments
    from ulfast.poisons.ops import choose

    data = Dataset(images, labels, tuple("0123456789"))

    def published() -> None:
        x = torch.from_numpy(images[labels == 0]).permute(0, 3, 1, 2).float() / 255
        corners = [torch.tensor([r, g, b], dtype=torch.float32) for r in (0, 1) for g in (0, 1) for b in (0, 1)]
        best = -1.0
        for row in range(32):
            for column in range(32):
                for target in corners:
                    distance = (target - x[:, :, row, column]).abs()
                    best = max(best, float(distance.mean() / distance.std()))

    return Case(
        f"ops search, {n} images of 32 px",
        {"class_moments": lambda: choose(class_moments(data, squares=True), 1)},
        {"published, one class x 10": scaled(published, 10)},
        1.0 * n * 3072,
        3.0 * n * 3072,
        repeats=3,
        goals={"best": 400},
    )


def ar(n: int) -> Case:
    """The published generator: a 3 x 3 product for every value, image by image."""
    _, _, ours = generated("ar", n)
    windows = torch.randn(3, 3, 3)

    def published() -> None:
        for channel in range(3):
            noise = torch.randn(36, 36)
            for row in range(34):
                for column in range(34):
                    noise[row + 2, column + 2] = (windows[channel] * noise[row : row + 3, column : column + 3]).sum()

    return Case(
        f"ar, {n} images of 32 px",
        {"perturb_ar": ours},
        {"published, one image x n": scaled(published, n)},
        2.0 * n * 3072,
        2.0 * n * 8 * 34 * 34 * 3,
        repeats=3,
        goals={"best": 10_000},
    )


def convolution(n: int) -> Case:
    """A convolution image by image, as the published data set class does it."""
    images, _, ours = generated("cuda", n)
    kernel = torch.rand(3, 1, 3, 3)

    def published() -> None:
        for image in images[:2000]:
            x = torch.from_numpy(image).permute(2, 0, 1).float() / 255
            y = torch.nn.functional.conv2d(x[None], kernel, padding=1, groups=3)[0]
            (y / y.max()).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()

    return Case(
        f"cuda, {n} images of 32 px",
        {"perturb_convolution": ours},
        {"image by image, 2000 x n / 2000": scaled(published, n / 2000)},
        2.0 * n * 3072,
        18.0 * n * 3072,
        repeats=3,
        goals={"best": 40},
    )


def encoder(method: str, n: int) -> Case:
    """At 224 px a generator should be faster than a JPEG encoder on the same cores."""
    from concurrent.futures import ThreadPoolExecutor

    import simplejpeg
    from PIL import Image

    from ulfast.data import Dataset, load_dataset
    from ulfast.poisons import get_poison

    # Photographs enlarged, with a little grain where the detail is missing.
    small = load_dataset("sample").images[:n]
    large = np.stack(
        [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in small]
    )
    grain = np.random.default_rng(0).normal(0, 4, large.shape)
    images = (large + grain).clip(0, 255).astype(np.uint8)
    labels = np.arange(n) % 10
    perturb = get_poison(method)[1].prepare(Dataset(images, labels, tuple("0123456789")), 0, Workplace())

    def encode() -> None:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda image: simplejpeg.encode_jpeg(image, 90), images))

    return Case(
        f"{method}, {n} images of 224 px",
        {method: lambda: perturb(0, images, labels)},
        {"JPEG 90, one thread per core": encode},
        2.0 * n * 150528,
        repeats=5,
        goals={"best": 1},
    )


def pil(n: int) -> Case:
    """The whole poison, against its steps as one writes them in torch, batch by batch, with autograd."""
    images, labels, ours = generated("pil", n)
    weight = torch.randn(10, 3072) * 0.01
    share = 8  # the peer runs on this part

    def published() -> None:
        model = torch.nn.Linear(3072, 10, bias=False)
        model.weight.data.copy_(weight)
        for first in range(0, n // share, 512):
            x = torch.from_numpy(images[first : first + 512]).flatten(1).float() / 255
            y, noise = torch.from_numpy(labels[first : first + 512]), torch.zeros_like(x)
            uniform = torch.full((len(x), 10), 0.1)
            for _ in range(30):
                noise.requires_grad_()
                own = torch.nn.functional.cross_entropy(model(noise), y)
                rest = torch.nn.functional.kl_div(model(x - noise).log_softmax(1), uniform, reduction="batchmean")
                (0.9 * own + 0.1 * rest).backward()
                noise = (noise.detach() - 0.8 / 255 * noise.grad.sign()).clamp(-8 / 255, 8 / 255)  # type: ignore[union-attr]
            ((x - noise).clamp(0, 1) * 255).byte().numpy()

    return Case(
        f"pil, {n} images of 32 px",
        {"linear fit and perturb_linear": ours},
        {f"torch loop without its fit, a part x {share}": scaled(published, share)},
        2.0 * n * 3072,
        30 * 4.0 * n * 3072 * 10,
        repeats=3,
        goals={"best": 2},
    )


def search(model: str, n: int, steps: int) -> Case:
    """Steps of the noise of one batch down the loss (em) or towards a class (tap): the same but for the labels.

    The error column has the distance of our loss after the steps from the plain loop's.
    """
    from ulfast.data import load_dataset
    from ulfast.poisons.surrogate import Images, descend, mean_loss, new_surrogate, searching

    data, device = load_dataset("sample").balanced(n), torch.device("cpu")
    surrogate, pixels = new_surrogate(model, data, 0, device), Images(data, device)
    index = torch.arange(n)
    y = pixels.labels[index]

    def ours() -> torch.Tensor:
        start = pixels.pixels(index)
        x = start.clone()
        with searching(surrogate):
            descend([surrogate], x, start, y, alphas=[-0.8 / 255] * steps, eps=8 / 255)
        return x

    plain = new_surrogate(model, data, 0, device).model.to(memory_format=torch.contiguous_format).eval()
    plain.requires_grad_(False)

    def published() -> torch.Tensor:
        """As the authors write it: images one by one, float32, backward, sign, clamp, clamp."""
        images = torch.stack([torch.from_numpy(i).permute(2, 0, 1).contiguous().float().div(255) for i in data.images])
        noise = torch.stack([torch.zeros_like(image) for image in images])
        x = (images + noise).clamp(0, 1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            scaled = (x - surrogate._mean) / surrogate._std
            torch.nn.functional.cross_entropy(plain(scaled), y).backward()
            x = x.detach() - 0.8 / 255 * x.grad.sign()  # type: ignore[union-attr]
            noise = (x - images).clamp(-8 / 255, 8 / 255)
            x = (images + noise).clamp(0, 1)
        return x

    with searching(surrogate):
        losses = [float(mean_loss([surrogate], x, y).mean()) for x in (ours(), published())]
    return Case(
        f"search on {model}, {n} images, {steps} steps",
        {"descend": ours},
        {"plain loop": published},
        error=(abs(losses[0] - losses[1]), math.nan),
        repeats=5,
        goals={"best": 2},
    )


def loader(n: int) -> Case:
    """The usual way: a DataLoader with two workers that crops, flips and normalises each image."""
    from ulfast.data import Augment, Dataset, MemoryLoader

    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    data = Dataset(images, np.arange(n) % 10, tuple("0123456789"))
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)

    class Usual(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return n

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            x = torch.from_numpy(images[i]).permute(2, 0, 1).float().div_(255)
            x = torch.nn.functional.pad(x, (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,)).tolist()
            x = x[:, top : top + 32, left : left + 32]
            if torch.rand(()) < 0.5:
                x = x.flip(2)
            return (x - mean) / std, int(data.labels[i])

    usual = torch.utils.data.DataLoader(Usual(), 128, shuffle=True, num_workers=2, persistent_workers=True)
    ours = MemoryLoader(data, 128, mean=(0.5,) * 3, std=(0.25,) * 3, augment=Augment(), shuffle=True)

    def drain(batches: Any) -> float:
        return sum(float(x[0, 0, 0, 0]) for x, _ in batches)

    peers: dict[str, Thunk] = {"DataLoader, 2 workers": lambda: drain(usual)}
    return Case(
        f"loader, {n} images of 32 px, crop and flip",
        {"MemoryLoader": lambda: drain(ours)},
        peers,
        5.0 * n * 3072,
        repeats=3,
        goals={"best": 5},
    )


def cases(compiled: bool) -> dict[str, Callable[[], Case]]:
    """Every case by its key; nothing is allocated before a case is called."""
    table: dict[str, Callable[[], Case]] = {}
    shapes = {
        "project": (
            "4096x3072x1",
            "4096x3072x10",
            "4096x3072x16",
            "50000x3072x10",
            "128x150528x10",
            "4096x3072x100",
            "1024x3072x1000",
        ),
        "project_classwise": ("4096x3072x10", "128x150528x100"),
        "ingest": ("1024x3072x9", "64x150528x9"),
        "softmax_regression_step": ("1024x3072x10",),
        "apply_perturbation": ("4096x3072x10",),
        "pgd_step": ("1024x3072x1", "1024x3072x2"),
    }
    for name, sizes in shapes.items():
        for size in sizes:
            table[f"{name}-{size}"] = lambda n=name, s=size: operator(n, s, None, compiled)  # type: ignore[misc]
    table["fit-50000x3072-b256"] = lambda: fit(50000, 3072, 10, 256)
    table["fit-50000x3072-b1024"] = lambda: fit(50000, 3072, 10, 1024)
    table["lsp-50000"] = lambda: lsp(50000)
    table["lsp-verb-50000"] = lambda: lsp(50000, whole=True)
    table["separability-10000"] = lambda: logistic(10_000)
    table["separability-50000"] = lambda: logistic(50_000)
    table["ops-50000"] = lambda: ops_search(50000)
    table["ar-50000"] = lambda: ar(50000)
    table["cuda-50000"] = lambda: convolution(50000)
    for method in ("lsp", "ops", "ar", "regions-16", "cwrandom", "cuda"):
        table[f"{method}-224px"] = lambda m=method: encoder(m, 64)  # type: ignore[misc]
    table["pil-50000"] = lambda: pil(50000)
    table["search-resnet18-16"] = lambda: search("resnet18-16", 128, 5)
    table["search-resnet18"] = lambda: search("resnet18", 32, 3)
    table["search-cnn"] = lambda: search("cnn", 512, 5)
    for side, size in ((32, "512x3072x7"), (224, "16x150528x7")):
        table[f"patches-{side}px"] = lambda s=size: operator("patch_filter", s, None, compiled)  # type: ignore[misc]
    table["loader-20000"] = lambda: loader(20000)
    return table
