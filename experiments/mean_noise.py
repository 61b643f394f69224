"""How well a linear model finds the classes under noise along the class means, and how images look with it.

    python experiments/mean_noise.py docs/images/mean-noise.png

Prints, for 10,000 images of CIFAR-10, the norm of the noise beside that of the images' own variation, and the accuracy
of linear models on held-out images, fitted to and tested on images as they are, and with noise drawn anew a step.
"""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import ulfast

POISONS = ("clean", "regions-4", "regions-16", "lsp", "ops")
STEPS, BATCH, RATE = 600, 256, 0.02


def held_out_accuracy(x: Tensor, y: Tensor, noise: Tensor | None, seed: int = 0) -> float:
    """Accuracy of softmax regression with bias, fitted to four fifths of the rows x (n, d), on the others."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)

    def noisy(rows: Tensor) -> Tensor:
        return rows if noise is None else rows + torch.randn(len(rows), len(noise), generator=generator) @ noise

    held = torch.arange(len(x)) % 5 == 0
    rest = torch.where(~held)[0]
    for _ in range(STEPS):
        picked = rest[torch.randint(len(rest), (BATCH,), generator=generator)]
        loss = nn.functional.cross_entropy(model(noisy(x[picked])), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(noisy(x[held])).argmax(1) == y[held]).float().mean())


def main(out: str) -> None:
    clean = ulfast.load_dataset("cifar10", limit=10_000)
    figure, axes = plt.subplots(4, 10, figsize=(10, 4.2))
    print(
        "| images | norm of the noise | of the images' variation | linear model | with noise |\n|---|---|---|---|---|"
    )
    for name in POISONS:
        data = clean if name == "clean" else ulfast.poison(clean, name, seed=0)
        noise = ulfast.fit_mean_noise(data)
        x = torch.from_numpy(data.images).flatten(1).float() / 255
        y = torch.from_numpy(data.labels)
        varies = float(x.var(0).sum().sqrt())
        x -= x.mean(0)
        plain, hidden = held_out_accuracy(x, y, None), held_out_accuracy(x, y, noise)
        print(f"| {name} | {noise.norm():.1f} | {varies:.1f} | {100 * plain:.1f} | {100 * hidden:.1f} |", flush=True)
        if name == "regions-4":
            draw(axes, data, noise)
    figure.tight_layout(pad=0.3)
    figure.savefig(out, dpi=110)


def draw(axes: np.ndarray, data: ulfast.Dataset, noise: Tensor) -> None:
    """One image of each class, its class's mean, and the image with two draws of the noise."""
    layer = ulfast.MeanNoise(noise)
    torch.manual_seed(0)
    for c in range(10):
        own = np.flatnonzero(data.labels == c)
        image = data.images[own[0]] / 255
        x = torch.from_numpy(image).float().permute(2, 0, 1)[None]
        mean = data.images[own].mean(0) / 255
        drawn = [layer(x)[0].permute(1, 2, 0).clamp(0, 1).numpy() for _ in range(2)]
        for row, picture in enumerate((image, mean, *drawn)):
            axes[row, c].imshow(picture, interpolation="nearest")
            axes[row, c].set_xticks([])
            axes[row, c].set_yticks([])
    for row, word in enumerate(("image", "class mean", "with noise", "again")):
        axes[row, 0].set_ylabel(word, fontsize=9)


if __name__ == "__main__":
    main(*sys.argv[1:])
