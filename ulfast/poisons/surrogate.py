"""The engine of the poisons that train a network: the network and its gradients, the search, and resumable rounds.

The processes of `distributed.joined` run all of it together. They train on their part of each batch and take the
batches of a search in turn, so that these are the same for every number of processes.

Only this file, `generator` and those that build on it import `ulfast.training`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import distributed, ops
from ..data.dataset import Dataset
from ..data.loaders.memory import MemoryLoader
from ..data.tensors import as_tensor, channel_statistics
from ..errors import InputError
from ..parameters import parameter
from ..runtime import devices
from ..runtime.files import write_json
from ..runtime.reading import reading
from ..training import build_model, checkpoint, get_recipe, parallel, train
from .augment import shown
from .base import Perturb, Poison, Workplace
from .store import KINDS, PerturbationStore

# Seconds of work that a killed run may lose.
COMMIT_SECONDS = 60.0
# Augmentation draws for the training of a clean network are numbered from here, those for the search from zero.
CLEAN = 1 << 28


@dataclass(frozen=True)
class SurrogatePoison(Poison):
    """A poison found with the gradients of a network. Subclasses implement the search in `find`."""

    trains: ClassVar[bool] = True

    eps: float = parameter(8 / 255, "L-infinity bound, pixels in [0, 1]", at_least=0)
    surrogate: str = parameter("resnet18", "network: cnn, resnet18, resnet18-WIDTH or timm:NAME")
    store: str = parameter("int8", "how perturbations are stored meanwhile", choices=tuple(KINDS))

    @property
    def by_class(self) -> bool:
        return getattr(self, "wise", "sample") == "class"

    def prepare(self, dataset: Dataset, seed: int, work: Workplace) -> Perturb:
        if self.eps <= 0:
            raise InputError("a surrogate's poison needs an eps above 0")
        store = self.find(dataset, seed, work)
        distributed.wait()  # until the first process has saved everything
        classwise = store.rows != len(dataset)

        def perturb(first: int, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            rows = torch.from_numpy(labels) if classwise else torch.arange(first, first + len(images))
            return store.apply(images, rows)

        return perturb

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        """Trains, searches, and returns the perturbations: one per image, or one per class."""
        raise TypeError(f"{type(self).__name__} does not say how to search")

    def identity(self, dataset: Dataset, seed: int) -> dict[str, Any]:
        """The settings that a resumed run must share with the interrupted one."""
        return {"method": type(self).__name__, **self.parameters(), "seed": seed, "data": dataset.checksum()}

    def open_store(self, dataset: Dataset, work: Workplace, rows: int | None = None) -> PerturbationStore:
        n = len(dataset) if rows is None else rows
        return PerturbationStore(work.folder, n, dataset.image_shape, self.eps, self.store)


class Images:
    """The pixels and labels of a data set in the form that the searches use."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.device, self.n = device, len(dataset)
        self._images, self.labels = as_tensor(dataset.images), as_tensor(dataset.labels).to(device)
        self._zero, self._one = torch.zeros(dataset.image_shape[2]), torch.ones(dataset.image_shape[2])

    def pixels(self, index: Tensor) -> Tensor:
        """(b, C, H, W) float32 in [0, 1], channels_last; one pass from the stored bytes."""
        if self.device.type == "cpu":
            return ops.ingest(self._images, None, self._zero, self._one, index=index)
        images = self._images[index].to(self.device, non_blocking=True)
        return ops.ingest(images, None, self._zero, self._one)

    def chunks(self, size: int, begin: int = 0) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Iterates over the images from `begin` on, in order, with a batch of `size` for each process at a time.

        Yields:
            The indices of the images that all processes take now; those of this process's batch, which may be empty;
            and where the latter begin in the former.
        """
        for first in range(begin, self.n, size * distributed.size()):
            together = torch.arange(first, min(first + size * distributed.size(), self.n))
            at = min(size * distributed.rank(), len(together))
            yield together, together[at : at + size], at


def shuffled(n: int, size: int, seed: int, at: int) -> Tensor:
    """Indices of batch number `at` in an endless sequence with a new order every epoch, drawn from (seed, epoch)."""
    size = min(size, n)
    each = n // size
    generator = torch.Generator().manual_seed((seed * 1_000_003 + at // each) % (1 << 63))
    return torch.randperm(n, generator=generator)[at % each * size :][:size]


def part(index: Tensor) -> tuple[Tensor, int]:
    """This process's part of a training batch, and where it begins in the batch."""
    begin, stop = distributed.share(len(index))
    return index[begin:stop], begin


