"""The augmentation of contrastive learning, differentiable with respect to the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import ops

# Random numbers per augmented image.
DRAWS = 10
# NTSC's luma and two colour differences, in which a change of hue is a rotation.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def shown(
    x: Tensor,  # (b, C, H, W) float32, pixels in [0, 1]
    strength: float,  # in [0, 1]
    seed: int,
    number: int,  # of the draw, below 2^29
    first: int,  # number of the first image, below 2^32
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The images as `augmented` by draws from (seed, number, image), and the function that maps gradients back."""
    row = (1 << 62) + (number << 32) + first
    u = ops.philox_uniform(seed, ops.philox.STREAM_AUGMENT, row, len(x), DRAWS, device=x.device)
    return differentiable(lambda leaf: augmented(leaf, u, strength), x)


def differentiable(view: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A view of x (b, C, H, W) float32 of the same shape, and the function that maps gradients back to x, once; both
    are channels_last.
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        seen = view(leaf)

    def back(gradient: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(seen, leaf, gradient)
        return found.contiguous(memory_format=torch.channels_last)

    return seen.detach().contiguous(memory_format=torch.channels_last), back


def augmented(x: Tensor, u: Tensor, strength: float) -> Tensor:
    """A random crop of at least 1 - 0.9 s of the area, resized to full size (bilinear) and mirrored for half of the
    images. Then brightness, contrast and saturation of 80 s % of the images change by up to 0.4 s and the hue by up to
    0.1 s of a turn, and 20 s % of the images become gray. Images of one channel have neither saturation nor hue.

    Args:
        x: (b, C, H, W) float32, pixels in [0, 1].
        u: (b, DRAWS) uniform in [0, 1).
        strength: s, in [0, 1].

    Differentiable except where a pixel is clipped at 0 or 1.
    """
    columns = u.unbind(1)
    x = _cropped(x, columns[:5], strength)
    each = (slice(None), None, None, None)
    jittered = _jittered(x, [(2 * v - 1)[each] for v in columns[5:9]], strength)
    # One number decides both: its leading digits decide on jitter, the rest on gray.
    chance = 0.8 * strength
    jitter = columns[9] < chance
    rest = torch.where(jitter, columns[9] / max(chance, 1e-9), (columns[9] - chance) / max(1 - chance, 1e-9))
    x = torch.where(jitter[each], jittered, x)
    if x.shape[1] == 3:
        x = torch.where((rest < 0.2 * strength)[each], _luma(x).expand_as(x), x)
    return x


def _cropped(x: Tensor, by: Sequence[Tensor], s: float) -> Tensor:
    area, shape, across, down, flip = by
    share = 1 - 0.9 * s * area
    ratio = torch.exp((2 * shape - 1) * (math.log(4 / 3) if s else 0.0))
    width, height = ((share * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    dx, dy = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    width, zero = torch.where(flip < 0.5, -width, width), torch.zeros_like(width)
    places = torch.stack([torch.stack([width, zero, dx], 1), torch.stack([zero, height, dy], 1)], 1)
    grid = nn.functional.affine_grid(places, list(x.shape), align_corners=False)
    return nn.functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _jittered(x: Tensor, by: list[Tensor], s: float) -> Tensor:
    brightness, contrast, saturation, hue = by
    x = (x * (1 + 0.4 * s * brightness)).clamp(0, 1)
    mean = _luma(x).mean((1, 2, 3), keepdim=True)
    x = (mean + (x - mean) * (1 + 0.4 * s * contrast)).clamp(0, 1)
    if x.shape[1] != 3:
        return x
    gray = _luma(x)
    x = (gray + (x - gray) * (1 + 0.4 * s * saturation)).clamp(0, 1)
    yiq = torch.tensor(YIQ, dtype=x.dtype, device=x.device)
    y, i, q = torch.einsum("ck,bkhw->cbhw", yiq, x).unbind(0)
    turn = 2 * math.pi * 0.1 * s * hue[:, 0]
    i, q = i * turn.cos() - q * turn.sin(), i * turn.sin() + q * turn.cos()
    return torch.einsum("ck,kbhw->bchw", torch.linalg.inv(yiq), torch.stack([y, i, q])).clamp(0, 1)


def _luma(x: Tensor) -> Tensor:
    """The gray images, (b, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weights = torch.tensor(YIQ[0], dtype=x.dtype, device=x.device)
    return (x * weights[:, None, None]).sum(1, keepdim=True)
