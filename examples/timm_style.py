"""The fused pass in a training script built around timm's models and mixup: bytes in, batch out.

    pip install timm && python examples/timm_style.py --model resnet18

`MemoryLoader` projects, crops, flips, normalises and casts in one kernel call; the rest is as in timm's own script.
"""

from __future__ import annotations

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2

import ulfast
from ulfast.data import Augment, MemoryLoader


def main(model="resnet18", epochs=5, limit=None, batch_size=128):
    poisoned = ulfast.poison(ulfast.load_dataset("sample", limit=limit), "lsp", seed=0)
    basis = ulfast.fit_basis(poisoned)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    train = MemoryLoader(
        poisoned,
        batch_size,
        basis=basis.rows,
        mean=mean,
        std=std,
        augment=Augment(4, flip=True),
        shuffle=True,
        drop_last=True,
    )
    test = MemoryLoader(ulfast.load_dataset("sample", split="test"), 500, mean=mean, std=std)
    network = timm.create_model(model, pretrained=False, num_classes=poisoned.num_classes)
    network = network.to(memory_format=torch.channels_last)
    mix = Mixup(mixup_alpha=0.2, num_classes=poisoned.num_classes, label_smoothing=0.1)
    criterion = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05)
    for epoch in range(epochs):
        network.train()
        train.set_epoch(epoch)
        for x, y in train:
            x, target = mix(x, y)
            loss = criterion(network(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    with torch.no_grad():
        correct = sum(int((network(x).argmax(1) == y).sum()) for x, y in test)
    print(f"{model}: {100 * correct / test.images_per_epoch:.1f} % of clean test images")
    return correct / test.images_per_epoch


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    main(options.model, options.epochs)