class Surrogate:
    """A network that takes pixels in [0, 1] and gives their gradients.

    The gradient is taken with respect to the normalised pixels: it differs by a positive factor per channel, which does
    not change its sign, and half precision can start at the input.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.model = self._network = model.to(device)
        self.device, self.half = device, devices.fast_half(device)
        self._mean, self._std = (torch.tensor(v, device=device)[:, None, None] for v in (mean, std))

    @property
    def mean(self) -> Tensor:
        """(C, 1, 1) float32: the mean of the data's pixels."""
        return self._mean

    @property
    def std(self) -> Tensor:
        """(C, 1, 1) float32: their standard deviation."""
        return self._std

    def normalised(self, x: Tensor) -> Tensor:
        return x.sub(self._mean).div_(self._std).to(self.half or torch.float32)

    def forward(self, x: Tensor, network: nn.Module | None = None) -> Tensor:
        """Logits (b, c) float32 for normalised pixels."""
        with torch.autocast(self.device.type, dtype=self.half, enabled=self.half is not None):
            out = (network or self.model)(x)
        return out.float()

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy summed over the batch: its gradient (b, C, H, W) float32, the losses (b,) and logits (b, c)."""
        leaf = self.normalised(x).requires_grad_()
        logits = self.forward(leaf)
        losses = nn.functional.cross_entropy(logits, y, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return gradient.float(), losses.detach(), logits.detach()

    @torch.no_grad()
    def judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (b,), and which images are classified correctly (b,)."""
        logits = self.forward(self.normalised(x))
        return nn.functional.cross_entropy(logits, y, reduction="none"), logits.argmax(1) == y

    @contextlib.contextmanager
    def learning(self, batch_size: int) -> Iterator[None]:
        """Within the block `learn` is a step of all processes, in `parallel.spread`.

        Raises:
            InputError: batches have fewer images than there are processes.
        """
        if batch_size < distributed.size():
            raise InputError(f"batches of {batch_size} images for {distributed.size()} processes: give fewer")
        with parallel.spread(self.model, self.device, distributed.size()) as self._network:
            try:
                yield
            finally:
                self._network = self.model

    def learn(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, size: int, clip: float = 0.0) -> Tensor:
        """One step of training on a batch of `size` images, of which x, y are this process's part.

        Returns:
            The part's share of the batch's mean loss before the step; the shares of all processes sum to that loss.
        """
        loss = nn.functional.cross_entropy(self.forward(self.normalised(x), self._network), y) * (len(y) / size)
        optimizer.zero_grad(set_to_none=True)
        (loss * distributed.size()).backward()  # gradients are averaged over the processes
        if clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        optimizer.step()
        return loss.detach()


@contextlib.contextmanager
def searching(*surrogates: Surrogate) -> Iterator[None]:
    """Evaluation mode without weight gradients (a third of the arithmetic), and the same network in every process."""
    if distributed.size() > 1:
        for s in surrogates:
            parallel.same_buffers(s.model)
    before = [(s.model.training, [p.requires_grad for p in s.model.parameters()]) for s in surrogates]
    for s in surrogates:
        s.model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for s, (training, wanted) in zip(surrogates, before, strict=True):
            s.model.train(training)
            for p, w in zip(s.model.parameters(), wanted, strict=True):
                p.requires_grad_(w)


def new_surrogate(name: str, dataset: Dataset, seed: int, device: torch.device) -> Surrogate:
    """A randomly initialised network with the data's own normalisation."""
    model = build_model(name, num_classes=dataset.num_classes, image_shape=dataset.image_shape, seed=seed)
    return Surrogate(model, *channel_statistics(dataset, shared=True), device)


