"""The closed forms of `ntga` against networks of finite width and finite differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ulfast import InputError
from ulfast.poisons import Workplace, get_poison, ntga, poison

VARIANCES = (ntga.WEIGHT, ntga.BIAS)


class Layer(nn.Module):
    """A dense layer or a convolution as a product with every patch, in the parametrisation of the kernels: standard
    normals, scaled as they are used. It keeps what it last saw and gave."""

    def __init__(self, inputs: int, outputs: int, side: int = 1) -> None:
        super().__init__()
        self.side, self.fan = side, inputs * side**2
        self.weight, self.bias = torch.randn(outputs, self.fan), torch.randn(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        after = None
        if self.side > 1:
            after = [-(-size // 2) for size in x.shape[2:]]
            missing = [(a - 1) * 2 + 5 - size for a, size in zip(after, x.shape[2:], strict=True)]
            up, left = (m // 2 for m in missing)
            x = nn.functional.pad(x, (left, missing[1] - left, up, missing[0] - up))
            x = nn.functional.unfold(x, 5, stride=2).transpose(1, 2)
        else:
            x = x[:, None]
        self.seen = x  # (n, places, fan)
        self.given = (VARIANCES[0] / self.fan) ** 0.5 * x @ self.weight.T + VARIANCES[1] ** 0.5 * self.bias
        if not self.given.requires_grad:
            self.given.requires_grad_()
        return self.given.transpose(1, 2).unflatten(2, after) if after else self.given[:, 0]


class Erf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


def wide(kind: str, x: torch.Tensor) -> nn.Module:
    inputs, outputs = x[0].numel(), 64
    if kind == "fnn":
        sizes = [inputs, 512, 512, 512, 512, outputs]
        layers = [[Layer(a, b), Erf()] for a, b in itertools.pairwise(sizes)]
        return nn.Sequential(nn.Flatten(), *(one for pair in layers for one in pair))
    channels, places = 256, np.prod([math.ceil(side / 4) for side in x.shape[2:]])
    return nn.Sequential(
        *(Layer(x.shape[1], channels, 5), nn.ReLU(), Layer(channels, channels, 5), nn.ReLU(), nn.Flatten()),
        *(Layer(channels * int(places), 512), Layer(512, 512), Layer(512, outputs)),
    )


def empirical(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Products of the outputs' gradients by all weights and biases, mean over the outputs; (n, n)."""
    outputs = network(x)
    layers = [one for one in network if isinstance(one, Layer)]
    every = torch.eye(outputs.shape[1])[:, None].expand(-1, len(x), -1)
    slopes = torch.autograd.grad(outputs, [one.given for one in layers], every, is_grads_batched=True)
    total = torch.zeros(len(x), len(x))
    for layer, slope in zip(layers, slopes, strict=True):  # slope (outputs, n, places, out)
        alike = torch.einsum("ipf,jqf->ijpq", layer.seen.detach(), layer.seen.detach())
        pulls = torch.einsum("kipo,kjqo->ijpq", slope, slope) / len(slope)
        total += ((VARIANCES[0] / layer.fan * alike + VARIANCES[1]) * pulls).sum((2, 3))
    return total


@pytest.mark.parametrize("kind", ["fnn", "cnn"])
def test_the_kernel_is_that_of_a_wide_network(kind):
    torch.manual_seed(0)
    x = torch.rand(3, 3, 7, 6)
    x[1] = 0.8 * x[0] + 0.2 * x[1]
    draws = torch.stack([empirical(wide(kind, x), x) for _ in range(12)]).double()
    want = ntga.KERNELS[kind](x.double(), x.double())
    error = draws.std(0) / len(draws) ** 0.5
    assert float((error / want).max()) < 0.04
    assert float(((draws.mean(0) - want).abs() / (error + 0.005 * want)).max()) < 3
    # Alike images are more alike to it, beyond what the draws differ by.
    assert want[0, 1] > 1.02 * want[0, 2]
    assert torch.allclose(want, want.T)


