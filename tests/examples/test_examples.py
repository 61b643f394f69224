"""Every example runs, where its library is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_plain_pytorch():
    accuracy = load("plain_pytorch").main(epochs=6, limit=2500)
    assert accuracy["projected"] > accuracy["as it is"] + 0.08


def test_dataloader():
    seen, largest = load("dataloader").main(limit=300)
    assert seen == 300
    assert largest < 1e-4


@pytest.mark.slow
def test_lightning_module():
    pytest.importorskip("lightning")
    assert load("lightning_module").main(epochs=4, limit=2000) > 0.3


@pytest.mark.slow
def test_timm_style():
    try:
        import timm  # noqa: F401
    except ImportError as error:
        pytest.skip(f"timm: {error}")
    assert 0 <= load("timm_style").main(epochs=1, limit=256, batch_size=64) <= 1


@pytest.mark.slow
def test_ffcv_pipeline():
    from ulfast import InputError
    from ulfast.data.beton import engine

    try:
        engine.load()
    except InputError as error:
        pytest.skip(str(error))
    seen, largest = load("ffcv_pipeline").main(limit=300)
    assert seen == 300
    assert largest < 1e-4


def test_there_is_no_example_without_a_test():
    here = Path(__file__).read_text()
    for file in FOLDER.glob("*.py"):
        assert f'load("{file.stem}")' in here


def test_art_adapter():
    """With ART or without it: the interface of its PoisoningAttackBlackBox."""
    import numpy as np

    module = load("art_adapter")
    assert module.main(limit=60) == 1.0
    attack = module.UlfastPoison("lsp", seed=3)
    x, y = np.random.default_rng(0).random((12, 3, 9, 8), np.float32), np.arange(12) % 3
    poisoned, labels = attack.poison(x, y=y)
    assert poisoned.shape == x.shape
    assert poisoned.dtype == x.dtype
    assert labels is y
    assert (attack.poison(x, y, seed=4)[0] != poisoned).any()
    with pytest.raises(ValueError, match="needs the labels"):
        attack.poison(x)


def test_the_adapter_is_an_attack_of_art():
    attack = pytest.importorskip("art.attacks.attack")
    made = load("art_adapter").UlfastPoison("lsp", seed=3)
    assert isinstance(made, attack.PoisoningAttackBlackBox)
    made.set_params(method="ops")
    assert made.method == "ops"
