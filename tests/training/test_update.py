"""The training step in buffers, as a CUDA graph replays it; on the CPU, where nothing is captured."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import ulfast
from ulfast.data import Augment, MemoryLoader, channel_statistics
from ulfast.data.tensors import level_counts
from ulfast.training import Recipe, build_model, get_recipe, loop, train
from ulfast.training.update import GraphUpdate, Update, make_optimizer

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BASE = Recipe("test", 2, 16, "sgd", 0.05, 5e-4, "one-cycle", Augment(2, True), half=False, drop_last=False)


def trained(dataset, recipe, monkeypatch=None, make=None):
    """Weights and history, with the kind of step that `make` returns."""
    if make is not None:
        monkeypatch.setattr(loop, "make_update", lambda *arguments: make(*arguments[:-1]))
    model = build_model("resnet18-2", num_classes=dataset.num_classes, image_shape=dataset.image_shape)
    loader = MemoryLoader(dataset, recipe.batch_size, augment=recipe.augment, shuffle=True)
    result = train(model, loader, MemoryLoader(dataset, 64), recipe)
    for row in result.history:
        row.pop("seconds"), row.pop("images_per_second")
    return model.state_dict(), result.history


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("warm_up", [0, 3])
def test_the_step_in_buffers_gives_the_same_network(make_dataset, monkeypatch, optimizer, warm_up):
    dataset = make_dataset(90, 16)  # five batches and a short one, which does not fit the buffers
    recipe = replace(BASE, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 1e-3, label_smoothing=0.1)
    want, history = trained(dataset, recipe)
    captures, repeats = [], []

    def capture(run):
        captures.append(run)
        return lambda: (repeats.append(1), run())[1]

    def make(*arguments):
        return GraphUpdate(*arguments, capture=capture, warm_up=warm_up)

    got, rows = trained(dataset, recipe, monkeypatch, make)
    assert (len(captures), len(repeats)) == (1, 2 * 5 - warm_up)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(rows, history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_where_the_capture_fails_the_step_runs_as_usual(make_dataset, monkeypatch):
    dataset = make_dataset(64, 16)

    def capture(run):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        finally:
            raise RuntimeError("the capture is invalid")

    def make(*arguments):
        return GraphUpdate(*arguments, capture=capture, warm_up=1)

    want, _ = trained(dataset, BASE)
    with pytest.warns(UserWarning, match=r"no CUDA graph of the training step \(operation not permitted") as said:
        got, _ = trained(dataset, BASE, monkeypatch, make)
    assert len(said) == 1
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5)


def test_a_resumed_training_keeps_its_rate_in_the_tensor(make_dataset):
    dataset = make_dataset(32, 16)
    model = build_model("cnn", num_classes=dataset.num_classes, image_shape=dataset.image_shape)
    optimizer = make_optimizer(model, BASE, CPU)
    update = GraphUpdate(model, optimizer, BASE, None, CPU, capture=lambda run: run)
    update.set_rate(0.25)
    saved = copy.deepcopy(optimizer.state_dict())
    other = make_optimizer(model, BASE, CPU)
    other.load_state_dict(saved)
    again = GraphUpdate(model, other, BASE, None, CPU, capture=lambda run: run)
    again.set_rate(0.125)
    assert all(group["lr"] is again.rate for group in other.param_groups)
    assert float(update.rate) == 0.25


def test_fast_is_quick_on_a_cpu(make_dataset):
    for model in ("cnn", "resnet18"):
        for n in (100, 5_000, 50_000):
            assert get_recipe("fast", model, n) == get_recipe("fast", model, n, CPU) == get_recipe("quick", model, n)
    dataset = make_dataset(60, 16)
    results = [
        ulfast.attack(dataset, test=dataset, method="none", model="cnn", recipe=name, epochs=2, device="cpu")
        for name in ("fast", "quick")
    ]
    losses = [[row["train_loss"] for row in result.history] for result in results]
    assert losses[0] == losses[1]
    assert results[0].test_accuracy == results[1].test_accuracy


def test_fast_on_a_gpu():
    recipe = get_recipe("FAST", "resnet18", 50_000, CUDA)
    assert (recipe.graph, recipe.batch_size, recipe.nesterov, recipe.drop_last) == (True, 512, True, True)
    assert recipe.evaluate_every == recipe.epochs
    steps = 50_000 // recipe.batch_size
    rates = [recipe.rate(step, steps) for step in range(recipe.epochs * steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(recipe.lr, rel=0.01)
    assert top == pytest.approx(recipe.warmup * len(rates), abs=1)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 1e-4
    for model, n in (("cnn", 50_000), ("resnet18", 5_000)):
        few, quick = get_recipe("fast", model, n, CUDA), get_recipe("quick", model, n)
        assert few == replace(quick, name="fast", graph=True, evaluate_every=quick.epochs)


def test_the_recipe_sets_how_often_the_test_images_are_evaluated(make_dataset, monkeypatch):
    dataset = make_dataset(60, 16)
    recipe = replace(get_recipe("quick", "cnn", 60), epochs=4, evaluate_every=4)
    monkeypatch.setattr("ulfast.attacks.run.get_recipe", lambda *_: recipe)
    for given, want in ((None, [4]), (1, [1, 2, 3, 4]), (3, [3, 4])):
        result = ulfast.attack(dataset, test=dataset, method="none", model="cnn", device="cpu", evaluate_every=given)
        assert [row["epoch"] for row in result.history if "test_accuracy" in row] == want
        assert result.seconds["evaluate"] > 0


def test_the_counts_of_the_channel_statistics(make_dataset):
    for channels in (1, 3):
        dataset = make_dataset(20, 16, channels=channels)
        flat = dataset.images.reshape(-1, channels)
        want = [np.bincount(flat[:, c], minlength=256) for c in range(channels)]
        assert np.array_equal(level_counts(flat, CPU), want)
        assert channel_statistics(dataset) == channel_statistics(dataset, device=CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_captured_step_on_a_gpu(make_dataset, monkeypatch, optimizer):
    dataset = make_dataset(90, 16)
    recipe = replace(BASE, optimizer=optimizer, lr=0.01 if optimizer == "sgd" else 1e-4, graph=True, drop_last=True)
    losses = []
    for kind in (Update, GraphUpdate):
        monkeypatch.setattr(loop, "make_update", lambda *arguments, kind=kind: kind(*arguments[:-1]))
        model = build_model("resnet18-2", num_classes=dataset.num_classes, image_shape=dataset.image_shape)
        loader = MemoryLoader(dataset, 16, augment=recipe.augment, shuffle=True, drop_last=True, device=CUDA)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="no CUDA graph")
            result = train(model, loader, MemoryLoader(dataset, 64, device=CUDA), recipe)
        losses.append([row["train_loss"] for row in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert channel_statistics(dataset, device=CUDA) == channel_statistics(dataset)
