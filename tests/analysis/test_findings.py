"""The paper's findings as tools: separability of perturbations, features of poisoned networks, fine-tuning."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.analysis.separability import separability
from ulfast.attacks.checkpoints import Run, dfr, finetune_run
from ulfast.cli.main import group
from ulfast.data.tensors import as_tensor
from ulfast.poisons import perturbation


@pytest.fixture(scope="module")
def many():
    """More images than pixel values, so that noise alone cannot be separated."""
    rng = np.random.default_rng(0)
    images = rng.integers(40, 216, (3000, 8, 8, 3), dtype=np.uint8)
    return ulfast.Dataset(images, np.arange(3000) % 4, tuple("abcd"), "noise")


@pytest.mark.parametrize(
    ("method", "separable"),
    [("lsp", True), ("ops", True), ("regions-16", True), ("cwrandom", True), ("ar", False), ("swrandom", False)],
)
def test_linear_poisons_are_separable_and_ar_is_not(many, method, separable):
    delta = perturbation(many, ulfast.poison(many, method, seed=1))
    found = separability(delta, as_tensor(many.labels), steps=10)
    # 192 directions on 3,000 images leave noise at about 45 %.
    assert found.accuracy > 0.99 if separable else found.accuracy < 0.6
    assert found.accuracy >= found.curve[0]["accuracy"]
    assert found.loss <= found.curve[0]["loss"]


def test_separability_equals_scikit_learn_s(many):
    from sklearn.linear_model import LogisticRegression

    delta = perturbation(many, ulfast.poison(many, "swrandom"))
    x = delta.flatten(1).numpy()
    x = (x - x.min()) / (x.max() - x.min())
    want = LogisticRegression(C=1e6, max_iter=2000).fit(x, many.labels).score(x, many.labels)
    assert separability(delta, as_tensor(many.labels), steps=100).accuracy == pytest.approx(want, abs=0.01)


def published(x, y, steps, seed=0):
    """The paper's protocol by autograd: LBFGS with rate 0.5 and PyTorch's defaults, with this many calls of `step`."""
    torch.manual_seed(seed)
    model = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5)
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return losses, float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("kind", ["levels", "floats", "pixels"])
def test_a_step_is_twenty_evaluations_as_published(many, kind):
    """On perturbations of whole levels, on floats, and on pixels: the losses of the published program."""
    y = as_tensor(many.labels)
    if kind == "pixels":
        inputs = as_tensor(many.images)
    else:
        inputs = perturbation(many, ulfast.poison(many, "ar", seed=1))
        if kind == "floats":
            inputs = inputs * 0.7 + torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)) / 500
    x = inputs.flatten(1).float()
    losses, accuracy = published((x - x.min()) / (x.max() - x.min()), y, 5)
    found = separability(inputs, y, steps=5)
    assert (found.steps, found.converged, len(found.curve)) == (5, False, 100)
    # LBFGS without a line search amplifies rounding, so the two slowly diverge.
    got = [row["loss"] for row in found.curve]
    assert got[:25] == pytest.approx(losses[:25], rel=2e-5)
    assert got == pytest.approx(losses, rel=1e-2)
    assert found.accuracy == pytest.approx(accuracy, abs=0.005)


def test_it_ends_once_the_gradient_is_zero():
    """The optimum is reached early, and no further step follows."""
    x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 1, 0, 1])
    found = separability(x, y, steps=50)
    assert found.converged
    assert found.steps < 50
    assert found.loss == pytest.approx(0.6931472, abs=1e-6)


def test_hidden_layers_separate_more(many):
    delta = perturbation(many, ulfast.poison(many, "swrandom"))
    plain, deep = (separability(delta, as_tensor(many.labels), steps=8, hidden=h) for h in (0, 1))
    assert deep.accuracy > plain.accuracy
    again = separability(delta, as_tensor(many.labels), steps=8, hidden=1)
    assert again.curve == deep.curve


def test_separability_refuses_inputs_without_variation(many):
    with pytest.raises(InputError, match="are the same"):
        separability(torch.zeros(10, 4), torch.arange(10))
    with pytest.raises(InputError, match="as many labels"):
        separability(torch.rand(10, 4), torch.arange(9))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network trained on poisoned images of the sample, every epoch kept."""
    clean, test = ulfast.load_dataset("sample", limit=1500), ulfast.load_dataset("sample", split="test")
    folder = tmp_path_factory.mktemp("runs") / "lsp"
    ulfast.attack(ulfast.poison(clean, "lsp"), test=test, method="none", epochs=6, out=folder, keep_checkpoints=True)
    return folder, clean, test