@pytest.mark.parametrize("t", [0.5, 64.0, 4096.0])
@pytest.mark.parametrize("kind", ["fnn", "cnn"])
def test_the_gradient_is_that_of_finite_differences(kind, t):
    generator = torch.Generator().manual_seed(1)
    x, v = (torch.rand(n, 3, 6, 7, generator=generator, dtype=torch.float64) for n in (8, 5))
    y = nn.functional.one_hot(torch.arange(8) % 3, 3).double()
    labels, kernel = torch.arange(5) % 3, ntga.KERNELS[kind]

    def loss(x):
        """By the definition, with the matrix's own inverse and exponential."""
        own = kernel(x, x)
        a = own + ntga.RIDGE * own.diagonal().mean() * torch.eye(8, dtype=torch.float64)
        trained = torch.linalg.solve(a, (torch.eye(8, dtype=torch.float64) - torch.matrix_exp(-a * t / 24)) @ y)
        return nn.functional.cross_entropy(kernel(v, x) @ trained, labels, reduction="sum")

    batches = [(v[:3], labels[:3]), (v[3:], labels[3:])]
    value, gradient = ntga.loss_gradient(kernel, x, y, batches, t, 3)
    assert float(value) == pytest.approx(float(loss(x)), rel=1e-9)
    step = 1e-5
    for i in range(12):
        at = (i % 8, i % 3, i % 6, (3 * i) % 7)
        up, down = x.clone(), x.clone()
        up[at] += step
        down[at] -= step
        slope = float(loss(up) - loss(down)) / (2 * step)
        assert float(gradient[at]) == pytest.approx(slope, rel=1e-4, abs=1e-8 + 1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ["fnn", "cnn"])
def test_the_held_out_loss_goes_up_and_every_image_moves_by_the_bound(make_dataset, kind):
    clean = make_dataset(60)
    made = poison(clean, "ntga", surrogate=kind, block_size=20)
    moved = made.images.astype(int) - clean.images
    assert (np.abs(moved)[(clean.images > 8) & (clean.images < 247)] == 8).mean() > 0.99
    assert made.manifest["parameters"]["held_out"] == 12
    assert made.manifest["making"]["blocks"] == 4  # three of 16 and the held-out 12
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    held, rows = order[:12], order[12:28]

    def judged(images):
        x, v = (torch.from_numpy(a).permute(0, 3, 1, 2).double() / 255 for a in (images[rows], clean.images[held]))
        y = nn.functional.one_hot(torch.from_numpy(clean.labels[rows]), 3).double()
        batches = [(v, torch.from_numpy(clean.labels[held]))]
        return float(ntga.loss_gradient(ntga.KERNELS[kind], x, y, batches, 64.0, 20)[0])

    assert judged(made.images) > judged(clean.images)


def test_an_image_depends_only_on_its_block(make_dataset, monkeypatch):
    """Batches of held-out images and columns of the kernel do not change the result."""
    clean = make_dataset(60)
    whole = poison(clean, "ntga", block_size=20)
    monkeypatch.setattr(ntga, "batch", lambda *a: 7)
    other = poison(clean, "ntga", block_size=20)
    assert (whole.images != other.images).mean() < 1e-3  # signs of what is zero but for rounding
    assert ntga.batch("fnn", torch.zeros(2, 3, 12, 12)) == 7


def test_wrong_settings_are_one_line(make_dataset):
    clean = make_dataset(60)
    with pytest.raises(InputError, match="at most half of the 60 images may be held out, got held_out 31"):
        poison(clean, "ntga", held_out=31)
    with pytest.raises(InputError, match="surrogate must be one of fnn, cnn"):
        poison(clean, "ntga", surrogate="resnet18")
    assert get_poison("ntga")[1].resolved(make_dataset(60))["held_out"] == 12
    assert Workplace(device="cpu").device.type == "cpu"