def trained_surrogates(
    name: str,
    dataset: Dataset,
    epochs: int | None,
    seed: int,
    work: Workplace,
    count: int = 1,
    *,
    strength: float = 0.0,
    changes: dict[str, Any] | None = None,
    on: Dataset | None = None,
) -> list[Surrogate]:
    """Networks trained on the clean images or the `surrogate_data`: the last, or `count` evenly spaced checkpoints of
    one run.

    The recipe is `quick`; networks that are already trained are loaded from the work folder.

    Args:
        strength: strength of `augmented`, which then replaces the recipe's augmentation.
        changes: changes to the recipe.
        on: what to train on instead of either.
    """
    device = torch.device(work.device)
    given = work.surrogate_data if on is None else on
    dataset = dataset if given is None else given
    surrogate = new_surrogate(name, dataset, seed, device)
    recipe = get_recipe("quick", name, len(dataset))
    recipe = replace(recipe, epochs=epochs or recipe.epochs, batch_size=min(recipe.batch_size, len(dataset)))
    recipe = replace(recipe, augment=None if strength else recipe.augment, **(changes or {}))
    options: dict[str, Any] = {
        "mean": surrogate._mean.flatten().tolist(),
        "std": surrogate._std.flatten().tolist(),
        "device": device,
        "seed": seed,
        "part": (distributed.rank(), distributed.size()),
    }
    # A last batch too small for all processes is dropped; only this depends on the number of processes.
    short = 0 < len(dataset) % recipe.batch_size < distributed.size()
    loader = MemoryLoader(dataset, recipe.batch_size, augment=recipe.augment, shuffle=True, drop_last=short, **options)
    few = dataset.subset(np.arange(min(len(dataset), 1000)))
    folder = work.folder / "surrogate"
    result = train(
        surrogate.model,
        loader,
        MemoryLoader(few, 250, **options),
        recipe,
        hooks=[_augmenting(strength, seed, len(dataset), recipe.batch_size)] if strength else [],
        seed=seed,
        folder=folder,
        resume=work.resume,
        identity={"data": dataset.checksum()} | ({"strength": strength} if strength else {}),
        keep_checkpoints=count > 1,
        evaluate_every=recipe.epochs,
        stage="surrogate",
        progress=work.progress,
    )
    work.facts |= {"surrogate_epochs": recipe.epochs, "surrogate_accuracy": result.train_accuracy}
    if count == 1:
        return [surrogate]
    chosen = sorted({math.ceil((i + 1) * recipe.epochs / count) for i in range(count)})
    found = []
    for epoch in chosen:
        one = new_surrogate(name, dataset, seed, device)
        if distributed.is_main():  # it wrote them
            one.model.load_state_dict(checkpoint.load_weights(folder / f"epoch-{epoch:03d}.pt"))
        if distributed.size() > 1:
            parallel.same_network(one.model)
        found.append(one)
    return found


def _augmenting(
    strength: float, seed: int, n: int, size: int
) -> Callable[[Tensor, Tensor, Any], tuple[Tensor, Tensor]]:
    """`augmented` for the normalised batches of a training on n images, `size` at a time. An image's augmentation
    depends on (seed, epoch, its place in the epoch), for any number of processes.
    """
    at = {"epoch": -1, "batch": 0}

    def hook(x: Tensor, y: Tensor, step: Any) -> tuple[Tensor, Tensor]:
        at["batch"] = at["batch"] + 1 if step.epoch == at["epoch"] else 0
        at["epoch"] = step.epoch
        place = at["batch"] * size
        place += distributed.share(min(size, n - place))[0]
        mean, std = (v[:, None, None] for v in (step.mean, step.std))
        pixels = (x.float() * std + mean).clamp(0, 1)
        seen, _ = shown(pixels, strength, seed, CLEAN + step.epoch, place)
        return seen.sub_(mean).div_(std).to(x.dtype).contiguous(memory_format=torch.channels_last), y

    return hook


# Maps pixels (b, C, H, W) and the step number to the networks' view, and to a function that maps gradients back.
Augment = Callable[[Tensor, int], tuple[Tensor, Callable[[Tensor], Tensor]]]


