"""What is measured: every case sets up its data once and names its contestants. The first one is ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ulfast import ops
from ulfast.ops import reference

Run = Callable[[], Any]


@dataclass
class Case:
    """One row of the table.

    Attributes:
        name: shown and selected by.
        ours: name to function; the quickest counts.
        peers: name to function.
        bytes, flops: least traffic and arithmetic of one call, for the roof.
        error: largest deviation of ours from float64, and the same of the plain torch expression.
        repeats: rounds; every contestant runs once a round.
    """

    name: str
    ours: dict[str, Run]
    peers: dict[str, Run]
    bytes: float = 0.0
    flops: float = 0.0
    error: tuple[float, float] | None = None
    repeats: int = 15
    goals: dict[str, float] = field(default_factory=dict)


def orthonormal(k: int, d: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(d, k))[0].T.contiguous()


def project(n: int, d: int, k: int, compiled: bool) -> Case:
    x, basis = torch.rand(n, d), orthonormal(k, d)
    out, scratch = torch.zeros(n, d), x.clone()

    def eager() -> torch.Tensor:
        return x - (x @ basis.T) @ basis

    peers: dict[str, Run] = {
        "eager": eager,
        "addmm": lambda: torch.addmm(x, x @ basis.T, basis, alpha=-1),
        "addmm_ in place": lambda: scratch.addmm_(scratch @ basis.T, basis, alpha=-1),
    }
    if compiled:
        fast = torch.compile(lambda a, b: a - (a @ b.T) @ b)
        peers["compile"] = lambda: fast(x, basis)
    ours: dict[str, Run] = {
        "project": lambda: ops.project(x, basis),
        "project out=": lambda: ops.project(x, basis, out=out),
        "project_ in place": lambda: ops.project_(scratch, basis),
    }
    few = min(n, 64)
    exact = reference.project(x[:few].double(), basis.double())
    error = tuple(float((f(x[:few], basis).double() - exact).abs().max()) for f in (ops.project, reference.project))
    return Case(f"project {n} x {d}, k {k}", ours, peers, 8.0 * n * d, 4.0 * n * d * k, error,  # type: ignore[arg-type]
                goals={"eager": 10, "best": 3})  # fmt: skip


def ingest(n: int, size: int, k: int) -> Case:
    d = size * size * 3
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8)
    basis, mean, std = orthonormal(k, d), torch.rand(3), torch.rand(3) + 0.1
    shift, flip = torch.randint(-4, 5, (n, 2), dtype=torch.int32), torch.rand(n) < 0.5

    def eager() -> torch.Tensor:
        x = images.float().div(255).flatten(1)
        x = x - (x @ basis.T) @ basis
        x = ((x.view(n, size, size, 3) - mean) / std).to(torch.bfloat16)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    got = ops.ingest(images[:8], basis, mean, std)
    exact = reference.unit(images[:8], torch.float64)
    exact = (reference.project(exact, basis.double()) - mean) / std
    error = float((got.permute(0, 2, 3, 1).double() - exact).abs().max())
    return Case(
        f"ingest u8 -> bf16, {n} x {size} px, k {k}",
        {"ingest": lambda: ops.ingest(images, basis, mean, std, dtype=torch.bfloat16),
         "with crop and flip": lambda: ops.ingest(images, basis, mean, std, dtype=torch.bfloat16, shift=shift,
                                                  flip=flip)},
        {"eager, no crop": eager},
        3.0 * n * d, 4.0 * n * d * k, (error, math.nan), goals={"eager": 15},
    )  # fmt: skip


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

    # One step from a small start: after many on such data the rounding of the first decides the rest.
    few, a = slice(0, batch), torch.full((classes, d), 1e-3)
    b = a.double()
    ops.softmax_regression_step(images[few], labels[few], a, 0.1)
    x = images[few].double() / 255
    p = (x @ b.T).softmax(1)
    p[torch.arange(len(x)), labels[few]] -= 1
    b -= 0.1 / len(x) * p.T @ x
    return Case(f"linear fit, one epoch of {n} x {d} u8, batch {batch}", {"softmax_regression_step": ours},
                {"tensor loop": tensors, "nn.Linear and SGD": autograd}, float(n * d), 4.0 * n * d * classes,
                (float((a - b).abs().max()), math.nan), repeats=5, goals={"best": 4})  # fmt: skip


def lsp(n: int) -> Case:
    from sklearn.datasets import make_classification

    from ulfast.data import Dataset
    from ulfast.poisons.lsp import LSP

    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(n) % 10
    perturb = LSP().prepare(Dataset(images, labels, tuple("0123456789")), 0)

    def ours() -> None:
        for first in range(0, n, 1024):
            perturb(first, images[first : first + 1024], labels[first : first + 1024])

    def published() -> np.ndarray:
        """As the authors write it: draw with scikit-learn, reshape, enlarge, scale, add, clip, truncate."""
        latent, y = make_classification(n, 48, n_informative=48, n_redundant=0, n_repeated=0, n_classes=10,
                                        n_clusters_per_class=1, class_sep=10.0, flip_y=0.0, random_state=0)  # fmt: skip
        noise = latent.reshape(n, 4, 4, 3).repeat(8, 1).repeat(8, 2).astype(np.float32)
        noise *= (6 / 255 * math.sqrt(3072)) / np.linalg.norm(noise.reshape(n, -1), axis=1)[:, None, None, None]
        own = np.empty_like(noise)
        own[np.argsort(labels, kind="stable")] = noise[np.argsort(y, kind="stable")]
        return ((images / 255.0 + own).clip(0, 1) * 255).astype(np.uint8)

    return Case(f"lsp, {n} images of 32 px", {"perturb_lsp, apply": ours}, {"scikit-learn": published},
                2.0 * n * 3072, 2.0 * n * 48 * 48, repeats=3, goals={"best": 60})  # fmt: skip


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

    peers: dict[str, Run] = {"DataLoader, 2 workers": lambda: drain(usual)}
    return Case(f"loader, {n} images of 32 px, crop and flip", {"MemoryLoader": lambda: drain(ours)}, peers,
                5.0 * n * 3072, repeats=3, goals={"best": 5})  # fmt: skip


def cases(compiled: bool) -> dict[str, Callable[[], Case]]:
    """Every case by its key; nothing is allocated before it is called."""
    table: dict[str, Callable[[], Case]] = {}
    for n, d, k in [(4096, 3072, 1), (4096, 3072, 10), (4096, 3072, 16), (50000, 3072, 10), (128, 150528, 10),
                    (4096, 3072, 100), (1024, 3072, 1000)]:  # fmt: skip
        table[f"project-{n}x{d}-k{k}"] = lambda n=n, d=d, k=k: project(n, d, k, compiled)  # type: ignore[misc]
    table["ingest-1024x32px-k9"] = lambda: ingest(1024, 32, 9)
    table["ingest-64x224px-k9"] = lambda: ingest(64, 224, 9)
    table["fit-50000x3072-b256"] = lambda: fit(50000, 3072, 10, 256)
    table["fit-50000x3072-b1024"] = lambda: fit(50000, 3072, 10, 1024)
    table["lsp-50000"] = lambda: lsp(50000)
    table["loader-20000"] = lambda: loader(20000)
    return table
