"""Trainings that start from weights of before."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ulfast
from ulfast import InputError
from ulfast.attacks import AttackResult
from ulfast.training import build_model
from ulfast.training.start import Start

SHAPE = (12, 12, 3)


def data(classes=3, n=60):
    rng = np.random.default_rng(classes)
    images = rng.integers(0, 256, (n, *SHAPE)).astype(np.uint8)
    return ulfast.Dataset(images, np.arange(n) % classes, tuple(f"c{i}" for i in range(classes)), "noise")


def network(classes=3, seed=5):
    return build_model("cnn", num_classes=classes, image_shape=SHAPE, seed=seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    ulfast.attack(data(), test=data(), method="none", epochs=1, seed=3, out=folder)
    return folder


def same(network, weights):
    return all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("wrap", ["plain", "model", "state_dict", "compiled", "parallel", "safetensors"])
def test_the_usual_files_are_taken(tmp_path, wrap):
    weights = network().state_dict()
    path = tmp_path / ("w.safetensors" if wrap == "safetensors" else "w.pth")
    if wrap == "safetensors":
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
    elif wrap in ("model", "state_dict"):
        torch.save({wrap: weights, "epoch": 3}, path)
    else:
        prefix = {"plain": "", "compiled": "_orig_mod.", "parallel": "module."}[wrap]
        torch.save({prefix + key: value for key, value in weights.items()}, path)
    other = network(seed=6)
    assert Start(path, SHAPE).into(other)
    assert same(other, weights)


def test_a_run_is_taken_with_its_last_layer(run):
    other = network()
    assert Start(run, SHAPE).into(other)
    assert Start(run / "checkpoints" / "attack" / "last.pt", SHAPE).checksum == Start(run, SHAPE).checksum
    assert same(other, Start(run, SHAPE).weights)


def test_the_last_layer_stays_where_the_classes_are_others(run):
    other = network(classes=7)
    head = other[-1].weight.clone()
    start = Start(run, SHAPE)
    assert not start.into(other)
    assert torch.equal(other[-1].weight, head)
    assert torch.equal(other[0].weight, start.weights["0.weight"])


def test_weights_of_another_network_are_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(InputError, match="another network"):
        ulfast.attack(data(), test=data(), method="none", model="resnet18-2", start=run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    partial = network().state_dict()
    del partial["0.weight"]
    torch.save(partial, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"among them 0\.weight"):
        Start(tmp_path / "w.pt", SHAPE).into(network())


def test_missing_and_damaged_weights_are_one_line(tmp_path):
    for name, content in (("no.pt", None), ("bad.pt", b"x" * 50), ("bad.safetensors", b"x" * 50)):
        path = tmp_path / name
        if content:
            path.write_bytes(content)
        with pytest.raises(InputError, match=name):
            Start(path, SHAPE)
    for content in ({"epoch": 3}, {None: torch.ones(2), 5: torch.ones(2)}):
        torch.save(content, tmp_path / "none.pt")
        with pytest.raises(InputError, match="holds no weights"):
            Start(tmp_path / "none.pt", SHAPE)


def test_a_training_starts_there(run, tmp_path):
    """All its trainings do, and a resumed one is refused other weights."""
    kept = {"test": data(), "method": "orthogonal", "epochs": 1, "keep_checkpoints": True}
    result = ulfast.attack(data(), **kept, start=run, out=tmp_path / "second", compare=True)
    begun = torch.load(tmp_path / "second/checkpoints/attack/epoch-000.pt")["model"]
    assert all(torch.equal(value, Start(run, SHAPE).weights[key]) for key, value in begun.items())
    assert result.notes["start"] == {"source": str(run), "last_layer": True}
    assert AttackResult.load(tmp_path / "second").config["start"]["checksum"] == Start(run, SHAPE).checksum
    with pytest.raises(InputError, match="another start"):
        ulfast.attack(data(), **kept, out=tmp_path / "second", resume=True, compare=True)


def test_timm_is_asked_for_pretrained_weights(monkeypatch):
    asked = {}

    def create_model(name, **options):
        if "img_size" in options:
            raise TypeError("img_size")
        asked.update(options, name=name)
        return network(classes=1000)

    fake = SimpleNamespace(list_models=lambda: ["resnet10t"], create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert not Start("timm:resnet10t.c3_in1k", SHAPE).into(network())
    assert asked == {"name": "resnet10t.c3_in1k", "pretrained": True, "in_chans": 3}
    with pytest.raises(InputError, match="timm has no model"):
        Start("timm:resnet10x", SHAPE)

    def offline(name, **options):
        raise ConnectionError("no route to the hub")

    fake.create_model = offline
    with pytest.raises(InputError, match="no route to the hub"):
        Start("timm:resnet10t", SHAPE)
