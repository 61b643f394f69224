"""Training in several processes: DistributedDataParallel, and batch normalisation over the whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import distributed


class _Sum(torch.autograd.Function):
    """Sums over the processes, also in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Normalises by the statistics of the images of all processes, as `torch.nn.SyncBatchNorm` does on GPUs only. It
    takes one sum over the processes in each direction, in float64 because of the difference of two large numbers.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        moments = [wide.sum((0, 2, 3), dtype=torch.float64), (wide * wide).sum((0, 2, 3), dtype=torch.float64)]
        count = torch.full((1,), float(x.numel() // x.shape[1]), dtype=torch.float64)
        total = _Sum.apply(torch.cat([*moments, count]))  # type: ignore[no-untyped-call]
        n, c = total[-1], x.shape[1]
        mean = total[:c] / n
        variance = total[c : 2 * c] / n - mean * mean
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            assert self.momentum is not None
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((variance * n / (n - 1)).float(), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt().float()
        offset = self.bias - mean.float() * scale
        return (wide * scale[:, None, None] + offset[:, None, None]).to(x.dtype)


@contextlib.contextmanager
def spread(model: nn.Module, device: torch.device, parts: int) -> Iterator[nn.Module]:
    """The network to call in a training by `parts` processes; `model` itself for one.

    Gradients are averaged over the processes. Within the block `BatchNorm2d` sees the whole batch, so that the network
    does not depend on the number of processes; timm's own kinds of batch normalisation see the part of their process.
    Parameters and buffers start as those of the first process.
    """
    if parts == 1:
        yield model
        return
    norms = [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    gpu = device.type == "cuda"
    if gpu:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        for norm in norms:
            norm.__class__ = SharedBatchNorm2d
    try:
        yield DistributedDataParallel(model, [torch.cuda.current_device()] if gpu else None)
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


def same_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's running statistics, as those of parts may differ."""
    for buffer in model.buffers():
        buffer.copy_(distributed.same(buffer))


@torch.no_grad()
def same_network(model: nn.Module) -> None:
    """Gives all processes the first one's parameters and buffers."""
    for value in model.state_dict().values():
        value.copy_(distributed.same(value))
