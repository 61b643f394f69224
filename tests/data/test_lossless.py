"""One data set through every lossless layout: the same pixels, labels and classes come back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ulfast.data import load_dataset, write_dataset
from ulfast.data.dataset import Dataset
from ulfast.data.export import EXPORTS, export_dataset
from ulfast.poisons.imported import import_published

OUT = {"npz": "set.npz", "beton": "set.beton", "perturbation-pt": "set.pt"}
LAYOUTS = ["ulfast", *EXPORTS]


def through(layout: str, data: Dataset, test: Dataset, folder) -> tuple[Dataset, Dataset | None]:
    """Written and read again."""
    out = folder / OUT.get(layout, "set")
    if layout == "ulfast":
        write_dataset(out, data, test)
    else:
        base = replace(data, images=data.images & 0xF0)
        export_dataset(data, out, layout, test=test, base=base, shard_size=max(1, len(data) // 3))
        if layout in ("png-index", "perturbation-pt"):  # which follow a base, that has the labels
            base = data if layout == "png-index" else base
            return import_published(out, base, rounding="nearest"), None
    return load_dataset(out), load_dataset(out, split="test")


def ordered(data: Dataset) -> Dataset:
    """Sorted by class, as in a folder of class folders."""
    return data.subset(np.argsort(data.labels, kind="stable"))


def check(layout: str, data: Dataset, test: Dataset, folder) -> None:
    back, held = through(layout, data, test, folder)
    by_class = layout == "imagefolder"
    assert back == (ordered(data) if by_class else data)
    assert held is None or held == (ordered(test) if by_class else test)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_bytes_back(tmp_path, make_dataset, layout, channels):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    data, test = (make_dataset(40, 17, channels=channels, classes=4, seed=seed) for seed in (0, 1))
    data, test = (replace(one, images=np.ascontiguousarray(one.images[:, :11])) for one in (data, test))
    check(layout, data, replace(test, split="test"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_thousand_photographs_through_every_layout(tmp_path, layout):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    data, test = load_dataset("sample", limit=1000), load_dataset("sample", split="test")
    check(layout, data, test, tmp_path)
