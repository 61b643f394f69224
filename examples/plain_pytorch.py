"""The projection in a plain PyTorch training loop: one module before the augmentation.

    python examples/plain_pytorch.py [--epochs 14]

Trains the small network on 5,000 images of CIFAR-10 that are poisoned here, with and without the projection.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import ulfast
from ulfast.training import build_model


def train(images, labels, project, epochs, seed=0):
    """images (n, C, H, W) float in [0, 1]; `project` is a module or the identity."""
    torch.manual_seed(seed)
    model = build_model("cnn", num_classes=10, image_shape=(32, 32, 3), seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(128):
            x = project(images[batch])  # before crop and flip: the basis knows unshifted pixels
            x = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, x.flip(3), x)
            loss = nn.functional.cross_entropy(model((x - 0.5) / 0.25), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def as_tensors(dataset):
    pixels = torch.from_numpy(dataset.images.copy()).permute(0, 3, 1, 2).float() / 255
    return pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(dataset.labels.copy())


def main(epochs=14, limit=None):
    poisoned = ulfast.poison(ulfast.load_dataset("sample", limit=limit), "lsp", seed=0)
    test_images, test_labels = as_tensors(ulfast.load_dataset("sample", split="test"))
    projection = ulfast.OrthogonalProjection(ulfast.fit_basis(poisoned))
    accuracy = {}
    for name, project in (("as it is", nn.Identity()), ("projected", projection)):
        model = train(*as_tensors(poisoned), project, epochs)
        with torch.no_grad():  # test images are not projected
            accuracy[name] = float((model((test_images - 0.5) / 0.25).argmax(1) == test_labels).float().mean())
        print(f"{name}: {100 * accuracy[name]:.1f} % of clean test images")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=14)
    main(parser.parse_args().epochs)
