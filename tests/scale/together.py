"""The work of every process of a test: `torchrun together.py DATA OUT`; the first writes the results. Without torchrun,
`together.py DATA OUT 1 2` does it alone and by two forks of this process, which has imported everything."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from forking import fork

import ulfast
import ulfast.data.class_moments
import ulfast.poisons.run
import ulfast.projection.other_fits
from ulfast import distributed
from ulfast.data import MemoryLoader, channel_statistics
from ulfast.data.loaders import projected
from ulfast.data.loaders.removal import Removal
from ulfast.data.writers.resumable import RowWriter
from ulfast.poisons import Poisoning, write_rows
from ulfast.training import Recipe, build_model, evaluate, train

for module in (ulfast.poisons.run, ulfast.data.class_moments, ulfast.projection.other_fits):
    module.CHUNK_BYTES = 20 * 768  # 20 images


def main(folder: str, out: Path) -> None:
    data, test = (ulfast.load_dataset(folder, split=split) for split in ("train", "test"))
    part = (distributed.rank(), distributed.size())
    found: dict[str, object] = {}
    # An unstable fit makes float32's rounding grow without end: a rate at which it is none.
    basis = ulfast.fit_basis(data, steps=60, lr=0.01, batch_size=31, device="cpu")
    found["weights"], found["rows"] = basis.weights, basis.rows
    found["fit"] = (basis.metadata["loss"], basis.metadata["train_accuracy"])
    found["statistics"] = channel_statistics(data, shared=True)
    found["noise"] = ulfast.fit_mean_noise(data, shared=True)
    found["partial"] = ulfast.partial_rows(basis, data, shared=True)
    for name, rate in (("cnn", 1e-3), ("resnet18-4", 1e-4)):
        recipe = Recipe("test", 2, 32, "sgd", rate, 0.0, "one-cycle", half=False)
        model = build_model(name, num_classes=3, image_shape=data.image_shape)
        loader = MemoryLoader(data, 32, augment=recipe.augment, shuffle=True, drop_last=True, part=part)
        result = train(model, loader, MemoryLoader(test, 7, part=part), recipe)
        found[name] = [
            [row[key] for key in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")]
            for row in result.history
        ]
        state = {key: value.double() for key, value in model.state_dict().items()}
        found[f"{name} state"] = state
        whole = evaluate(model, MemoryLoader(test, 7))
        found[f"{name} evaluated"] = (whole, evaluate(model, MemoryLoader(test, 7, part=part)))
        found[f"{name} same"] = all(
            all(torch.equal(value, other[key]) for key, value in state.items()) for other in distributed.gathered(state)
        )
    poisoning = Poisoning(data, "lsp", seed=3)
    with RowWriter(out / f"poisoned-{distributed.size()}", data, {}) as writer:
        write_rows(poisoning, writer)
    projected.SHARD_BYTES = 30 * 2 * 768  # 30 images
    projected.write_projected(out / f"projected-{distributed.size()}", data, Removal(basis.rows))
    if distributed.is_main():
        torch.save(found, out / f"found-{distributed.size()}.pt")


def joined(folder: str, out: str) -> None:
    with distributed.joined("cpu"):
        main(folder, Path(out))


if __name__ == "__main__":
    folder, out, *sizes = sys.argv[1:]
    for size in sizes:
        fork(int(size), joined, folder, out)
    if not sizes:
        joined(folder, out)
