"""What a trained network makes of images: its last layer's features in two dimensions, and the pixels that decide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..registry import nearest

PLANES = ("pca", "tsne")
PERPLEXITY = 30.0


def plane(features: Tensor, method: str = "pca", seed: int = 0) -> tuple[Tensor, float | None]:
    """Points in two dimensions for features in many.

    Args:
        features: (n, f) float32, n > 1, such as `ulfast.training.refit.features` gives.
        method: "pca", the two directions of largest variance, or "tsne", which keeps neighbours together and says
            nothing about distances; it needs scikit-learn.
        seed: of t-SNE.

    Returns:
        Points (n, 2) float32 on the CPU, and the share of the variance that they show, from 0 to 1 (None for t-SNE).

    Raises:
        InputError: an unknown method, or t-SNE without scikit-learn.

    Source: van der Maaten and Hinton, JMLR 2008 (t-SNE).
    """
    if method not in PLANES:
        raise InputError(f"unknown projection {method!r}{nearest(method, PLANES)}: known are {', '.join(PLANES)}")
    x = features.double().cpu()
    x = x - x.mean(0)
    if method == "tsne":
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise InputError("t-SNE needs scikit-learn: pip install scikit-learn, or take pca") from None
        perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
        # Features that are all alike have no principal components to start from.
        start = "pca" if min(x.shape) >= 2 and x.abs().max() > 0 else "random"
        made = TSNE(init=start, perplexity=perplexity, random_state=seed).fit_transform(x.float().numpy())
        return torch.from_numpy(made).float(), None
    _, values, directions = torch.linalg.svd(x, full_matrices=False)
    directions = directions[:2]
    # The sign of a direction is the library's choice: here the largest weight is positive.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    points = x @ (directions * largest.sign()).T
    points = nn.functional.pad(points, (0, 2 - points.shape[1]))
    total = float(values.square().sum())
    return points.float(), float(values[:2].square().sum()) / total if total else 1.0


def saliency(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    copies: int = 16,
    noise: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """How much each pixel changes the score of its image's class: absolute gradients, averaged over noisy copies.

    Args:
        model: takes (n, C, H, W) normalised, gives scores (n, classes). Its mode and gradients stay as they are.
        images: (n, C, H, W) float32 in [0, 1], on the model's device.
        labels: (n,) int64.
        mean, std: of each channel, by which the images are normalised.
        copies, noise: of each image, and the deviation of their noise in units of [0, 1]. Without noise one is enough.
        seed: draws the noise, the same on every device.

    Returns:
        (n, H, W) float32, the largest of the channels.

    Source: Simonyan, Vedaldi and Zisserman, 2014 (gradients); Smilkov et al., 2017 (SmoothGrad).
    """
    statistics = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    middle, spread = statistics
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(images)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for _ in range(copies):
            drawn = torch.randn(images.shape, generator=generator).to(images.device)
            with torch.enable_grad():
                x = (images + noise * drawn).requires_grad_()
                score = model((x - middle) / spread).gather(1, labels[:, None]).sum()
                (gradient,) = torch.autograd.grad(score, x)
            total += gradient.abs()
    finally:
        for module, mode in training.items():
            module.training = mode
    return total.amax(1) / copies
