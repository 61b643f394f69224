"""The projection in a `torch.utils.data.DataLoader` with a torchvision-style list of transforms.

    python examples/dataloader.py

`ulfast.transforms.Project` is a callable on single images (H, W, C) or (C, H, W) and on batches, so it goes into
`torchvision.transforms.Compose` (which is not needed here) as the first transform that sees pixels.
"""

from __future__ import annotations

import torch

import ulfast
from ulfast.transforms import Project


class Images(torch.utils.data.Dataset):
    """The usual data set: a transformed image and its label."""

    def __init__(self, dataset, transforms):
        self.dataset, self.transforms = dataset, transforms

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        x = torch.from_numpy(self.dataset.images[i].copy()).permute(2, 0, 1)
        for transform in self.transforms:
            x = transform(x)
        return x, int(self.dataset.labels[i])


def main(limit=1000, workers=2):
    poisoned = ulfast.poison(ulfast.load_dataset("sample", limit=limit), "regions-16", seed=0)
    basis = ulfast.fit_basis(poisoned)
    transforms = [Project(basis), lambda x: (x - 0.5) / 0.25]
    loader = torch.utils.data.DataLoader(Images(poisoned, transforms), 100, shuffle=True, num_workers=workers)
    seen, largest = 0, 0.0
    for x, _ in loader:
        rows = (x * 0.25 + 0.5).permute(0, 2, 3, 1).flatten(1)
        largest = max(largest, float((rows @ basis.rows.T).abs().max()))
        seen += len(x)
    print(f"{seen} images, largest product with the basis {largest:.1e}")
    return seen, largest


if __name__ == "__main__":
    main()