def test_poisoned_networks_hold_features(run):
    folder, clean, test = run
    opened = Run.open(folder, test)
    few = clean.balanced(500)
    rows = dfr(opened, few)
    assert [row["epoch"] for row in rows] == list(range(7))
    assert rows[-1]["before"] == pytest.approx(opened.result.test_accuracy)
    assert rows[0]["before"] < 0.2
    assert max(row["after"] for row in rows[1:]) > rows[0]["after"] + 0.05
    plain = dfr(opened, few, augment=False)
    assert [row["before"] for row in plain] == [row["before"] for row in rows]
    assert np.mean([row["after"] for row in rows]) > np.mean([row["after"] for row in plain])


@pytest.mark.parametrize("last_layer", [False, True])
def test_fine_tuning_recovers(run, last_layer):
    folder, clean, test = run
    options = {"lr": 0.1, "epochs": 15} if last_layer else {"lr": 0.02, "epochs": 8}
    got = finetune_run(Run.open(folder, test), clean.balanced(500), last_layer=last_layer, **options)
    assert got["test_accuracy"] > got["test_accuracy_before"]


def test_what_does_not_fit_is_refused(run, tmp_path):
    folder, clean, test = run
    with pytest.raises(InputError, match="holds no result"):
        Run.open(tmp_path, test)
    gray = ulfast.Dataset(test.images[..., :1].copy(), test.labels, test.classes)
    with pytest.raises(InputError, match="the run's images and test images differ"):
        Run.open(folder, gray)
    other = tmp_path / "run"
    ulfast.attack(ulfast.poison(clean, "lsp"), test=test, method="none", epochs=1, out=other, limit=200)
    with pytest.raises(InputError, match="--keep-checkpoints"):
        Run.open(other, test).checkpoints()
    (folder / "checkpoints" / "attack" / "epoch-099.pt").write_bytes(b"broken")
    try:
        with pytest.raises(InputError, match="checkpoint"):
            dfr(Run.open(folder, test), clean.balanced(100))
    finally:
        (folder / "checkpoints" / "attack" / "epoch-099.pt").unlink()


def test_the_verbs(run, tmp_path):
    folder, _, _ = run

    def said(*words):
        return json.loads(CliRunner().invoke(group, [*map(str, words), "--json"], catch_exceptions=False).output)

    found = said("separability", "--limit", 200, "--steps", 20, "-m", "lsp", "--out", tmp_path / "s.png")
    assert set(found["results"]) == {"clean images", "lsp"}
    assert found["results"]["lsp"]["accuracy"] == 1.0
    rows = said("dfr", folder, "--clean-images", 200, "--out", tmp_path / "d.png")["rows"]
    assert len(rows) == 7
    plain = said("dfr", folder, "--clean-images", 200, "--plain")
    assert plain["augment"] is False
    assert [row["after"] for row in plain["rows"]] != [row["after"] for row in rows]
    assert (tmp_path / "s.png").stat().st_size > 5000
    assert (tmp_path / "d.png").stat().st_size > 5000
    assert said("finetune", folder, "--clean-images", 200)["clean_images"] == 200
    for words, message in (
        (["dfr"], "which run"),
        (["finetune"], "which run"),
        (["separability", "--poisoned", "x", "-m", "lsp"], "give one of them"),
        (["separability", "-m", "lspp"], "did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            said(*words)
