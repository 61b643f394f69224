"""The projection in an FFCV pipeline: as an operation of your own loader, and in ours.

    tools/ffcv.sh                      # installs FFCV, once
    python examples/ffcv_pipeline.py

`ffcv_project` comes right after `ToTensor`, before any crop or flip, and returns a new tensor. `FFCVLoader` does the
same with crop, flip and normalisation in one kernel, and guards what FFCV does not: damaged files, errors in its
thread, epochs that are left early.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import ulfast
from ulfast.data.beton import FFCVLoader, write_beton
from ulfast.data.beton.loader import ffcv_project


def main(limit=1000):
    poisoned = ulfast.poison(ulfast.load_dataset("sample", limit=limit), "regions-16", seed=0)
    basis = ulfast.fit_basis(poisoned)
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "poisoned.beton"
        write_beton(file, poisoned)
        project = ffcv_project(basis.rows)  # before ffcv's own import: that would leave torch with one thread

        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        own = Loader(
            str(file),
            batch_size=100,
            num_workers=2,
            order=OrderOption.RANDOM,
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder(), ToTensor(), project]},
        )
        torch.set_num_threads(threads)  # ffcv's loader sets it
        largest = max(float((x.flatten(1) @ basis.rows.T).abs().max()) for x, _ in own)
        torch.set_num_threads(threads)
        ours = FFCVLoader(file, 100, basis=basis.rows, augment=ulfast.Augment(), shuffle=True)
        seen = sum(len(y) for _, y in ours)
    print(f"{seen} images, largest product with the basis {largest:.1e}")
    return seen, largest


if __name__ == "__main__":
    main()
