"""`philox_uniform` and `philox_normal`: no tensor determines their device, so it is chosen here."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _extension, buffers, cuda, reference
from .arguments import check_philox, signed
from .schemas import LIBRARY
from .state import exact


def philox_uniform(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    return _philox("philox_uniform", seed, stream, first, n, d, device or torch.device("cpu"))


def philox_normal(seed: int, stream: int, first: int, n: int, d: int, *, device: torch.device | None = None) -> Tensor:
    return _philox("philox_normal", seed, stream, first, n, d, device or torch.device("cpu"))


def _philox(op: str, seed: int, stream: int, first: int, n: int, d: int, device: torch.device) -> Tensor:
    check_philox(op, n, d)
    fields = {"seed": signed(seed), "stream": stream, "first": first, "n": n, "d": d}
    if device.type == "cpu":
        out = buffers.result((n, d), torch.float32)
        getattr(_extension.load(), op)(out=out.data_ptr(), **fields, threads=torch.get_num_threads())
        return out
    if device.type != "cuda" or not cuda.enabled(op, device):
        return getattr(reference, op)(seed, stream, first, n, d, device=device)
    out = buffers.result((n, d), torch.float32, device)
    with cuda.guard(out.device):  # which has an index, unlike "cuda"
        getattr(_extension.load().cuda, op)(out=out.data_ptr(), **fields, cuda_stream=cuda.stream(out.device))
    return out


for _function in (philox_uniform, philox_normal):
    LIBRARY.impl(_function.__name__, exact(_function), "CompositeExplicitAutograd")
