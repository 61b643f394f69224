"""Other libraries take what ulfast gives and the other way round; tools/compat.sh installs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import ulfast
from ulfast.data.export import export_dataset
from ulfast.transforms import Project


@pytest.fixture
def torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        pytest.skip(f"torchvision: {error}")
    return torchvision


def test_a_torchvision_dataset_is_read_and_its_compose_projects(torchvision, make_dataset, tmp_path):
    data = make_dataset(24, 12)
    export_dataset(data, tmp_path / "out", "imagefolder")
    basis = ulfast.fit_basis(data)
    folder = torchvision.datasets.ImageFolder(tmp_path / "out" / "train")
    read = ulfast.load_dataset(folder)
    assert read.images.shape == data.images.shape
    assert np.bincount(read.labels).tolist() == np.bincount(data.labels).tolist()
    to_tensor = torchvision.transforms.ToTensor()
    compose = torchvision.transforms.Compose([to_tensor, Project(basis), torchvision.transforms.RandomCrop(12, 2)])
    again = torchvision.datasets.ImageFolder(tmp_path / "out" / "train", compose)
    assert again[0][0].shape == (3, 12, 12)
    plain = Project(basis)(to_tensor(folder[5][0])).permute(1, 2, 0).reshape(-1)
    assert float((basis.rows @ plain).abs().max()) < 1e-4
    assert torch.allclose(Project(basis)(folder[5][0]).permute(1, 2, 0).reshape(-1), plain, atol=1e-6)


def test_webdataset_reads_what_is_written(make_dataset, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    data = make_dataset(24, 12)
    export_dataset(data, tmp_path / "out", "wds", shard_size=10)
    shards = str(tmp_path / "out" / "train-{000000..000002}.tar")
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert np.array_equal(np.stack([image for image, _ in rows]), data.images)
    assert [int(label) for _, label in rows] == data.labels.tolist()


def test_what_webdataset_writes_is_read(make_dataset, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    data = make_dataset(24, 12)
    with webdataset.TarWriter(str(tmp_path / "train-000000.tar")) as writer:
        for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            writer.write({"__key__": f"{i:04d}", "png": image, "cls": int(label)})
    read = ulfast.load_dataset(tmp_path / "train-000000.tar")
    assert np.array_equal(read.images, data.images)
    assert np.array_equal(read.labels, data.labels)


def test_accelerate_trains_and_restores_a_network_that_projects(make_dataset, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    data = make_dataset(60, 12)
    basis = ulfast.fit_basis(data)
    accelerator = accelerate.Accelerator(cpu=True)

    def built():
        torch.manual_seed(0)
        return nn.Sequential(ulfast.OrthogonalProjection(basis), nn.Flatten(), nn.Linear(432, 3))

    network = built()
    pixels = torch.from_numpy(data.images.copy()).permute(0, 3, 1, 2).float() / 255
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(pixels, torch.from_numpy(data.labels.copy())), 20
    )
    network, optimizer, loader = accelerator.prepare(network, torch.optim.Adam(network.parameters(), 1e-3), loader)
    losses = []
    for _ in range(30):
        for x, y in loader:
            loss = nn.functional.cross_entropy(network(x), y)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    accelerator.save_model(network, tmp_path / "saved")
    other = built()
    accelerate.load_checkpoint_in_model(other, str(tmp_path / "saved"))
    assert torch.equal(other(pixels), accelerator.unwrap_model(network)(pixels))