def descend(
    surrogates: Sequence[Surrogate],
    x: Tensor,  # (b, C, H, W) float32 in [0, 1], stepped in place
    start: Tensor,  # like x: the clean pixels
    y: Tensor,  # (b,) int64: the labels whose loss the steps descend (or ascend)
    *,
    alphas: Sequence[float],  # size of each step; negative steps descend
    eps: float,
    augment: Augment | None = None,  # the networks' view of x
) -> Tensor:  # (b,) losses before the first step, averaged over the networks
    """Sign steps on the mean loss of the networks, within the ball around `start` and within [0, 1]."""
    first = None
    for step, alpha in enumerate(alphas):
        seen, back = (x, None) if augment is None else augment(x, step)
        total, losses, _ = surrogates[0].gradient(seen, y)
        for other in surrogates[1:]:
            gradient, more, _ = other.gradient(seen, y)
            total += gradient
            losses = losses + more
        first = losses / len(surrogates) if first is None else first
        total = total if back is None else back(total)
        ops.pgd_step(x, total, start, alpha=alpha, eps=eps)
    return torch.zeros(len(y), device=x.device) if first is None else first


def mean_loss(surrogates: Sequence[Surrogate], x: Tensor, y: Tensor) -> Tensor:
    """(b,) losses, averaged over the networks."""
    losses = surrogates[0].judge(x, y)[0]
    for other in surrogates[1:]:
        losses = losses + other.judge(x, y)[0]
    return losses / len(surrogates)


