"""Philox 4x32-10 (Salmon et al., SC 2011) in PyTorch, bit-identical to `csrc/random/philox.h`.

A counter-based generator: block b of item i is a pure function of (seed, stream, i, b), so any shard, order,
thread count or device draws the same numbers. The transcendental functions are short polynomials in separately
rounded float32 operations (no fused multiply-add), which every IEEE machine evaluates to the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# One stream per use, so that two generators with one seed never share numbers.
STREAM_LSP = 1
STREAM_LSP_CLASS = 2
STREAM_AR = 3
STREAM_AR_SEARCH = 4
STREAM_REGIONS = 5
STREAM_CWRANDOM = 6
STREAM_SWRANDOM = 7
STREAM_CUDA = 8
STREAM_RATE = 9
STREAM_AUGMENT = 10
STREAM_ORDER = 11
STREAM_SURROGATE = 12
STREAM_NOISE = 13
STREAM_SHARPEN = 14
STREAM_SHIFT = 15
STREAM_SPECTRUM = 16
STREAM_DIFFUSION = 17

_M0, _M1, _W0, _W1, _MASK = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF


def _mulhilo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; 32-bit values are stored in int64, whose own product would overflow."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (high + (low >> 16)) >> 16, (low + (high << 16)) & _MASK


def words(seed: int, stream: int, first: int, n: int, d: int, device: torch.device | str = "cpu") -> Tensor:
    """(n, d) int64 tensor of random 32-bit words; row i is item ``first + i`` of the counter."""
    blocks = math.ceil(d / 4)
    item = first + torch.arange(n, device=device, dtype=torch.int64)[:, None].expand(n, blocks)
    c0, c1 = item & _MASK, (item >> 32) & _MASK
    c2 = torch.arange(blocks, device=device, dtype=torch.int64).expand(n, blocks)
    c3 = torch.full_like(c2, stream & _MASK)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        h0, l0 = _mulhilo(_M0, c0)
        h1, l1 = _mulhilo(_M1, c2)
        c0, c1, c2, c3 = h1 ^ c1 ^ k0, l1, h0 ^ c3 ^ k1, l0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack([c0, c1, c2, c3], -1).reshape(n, blocks * 4)[:, :d]


def uniform(w: Tensor) -> Tensor:
    """Converts words to float32 in [0, 1), from the top 24 bits."""
    return (w >> 8).to(torch.float32) * 2.0**-24


def normal(w: Tensor) -> Tensor:
    """Converts pairs of words to pairs of standard normals: ``sqrt(-2 log u) * (cos, sin)(2 pi v)``; w (n, even d)."""
    u = ((w[:, 0::2] >> 1).to(torch.float32) + 0.5) * 2.0**-31
    # In float64: PyTorch's float32 square root comes from a vector library that does not always round correctly.
    radius = (-2.0 * _log(u)).double().sqrt().float()
    cos, sin = _cos_sin(w[:, 1::2])
    return torch.stack([radius * cos, radius * sin], -1).reshape(w.shape)


_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of u in (0, 1] (the minimax polynomial of Cephes' logf)."""
    bits = u.view(torch.int32)
    # Mantissa in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) carries into the exponent at the right place.
    shifted = bits - 0x3F3504F3
    exponent = (shifted >> 23).to(torch.float32)
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    z = f * f
    p = torch.full_like(f, _LOG[0])
    for c in _LOG[1:]:
        p = p * f + c
    y = f * z * p + exponent * -2.12194440e-4 - 0.5 * z
    return f + y + exponent * 0.693359375


def _cos_sin(w: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi w / 2**32: the quadrant by integer arithmetic, then polynomials on [-pi/4, pi/4]."""
    quadrant = ((w + 0x20000000) >> 30) & 3
    r = (w - (quadrant << 30)) & _MASK
    r = torch.where(r >= 2**31, r - 2**32, r)  # signed, in [-2**29, 2**29)
    a = r.to(torch.float32) * (math.pi / 2**31)
    z = a * a
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z + -1.6666654611e-1) * z * a + a
    c = ((2.443315711809948e-5 * z + -1.388731625493765e-3) * z + 4.166664568298827e-2) * (z * z) - 0.5 * z + 1.0
    swap, negate_cos, negate_sin = (quadrant & 1) == 1, (quadrant == 1) | (quadrant == 2), quadrant >= 2
    cos, sin = torch.where(swap, s, c), torch.where(swap, c, s)
    return torch.where(negate_cos, -cos, cos), torch.where(negate_sin, -sin, sin)
