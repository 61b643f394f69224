"""Images that are not square, with one or three channels, through every poison, every attack and the diagnosis."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ulfast import InputError, attack, diagnose, fit_basis, poison
from ulfast.attacks.registry import ATTACKS
from ulfast.poisons import POISONS

NETWORK = {name for name, plain in POISONS.items() if plain.trains}
SHORT = {"steps": 2, "train_steps": 1, "rounds": 1, "epochs": 1, "surrogate": "cnn", "iterations": 2, "samples": 1}
SHORT |= {"checkpoints": 1, "max_rounds": 1}
FEW = {"none", "orthogonal", "iss-jpeg", "cutmix", "mean-noise", "early-stop"}


def tall(make_dataset, channels: int, n: int = 90, seed: int = 0):
    data = make_dataset(n, 16, channels, seed=seed)
    return dataclasses.replace(data, images=np.ascontiguousarray(data.images[:, :, :12]))


def slow(names, quick):
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", slow([n for n in POISONS if n != "file"], set(POISONS) - NETWORK))
def test_every_poison(make_dataset, name, channels):
    data = tall(make_dataset, channels)
    own = {f.name for f in dataclasses.fields(POISONS[name])}
    aim = {"offset": 1} if name == "dune" else {}  # its own, 3, is the own class of three
    got = poison(data, name, **{key: value for key, value in SHORT.items() if key in own}, **aim)
    assert got.image_shape == (16, 12, channels)
    assert (got.images != data.images).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", slow(ATTACKS, FEW))
def test_every_attack(make_dataset, name, channels):
    data = tall(make_dataset, channels)
    options = {"test": tall(make_dataset, channels, 30, 1), "method": name, "clean": data, "model": "cnn", "epochs": 1}
    if name == "ueraser" and channels == 1:
        with pytest.raises(InputError, match="gray images have none"):
            attack(poison(data, "lsp"), **options)
        return
    assert 0 <= attack(poison(data, "lsp"), **options).test_accuracy <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_fit_and_diagnosis(make_dataset, channels):
    data = poison(tall(make_dataset, channels), "lsp")
    assert fit_basis(data, steps=20).image_shape == (16, 12, channels)
    assert diagnose(data).verdict in ("poisoned", "unknown")