class Search:
    """Makes a search resumable: perturbations, network, optimizer and a small state are committed together.

    All processes begin, and have the same state at any time; the first one decides when to save it.

    Args:
        identity: settings that a resumed search must match.
        network, optimizer: given if they change during the search.
    """

    def __init__(
        self,
        work: Workplace,
        store: PerturbationStore,
        identity: dict[str, Any],
        network: tuple[nn.Module, torch.optim.Optimizer] | None = None,
    ) -> None:
        self.work, self.store, self.identity, self.network = work, store, identity, network
        self._file: Path = work.folder / ("state.pt" if network else "state.json")
        self._number, self._committed = 0, time.monotonic()

    def begin(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns `state`, or the state that an interrupted run left.

        Raises:
            InputError: the run had other settings, or its files are damaged.
        """
        if not distributed.agreed(self.work.resume and self._file.is_file()):
            return state
        if self.network:
            kept = checkpoint.load(self._file, *self.network, self.identity)
        else:
            with reading(self._file, "start anew with --overwrite"):
                kept = json.loads(self._file.read_text(encoding="utf-8"))
                other = [key for key, value in self.identity.items() if kept["identity"].get(key) != value]
            if other:
                raise InputError(
                    f"{self._file} belongs to a run with another {', '.join(other)}: give the same settings, or"
                    " --overwrite"
                )
        self._number = kept["number"]
        self.store.restore(self._number)
        found: dict[str, Any] = kept["state"]
        return found

    def commit(self, state: dict[str, Any], *, last: bool = False) -> None:
        """Saves everything if the last save was long enough ago."""
        now = time.monotonic()
        if not distributed.is_main() or (not last and now - self._committed < COMMIT_SECONDS):
            return
        self._number += 1
        self.store.commit(self._number)
        content = {"identity": self.identity, "number": self._number, "state": state}
        if self.network:
            checkpoint.save(self._file, *self.network, content)
        else:
            write_json(self._file, content)
        self.store.forget(self._number)
        self._committed = time.monotonic()


def sweep(
    surrogates: Sequence[Surrogate],
    images: Images,
    store: PerturbationStore,
    search: Search,
    *,
    targets: Callable[[Tensor], Tensor],
    alphas: Sequence[float],
    batch_size: int,
    restarts: int = 0,
    normal: bool = False,
    augment: Callable[[Tensor, int], Augment] | None = None,
    seed: int = 0,
    stage: str = "search",
) -> None:
    """Searches for a perturbation of every image once, from the stored one or from random starts.

    Args:
        targets: maps labels (b,) to the labels used in the loss.
        alphas: as in `descend`; all of the same sign.
        restarts: number of random starts in the ball, drawn from (seed, start, image number); the best is kept for each
            image. 0: start from the store.
        normal: as in `random_start`.
        augment: maps the indices (b,) of a batch's images and the number of the start to the networks' view at each
            step.

    The mean losses before and after are added to the facts of the work.
    """
    work = search.work
    state = search.begin({"done": 0, "before": 0.0, "after": 0.0})
    with searching(*surrogates):
        for together, index, at in images.chunks(batch_size, state["done"]):
            start = images.pixels(index)
            found, losses = torch.zeros_like(start), torch.zeros(2, dtype=torch.float64)
            if len(index):
                y = targets(images.labels[index.to(images.device)])
                if restarts:
                    starts = (
                        (
                            random_start(seed, (number << 40) + int(index[0]), start, store.eps, normal=normal),
                            augment and augment(index, number),
                        )
                        for number in range(restarts)
                    )
                    found, first, last = _best(surrogates, start, starts, y, alphas, store.eps)
                else:
                    offset, seen = store.read(index, images.device), augment and augment(index, 0)
                    found, first, last = _one(surrogates, start, offset, y, alphas, store.eps, seen)
                losses += torch.stack([first.sum(), last.sum()]).cpu()
            store.write(together, found, at)
            before, after = distributed.sum_(losses).tolist()
            state = {"done": int(together[-1]) + 1, "before": state["before"] + before, "after": state["after"] + after}
            search.commit(state)
            work.tell_often(stage, state["done"], images.n, loss=state["after"] / state["done"])
    search.commit(state, last=True)
    work.tell(stage, images.n, images.n, loss=state["after"] / images.n)
    work.facts |= {"loss_before": state["before"] / images.n, "loss_after": state["after"] / images.n}


# A perturbation (b, C, H, W), and the losses (b,) before and after.
Found = tuple[Tensor, Tensor, Tensor]


def _one(
    surrogates: Sequence[Surrogate],
    start: Tensor,
    offset: Tensor,
    y: Tensor,
    alphas: Sequence[float],
    eps: float,
    augment: Augment | None = None,
) -> Found:
    """Runs the steps of a batch from `start`; see `_Found` for the result."""
    x = (start + offset).clamp_(0, 1)
    before = descend(surrogates, x, start, y, alphas=alphas, eps=eps, augment=augment)
    return x - start, before, mean_loss(surrogates, x, y)


def _best(
    surrogates: Sequence[Surrogate],
    start: Tensor,
    starts: Iterator[tuple[Tensor, Augment | None]],
    y: Tensor,
    alphas: Sequence[float],
    eps: float,
) -> Found:
    """The best of several starts; the loss before is the clean images'."""
    before = mean_loss(surrogates, start, y)
    offset, augment = next(starts)
    found, _, least = _one(surrogates, start, offset, y, alphas, eps, augment)
    for offset, augment in starts:
        other, _, loss = _one(surrogates, start, offset, y, alphas, eps, augment)
        better = loss < least if not alphas or alphas[0] < 0 else loss > least
        found = torch.where(better[:, None, None, None], other, found)
        least = torch.where(better, loss, least)
    return found, before, least


def random_start(seed: int, row: int, like: Tensor, eps: float, *, normal: bool = False) -> Tensor:
    """Random starts of a search, of the shape of (b, C, H, W) float32, each from (seed, row + its place in the batch)
    alone.

    Args:
        row: unique to each start; below 2^62.
        eps: bound, pixels in [0, 1].
        normal: eps times a standard normal, clamped to the ball, instead of uniform in it.
    """
    b, c, h, w = like.shape
    draw = ops.philox_normal if normal else ops.philox_uniform
    u = draw(seed, ops.philox.STREAM_SURROGATE, row, b, c * h * w, device=like.device)
    offset = (u * eps).clamp_(-eps, eps) if normal else (u * 2 - 1) * eps
    return offset.view(b, h, w, c).permute(0, 3, 1, 2)


def check_finite(loss: float, where: str) -> None:
    """Raises InputError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise InputError(f"the surrogate's loss is {loss} in {where}: give a smaller learning rate (--set lr=0.01)")
