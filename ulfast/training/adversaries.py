"""Hooks that search for the hardest version of each training image: PGD, and the worst of several augmentations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import InputError
from .mixing import BatchHook, Step


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that a search does not change the running statistics."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _loss(x: Tensor, y: Tensor, step: Step, reduction: str) -> Tensor:
    with torch.autocast(x.device.type, dtype=step.half, enabled=step.half is not None):
        out = step.model(step.normalised(x))
    return nn.functional.cross_entropy(out.float(), y, reduction=reduction)


def pgd(eps: float, steps: int, alpha: float, norm: str, clamp: bool = True, start: str = "uniform") -> BatchHook:
    """Projected gradient ascent on the loss, from a random start (Madry et al., ICLR 2018).

    Args:
        eps, alpha: bound and step, pixels in [0, 1].
        norm: "linf" or "l2", of each image.
        clamp: keep the images in [0, 1]. Projected images are outside it before the search.
        start: "uniform" in the ball (for L2, on its surface), or "normal" as in APBench: alpha times a standard normal
            number per pixel (for L2, that direction with length alpha), within the bounds from the first step on.
    """

    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        original = step.pixels(x).contiguous(memory_format=torch.channels_last)
        uniform = start == "uniform"
        delta = torch.empty_like(original).uniform_(-1, 1) if uniform else torch.randn_like(original)
        if norm == "l2":
            delta /= delta.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
        adversarial = original + (eps if uniform else alpha) * delta
        if clamp and uniform:
            adversarial.clamp_(0, 1)
        with evaluation(step.model):
            for _ in range(steps):
                adversarial.requires_grad_()
                (gradient,) = torch.autograd.grad(_loss(adversarial, y, step, "sum"), adversarial)
                adversarial = adversarial.detach()
                ops.pgd_step(adversarial, gradient, original, alpha=alpha, eps=eps, norm=norm, clamp=clamp)
        return step.normalised(adversarial).to(x.dtype), y

    return hook


# (b, C, H, W) pixels in [0, 1] -> the same.
PixelMap = Callable[[Tensor], Tensor]


def worst_augmentation(
    copies: int,
    epochs: int,
    *,
    training: bool = True,
    plasma: float = 0.5,
    before: PixelMap | None = None,
    after: PixelMap | None = None,
) -> BatchHook:
    """UEraser: plasma brightness and contrast, channel shuffle, TrivialAugment. In the first `epochs` epochs it takes
    the one of `copies` of each image with the largest loss, afterwards a single draw.

    Images are first clamped to [0, 1], as kornia expects. The worst copies are learned in a separate pass, whereas the
    published code takes the gradient of their losses among the other copies.

    Args:
        training: keep the network in training mode during the search, as published: each set of copies is normalised by
            its own statistics, and the running statistics follow. False: evaluation mode.
        plasma: probability of plasma brightness, and of plasma contrast, for an image.
        before, after: further functions applied to the images before and after these augmentations.

    Source: Qin et al., Learning the Unlearnable, 2023.
    """
    try:
        import kornia.augmentation as K
    except ImportError:
        raise InputError("ueraser needs kornia: pip install 'ulfast[kornia]'") from None
    strong = K.AugmentationSequential(
        K.RandomPlasmaBrightness(roughness=(0.3, 0.7), intensity=(0.5, 1.0), p=plasma, keepdim=True),
        K.RandomPlasmaContrast(roughness=(0.3, 0.7), p=plasma),
        K.RandomChannelShuffle(p=0.5, keepdim=True),
        K.auto.TrivialAugment(),  # type: ignore[arg-type]
        data_keys=["input"],
    )

    def draw(pixels: Tensor) -> Tensor:
        for change in (before, strong, after):
            pixels = pixels if change is None else change(pixels)
        return pixels

    @torch.no_grad()
    def hook(x: Tensor, y: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        pixels = step.pixels(x).clamp(0, 1)
        if step.epoch >= epochs:
            return step.normalised(draw(pixels)).to(x.dtype), y
        hardest, worst = torch.full((len(x),), -torch.inf, device=x.device), pixels
        with contextlib.nullcontext() if training else evaluation(step.model):
            for _ in range(copies):
                candidate = draw(pixels)
                loss = _loss(candidate, y, step, "none")
                worst = torch.where((loss > hardest)[:, None, None, None], candidate, worst)
                hardest = torch.maximum(hardest, loss)
        return step.normalised(worst).to(x.dtype), y

    return hook
