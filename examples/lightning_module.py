"""The projection in a Lightning module: project and augment on the device, after the batch has arrived.

pip install lightning && python examples/lightning_module.py
"""

from __future__ import annotations

import lightning as L
import torch
from torch import nn

import ulfast
from ulfast.training import build_model


class Recovering(L.LightningModule):
    """Trains on poisoned images after removing the directions of a basis. The basis is part of the checkpoint."""

    def __init__(self, basis, num_classes):
        super().__init__()
        self.projection = ulfast.OrthogonalProjection(basis)
        self.model = build_model("cnn", num_classes=num_classes, image_shape=basis.image_shape)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch  # (b, C, H, W) in [0, 1]
        if self.trainer.training:
            x = self.projection(x)
        return (x - 0.5) / 0.25, y

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=2e-3, weight_decay=0.05)


def loader(dataset, shuffle):
    pixels = torch.from_numpy(dataset.images.copy()).permute(0, 3, 1, 2).float() / 255
    data = torch.utils.data.TensorDataset(pixels, torch.from_numpy(dataset.labels.copy()))
    return torch.utils.data.DataLoader(data, 100, shuffle=shuffle)


def main(epochs=14, limit=None):
    L.seed_everything(0)
    poisoned = ulfast.poison(ulfast.load_dataset("sample", limit=limit), "lsp", seed=0)
    module = Recovering(ulfast.fit_basis(poisoned), poisoned.num_classes)
    trainer = L.Trainer(max_epochs=epochs, accelerator="auto", logger=False, enable_checkpointing=False)
    trainer.fit(module, loader(poisoned, shuffle=True))
    return trainer.test(module, loader(ulfast.load_dataset("sample", split="test"), shuffle=False))[0]["accuracy"]


if __name__ == "__main__":
    main()
