"""`ntga`: noise against the generalisation of an infinitely wide network, whose training has a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..data.dataset import Dataset
from ..errors import InputError
from ..parameters import parameter
from .base import Workplace
from .store import PerturbationStore
from .surrogate import Images, Search, SurrogatePoison

# Variances of weights and biases in the neural tangent parametrisation.
WEIGHT, BIAS = 1.76, 0.18
# Ridge added to the kernel of a block, as a share of its mean diagonal.
RIDGE = 1e-4
LAYERS = 5  # of the fully connected network
DENSE = 3  # linear layers after the convolutions
KERNEL, STRIDE = 5, 2  # of both convolutions
# Bytes for a kernel and the memory of its gradient.
MEMORY = 1 << 29
MOST_HELD_OUT = 10_000

# Images (n, C, H, W) and (m, C, H, W) float64 to the neural tangent kernel (n, m).
TangentKernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NeuralTangentGeneralisation(SurrogatePoison):
    """One sign step up the loss of held-out images, after training a network of infinite width on a block of images for
    a time t. Training, prediction and gradient have a closed form through the neural tangent kernel; nothing is
    trained, and everything is computed in float64.

    The authors' program has ten steps but takes each from the clean images with the full bound, which amounts to one.
    It omits the held-out images from its output; here they are attacked too, with as many of the others held out for
    them. Blocks have equal size, and no image is left over.
    """

    summary = "noise against a network of infinite width (neural tangent kernel)"
    source = "Yuan and Wu, Neural Tangent Generalization Attacks, ICML 2021"
    aliases = ("neural-tangent-generalization-attack", "neural-tangent-generalisation-attack")

    surrogate: str = parameter(
        "fnn",
        "fnn: five dense layers with erf; cnn: two convolutions, hundreds of times slower",
        choices=("fnn", "cnn"),
    )
    t: float = parameter(64.0, "training time at which the loss is taken (best: fnn 4096, cnn 8)", at_least=0)
    block_size: int = parameter(512, "largest number of images trained on together", at_least=2)
    held_out: int | None = parameter(
        None, "images whose loss is driven up (default a fifth, at most 10,000)", at_least=1
    )

    def resolved(self, dataset: Dataset) -> dict[str, Any]:
        held_out = self.held_out or min(MOST_HELD_OUT, max(1, len(dataset) // 5))
        return {**self.parameters(), "held_out": held_out}

    def find(self, dataset: Dataset, seed: int, work: Workplace) -> PerturbationStore:
        n, held_out = len(dataset), self.resolved(dataset)["held_out"]
        if 2 * held_out > n:
            raise InputError(f"ntga: at most half of the {n:,} images may be held out, got held_out {held_out:,}")
        kernel = KERNELS[self.surrogate]
        images, store = Images(dataset, torch.device(work.device)), self.open_store(dataset, work)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed % (1 << 63)))
        blocks = [
            (rows, held)
            for some, held in ((order[held_out:], order[:held_out]), (order[:held_out], order[held_out:][:held_out]))
            for rows in some.tensor_split(math.ceil(len(some) / self.block_size))
        ]
        search = Search(work, store, self.identity(dataset, seed))
        state = search.begin({"done": 0, "loss": 0.0})
        processes = distributed.size()
        while state["done"] < len(blocks):
            now = blocks[state["done"] : state["done"] + processes]
            found, loss, at = torch.zeros(0, *dataset.image_shape).permute(0, 3, 1, 2), 0.0, 0
            if distributed.rank() < len(now):
                rows, held = now[distributed.rank()]
                at = sum(len(others) for others, _ in now[: distributed.rank()])
                found, loss = self._block(kernel, images, rows, held, dataset.num_classes)
            store.write(torch.cat([rows for rows, _ in now]), found, at)
            loss = float(distributed.sum_(torch.tensor(loss, dtype=torch.float64)))
            state = {"done": state["done"] + len(now), "loss": state["loss"] + loss}
            search.commit(state)
            work.tell("blocks", state["done"], len(blocks), loss=state["loss"] / state["done"])
        search.commit(state, last=True)
        work.facts |= {"blocks": len(blocks), "loss_before": state["loss"] / len(blocks)}
        return store

    def _block(
        self, kernel: TangentKernel, images: Images, rows: Tensor, held: Tensor, classes: int
    ) -> tuple[Tensor, float]:
        """The noise of a block (b, C, H, W), and the mean loss of the held-out images before it."""
        x = images.pixels(rows).double()
        y = nn.functional.one_hot(images.labels[rows.to(images.device)], classes).double()
        size = batch(self.surrogate, x)
        others = ((images.pixels(index).double(), images.labels[index.to(images.device)]) for index in held.split(size))
        loss, gradient = loss_gradient(kernel, x, y, others, self.t, size)
        return self.eps * gradient.sign().float(), float(loss) / len(held)


def batch(surrogate: str, x: Tensor) -> int:
    """Number of images whose kernel with the block x (b, C, H, W) fits in `MEMORY`."""
    b, _, height, width = x.shape
    places = 1 if surrogate == "fnn" else math.ceil(height / STRIDE) * math.ceil(width / STRIDE)
    maps = 12 * LAYERS if surrogate == "fnn" else 24
    return max(1, MEMORY // (8 * b * places * maps))


def loss_gradient(
    kernel: TangentKernel,
    x: Tensor,  # (b, C, H, W) float64: the block
    y: Tensor,  # (b, c) float64, one-hot
    held_out: Iterable[tuple[Tensor, Tensor]],  # images (v, C, H, W) float64 with labels (v,) int64
    t: float,  # time of training, at learning rate 1 of the mean squared error over images and classes
    size: int,  # columns of a kernel computed together
) -> tuple[Tensor, Tensor]:  # cross-entropy summed over the held-out images, its gradient (b, C, H, W)
    """The held-out loss of an infinitely wide network trained from zero on the block: its outputs are K(v, x) g(A) y,
    where A = K(x, x) + ridge and g(A) = A^-1 (1 - exp(-A t / (b c))). g(A) is differentiated by the formula of Daleckii
    and Krein.
    """
    b, time = len(x), t / y.numel()
    with torch.no_grad():
        own = torch.cat([kernel(x, some) for some in x.split(size)], 1)
        own = (own + own.T) / 2
        own.diagonal().add_(RIDGE * own.diagonal().mean())
        values, vectors = torch.linalg.eigh(own)
        g = _response(values, time)
        fitted = vectors @ (g[:, None] * (vectors.T @ y))
    total, pull = torch.zeros((), dtype=torch.float64, device=x.device), torch.zeros_like(y)
    gradient = torch.zeros_like(x)
    for images, labels in held_out:
        leaf = x.detach().requires_grad_()
        there = kernel(leaf, images)  # (b, v)
        outputs = there.detach().T @ fitted
        total += nn.functional.cross_entropy(outputs, labels, reduction="sum")
        residual = outputs.softmax(1) - nn.functional.one_hot(labels, y.shape[1])
        pull += there.detach() @ residual
        gradient += torch.autograd.grad(there, leaf, fitted @ residual.T)[0]
    slope = vectors.T @ pull @ y.T @ vectors
    slope = vectors @ (_divided(values, g, time) * (slope + slope.T) / 2) @ vectors.T
    slope.diagonal().add_(RIDGE / b * slope.trace())
    # K(x, x) depends on x through both of its arguments equally.
    for columns, weights in zip(x.split(size), slope.split(size, 1), strict=True):
        leaf = x.detach().requires_grad_()
        gradient += 2 * torch.autograd.grad(kernel(leaf, columns), leaf, weights)[0]
    return total, gradient


def _response(values: Tensor, time: float) -> Tensor:
    """(1 - exp(-value time)) / value; values above 0."""
    return -torch.expm1(-values * time) / values


def _divided(values: Tensor, g: Tensor, time: float) -> Tensor:
    """(b, b) divided differences of `_response` at the values (b,), where it is g; its derivative where two are
    equal.
    """
    a, b = values[:, None], values[None]
    middle = (a + b) / 2
    near = (a - b).abs() <= 1e-6 * middle
    small = middle * time < 1e-4
    derivative = (time * torch.exp(-middle * time) - _response(middle, time)) / middle
    derivative = torch.where(small, -(time**2) / 2 * (1 - 2 / 3 * middle * time), derivative)
    return torch.where(near, derivative, (g[:, None] - g[None]) / torch.where(near, torch.ones_like(a), a - b))


def fully_connected(x: Tensor, z: Tensor) -> Tensor:
    """The kernel (n, m) of five dense layers with an erf after each (Williams, 1997), averaged over the outputs; x (n,
    ...), z (m, ...).
    """
    x, z = x.flatten(1), z.flatten(1)
    d = x.shape[1]
    k, p, q = x @ z.T / d, (x * x).sum(1) / d, (z * z).sum(1) / d
    theta: Tensor | float = 0.0
    for _ in range(LAYERS):
        k, p, q = (WEIGHT * v + BIAS for v in (k, p, q))
        theta = k + WEIGHT * theta
        scale = (1 + 2 * p)[:, None] * (1 + 2 * q)
        theta = theta * (scale - 4 * k * k).rsqrt() * (4 / math.pi)
        k = torch.asin(2 * k * scale.rsqrt()) * (2 / math.pi)
        p, q = (torch.asin(2 * v / (1 + 2 * v)) * (2 / math.pi) for v in (p, q))
    assert isinstance(theta, Tensor)
    return theta


def convolutional(x: Tensor, z: Tensor) -> Tensor:
    """The kernel (n, m) of two zero-padded 5 x 5 convolutions of stride 2 with ReLU (Cho and Saul, 2009), followed by
    three dense layers; x (n, C, H, W), z (m, C, H, W).

    Layers that flatten without pooling depend only on the similarity of two images at the same position.
    """
    channels, height, width = x.shape[1:]
    weight = WEIGHT / KERNEL**2
    height, width = (math.ceil(side / STRIDE) for side in (height, width))
    of_x, of_z = (_patches(v).permute(2, 0, 1) / math.sqrt(channels) for v in (x, z))  # (places, n, 25 C)
    k = weight * (of_x @ of_z.transpose(1, 2)) + BIAS
    p, q = (weight * (v * v).sum(2) + BIAS for v in (of_x, of_z))
    theta = k
    k, slope = _rectified(k, p, q)
    theta, p, q = theta * slope, p / 2, q / 2
    every = torch.eye(height * width, dtype=x.dtype, device=x.device).view(-1, 1, height, width)
    sums = _patches(every).sum(1).T  # (places after, places before), one where a place is in the patch
    k, theta = (torch.tensordot(sums, v, 1) * weight for v in (k, theta))
    p, q = (weight * (sums @ v) + BIAS for v in (p, q))
    k = k + BIAS
    theta = theta + k
    k, slope = _rectified(k, p, q)
    k, theta = k.mean(0), (theta * slope).mean(0)
    for _ in range(DENSE):
        k = WEIGHT * k + BIAS
        theta = k + WEIGHT * theta
    return theta


def _patches(x: Tensor) -> Tensor:
    """The input patches of a convolution, (n, 25 C, positions); x (n, C, H, W). Padding after equals padding before, or
    is one more.
    """
    short = [max(0, (math.ceil(side / STRIDE) - 1) * STRIDE + KERNEL - side) for side in x.shape[2:]]
    up, left = (missing // 2 for missing in short)
    return nn.functional.unfold(nn.functional.pad(x, (left, short[1] - left, up, short[0] - up)), KERNEL, stride=STRIDE)


def _rectified(k: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The covariances after a ReLU and after its derivative, (places, n, m) each, for Gaussians with covariances k
    (places, n, m) and variances p (places, n), q (places, m).

    The angle of an image with itself stays zero and has no derivative.
    """
    square = p[:, :, None] * q[:, None, :]
    rest = square - k * k
    same = rest <= 1e-12 * square
    root = torch.where(same, torch.ones_like(rest), rest).sqrt()
    angle = torch.where(same, torch.where(k > 0, 0.0, math.pi), torch.atan2(root, k))
    half = (math.pi - angle) / (2 * math.pi)
    return torch.where(same, torch.zeros_like(root), root) / (2 * math.pi) + half * k, half


KERNELS: dict[str, TangentKernel] = {"fnn": fully_connected, "cnn": convolutional}
