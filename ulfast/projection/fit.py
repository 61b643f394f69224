"""Fitting the linear model whose weights the orthogonal projection removes."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .. import distributed, ops
from ..data.dataset import Dataset
from ..data.lazy import LazyImages, prefetch
from ..data.tensors import DEVICE_SHARE, as_tensor
from ..errors import InputError
from ..ops.state import ordinary
from ..runtime.progress import Progress
from .basis import Basis
from .fit_state import FitState

# Rows at a time when a data set is copied to a device or read again: a few MB of CIFAR, 150 MB at 224 px.
CHUNK = 1024
# Bytes of decoded images in one step of a further pass; batches whose decoding is planned together.
DECODED_BYTES, PIECE = 32 << 20, 512

# (b,) indices of a batch, on the CPU and on the device of the fit.
_Index = tuple[Tensor, Tensor]
# Size of a batch; our part of it: its indices, and the images, or all images and the rows among them.
_Block = tuple[int, _Index, Tensor, Tensor | None]


@ordinary
def fit_basis(
    dataset: Dataset,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    lr: float = 0.1,
    init: str = "zero",
    epochs: int | None = None,
    rank: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Basis:
    """Train a linear classifier without bias on the unchanged images and return the span of its weights.

    SGD on pixels in [0, 1] with cross-entropy, no augmentation, learning rate x0.1 at half and at three quarters.
    The default starts at zero, which keeps the weights in the span of the data, and counts steps, so that small data
    sets converge too. ``init="torch", epochs=20`` is the paper's fit: it starts at PyTorch's random initialisation,
    whose random part stays in the basis and turns it away from the perturbations; on small sets 20 epochs are too few
    steps from either start (docs/research/fit.md).

    Args:
        dataset: uint8 images (n, H, W, C) with int64 labels. They may be memory-mapped or decoded on demand
            (``load_dataset(..., stream=True)``): then memory does not grow with n, and decoding overlaps with the
            steps.
        steps: SGD steps (default 1,000), or
        epochs: passes over the data instead of steps (default 20 with ``init="torch"``).
        batch_size: default 256, or the paper's 1,024 when epochs are counted.
        lr: initial learning rate.
        init: "zero", or "torch" for `torch.nn.Linear`'s default.
        rank: number of directions to return. If fewer than the weights span, the leading ones; if more, further rounds
            are fitted, each to what the earlier rounds left of the images.
        seed: seed of the order and the random start.
        device: "auto", "cpu", "cuda" or a torch.device.
        checkpoint: file to which the weights are saved every few seconds, in case the fit is killed; remove it once the
            basis is saved.
        resume: continue from that file, to the same weights.
        progress: called as ``progress("fit", done, total, loss=..., accuracy=...)``.

    In the processes of `distributed.joined` each batch is split between them; the weights equal those of one process
    within float32's rounding.

    Returns:
        Basis with c - 1 rows (zero start) or up to c rows. Its metadata holds `train_accuracy` (of the final weights
        on the images), `loss`, `seconds` and the parameters.

    Source: Sandoval-Segura et al., NeurIPS 2023, Algorithm 1, lines 1 to 3.
    """
    if init not in ("zero", "torch"):
        raise InputError(f"init must be 'zero' or 'torch', got {init!r}")
    if steps is not None and epochs is not None:
        raise InputError("give the length of the fit as steps or as epochs, not both")
    if init == "torch" and steps is None and epochs is None:
        epochs = 20
    if (steps is not None and steps < 1) or (epochs is not None and epochs < 1):
        raise InputError("the fit needs at least one step: give --fit-steps or --fit-epochs of 1 or more")
    batch_size = batch_size or (256 if epochs is None else 1024)
    start = time.perf_counter()
    target = _device(device)
    images, labels = _images(dataset, target), as_tensor(dataset.labels).to(target)
    n, d = len(labels), math.prod(dataset.image_shape)
    if rank is not None and not 1 <= rank <= d:
        raise InputError(f"rank must be between 1 and {d}, got {rank}")
    batch_size = min(batch_size, n)
    total = steps or (1000 if epochs is None else epochs * math.ceil(n / batch_size))
    metadata = {
        "fit": "sgd",
        "init": init,
        "steps": total,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "images": n,
        "source": dataset.name,
    }
    identity = {**metadata, "image_shape": list(dataset.image_shape), "rank": rank}
    if checkpoint is not None:
        identity["data"] = dataset.fingerprint()
    state = FitState(checkpoint, resume, identity)
    bases = state.bases
    while not bases or (rank is not None and sum(b.rank for b in bases) < rank):
        taken = torch.cat([b.rows for b in bases]).to(target) if bases else None
        begun = state.weight
        weight = (_start(init, dataset.num_classes, d, seed + len(bases)) if begun is None else begun).to(target)
        batches = _batches(n, batch_size, total, seed + len(bases), drop_last=epochs is None, device=target)
        _descend(images, labels, weight, batches, total, lr, taken, state, progress)
        if init == "zero":
            # The gradient's rows sum to zero, and so do the weights, except for the rounding of a thousand steps, which
            # must not count as a direction. Softmax ignores what all classes share.
            weight -= weight.mean(0, dtype=torch.float64).float()
        loss, accuracy = _evaluate(images, labels, weight)
        if not math.isfinite(loss):
            raise InputError(f"the linear fit diverged at lr {lr}: give a smaller learning rate")
        facts = {"train_accuracy": accuracy, "loss": loss, "seconds": time.perf_counter() - start}
        found = Basis.from_weights(weight.cpu(), dataset.image_shape, metadata | facts)
        if bases and not found.rank:
            break  # nothing linear is left
        state.done(found)
    return bases[0] if rank is None else _joined(bases, rank)


def _joined(bases: list[Basis], rank: int) -> Basis:
    """The first `rank` directions of several rounds, orthonormal; weights and accuracy of the first round."""
    rows = torch.cat([b.rows for b in bases])[:rank]
    rows = torch.linalg.qr(rows.double().T)[0].T.float().contiguous()
    metadata = {
        **bases[0].metadata,
        "rank": len(rows),
        "rounds": len(bases),
        "round_accuracy": [b.metadata["train_accuracy"] for b in bases],
    }
    basis = Basis(rows, bases[0].image_shape, bases[0].weights, metadata)
    metadata["orthogonality_error"] = basis.orthogonality_error
    return basis


def _descend(
    images: Tensor | LazyImages,
    labels: Tensor,
    weight: Tensor,
    batches: Iterator[_Index],
    total: int,
    lr: float,
    taken: Tensor | None,
    state: FitState,
    progress: Progress | None,
) -> None:
    """SGD on `weight` in place, from the step after those recorded in `state`.

    With `taken` (k, d) it runs on the images without those directions. The images are not changed: projecting the
    weights gives the same logits and, as the projector is symmetric, the same steps.
    """
    if taken is not None and not state.step:
        ops.project_(weight, taken)
    rest = itertools.islice(batches, state.step, None)
    for step, (size, (_, index), x, rows) in enumerate(_blocks(images, rest, weight.device), state.step):
        rate = lr * (1.0 if step < total / 2 else 0.1 if step < 0.75 * total else 0.01)
        y = labels if rows is not None else labels[index]
        result = ops.softmax_regression_step(x, y, weight, rate, index=rows) if len(index) else None
        if distributed.size() > 1:
            # A step is linear in the images' gradients, so the mean of the parts' weights is the step of the whole
            # batch.
            distributed.sum_(weight.mul_(len(index) / size))
        if taken is not None:
            ops.project_(weight, taken)
        if progress and (step % 20 == 19 or step + 1 == total) and result is not None:
            loss, correct = result.tolist()
            progress("fit", step + 1, total, loss=loss, accuracy=correct / len(index))
        state.keep(step + 1, weight)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def _images(dataset: Dataset, device: torch.device) -> Tensor | LazyImages:
    """Images on the device (on the CPU a view, also of a memory map), or still undecoded, or on a GPU too small for
    them still on the host."""
    if isinstance(dataset.images, LazyImages):
        return dataset.images
    images = as_tensor(dataset.images)
    if device.type == "cuda" and images.nbytes > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images
    return images.to(device)


def _blocks(images: Tensor | LazyImages, batches: Iterator[_Index], device: torch.device) -> Iterator[_Block]:
    """Our part of each batch; undecoded images are decoded ahead, so the memory that is taken does not depend on their
    number."""
    cuts = ((index, there, slice(*distributed.share(len(index)))) for index, there in batches)
    parts = ((len(index), (index[cut], there[cut])) for index, there, cut in cuts)
    if isinstance(images, LazyImages):
        # Indices are one permutation per epoch: known in pieces, so that a long fit does not list them all.
        while piece := list(itertools.islice(parts, PIECE)):
            with contextlib.closing(prefetch(images, [index.numpy() for _, (index, _) in piece])) as decoded:  # type: ignore[type-var]
                for (size, at), block in zip(piece, decoded, strict=True):
                    yield size, at, torch.from_numpy(block).to(device), None
        return
    for size, (index, there) in parts:
        if images.device.type == device.type:
            yield size, (index, there), images, there
        else:
            yield size, (index, there), images[index].to(device), None


def _start(init: str, classes: int, d: int, seed: int) -> Tensor:
    if init == "zero":
        return torch.zeros(classes, d, dtype=torch.float32, device="cpu")
    bound = 1 / math.sqrt(d)  # what torch.nn.Linear draws: kaiming_uniform with a = sqrt(5)
    return (ops.philox_uniform(seed, ops.philox.STREAM_ORDER, 1 << 40, classes, d) * 2 - 1) * bound


def _batches(
    n: int, batch_size: int, total: int, seed: int, *, drop_last: bool, device: torch.device
) -> Iterator[_Index]:
    """`total` batches of indices, from a new permutation in every epoch. Fits by steps drop a short last batch; fits by
    epochs keep it. Each permutation is copied to the device as a whole, since each copy waits for the GPU.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    done = 0
    while done < total:
        order = torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")
        there = order.to(device)
        stop = n - n % batch_size if drop_last else n
        for begin in range(0, stop, batch_size):
            if done == total:
                return
            part = slice(begin, begin + batch_size)
            yield order[part], there[part]
            done += 1


def _evaluate(images: Tensor | LazyImages, labels: Tensor, weight: Tensor) -> tuple[float, float]:
    """Mean loss and accuracy of the final weights over all images, from the same kernel with a learning rate of 0."""
    state = torch.zeros(2, dtype=torch.float64, device=weight.device)
    # Images that are decoded again are taken a few dozen megabytes at a time.
    chunk = max(1, min(CHUNK, DECODED_BYTES // weight.shape[1])) if isinstance(images, LazyImages) else CHUNK
    order = torch.arange(len(labels), dtype=torch.int64, device="cpu")
    batches = zip(order.split(chunk), order.to(weight.device).split(chunk), strict=True)
    for _, (index, there), block, rows in _blocks(images, batches, weight.device):
        if not len(index):
            continue
        mine = slice(int(index[0]), int(index[-1]) + 1)
        x, y = (block, labels[there]) if rows is None else (block[mine], labels[mine])
        loss, correct = ops.softmax_regression_step(x, y, weight, 0.0)
        state += torch.stack([loss * len(y), correct])
    state = state.cpu()
    loss, correct = (distributed.sum_(state) / len(labels)).tolist()
    return loss, correct
