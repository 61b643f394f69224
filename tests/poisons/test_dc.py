"""DeepConfuse: a generator trained through a classifier's step."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.func import functional_call

from ulfast import InputError
from ulfast.poisons import dc, get_poison, poison
from ulfast.poisons.generator import Generator
from ulfast.poisons.surrogate import Images, new_surrogate

DC = {"surrogate": "cnn", "width": 2, "rounds": 2, "epochs": 2, "batch_size": 30}


@pytest.mark.parametrize("model", ["cnn", "resnet18-2"])
def test_a_step_goes_up_the_loss_of_the_classifier_after_its_step(make_dataset, model):
    """Against autograd through the whole of it."""
    clean = make_dataset(30)
    plain = dc.DeepConfuse(surrogate=model, width=2, lr=0.05)
    surrogate = new_surrogate(model, clean, 0, torch.device("cpu"))
    surrogate.half = None
    torch.manual_seed(1)
    generator = Generator(3, 2)
    images = Images(clean, torch.device("cpu"))
    x, y = images.pixels(torch.arange(30)), images.labels
    classifier, leader = copy.deepcopy((surrogate.model, generator))

    def loss(pixels, weights):
        logits = functional_call(classifier, weights, ((pixels - surrogate.mean) / surrogate.std,))
        return torch.nn.functional.cross_entropy(logits, y)

    theta, phi = dict(classifier.named_parameters()), list(leader.parameters())
    now = loss((x + plain.eps * leader(x)).clamp(0, 1), theta)
    gradients = torch.autograd.grad(now, list(theta.values()), create_graph=True)
    after = loss(x, {name: p - 0.05 * g for (name, p), g in zip(theta.items(), gradients, strict=True)})
    want = torch.autograd.grad(-after, phi)
    optimizer = torch.optim.SGD(generator.parameters(), lr=1.0)  # shows the gradient itself
    before = copy.deepcopy(list(generator.parameters()))
    told = dc._confuse(plain, surrogate, generator, optimizer, x, y, 1.0)
    assert told == pytest.approx(float(after.detach()), rel=1e-5)
    for new, old, g in zip(generator.parameters(), before, want, strict=True):
        torch.testing.assert_close(new, old - g, atol=1e-6, rtol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(surrogate.model.parameters(), theta.values(), strict=True))


def test_the_classifier_takes_a_step_of_sgd_on_the_frozen_noise(make_dataset):
    clean = make_dataset(30)
    plain = dc.DeepConfuse(surrogate="cnn", width=2)
    surrogate = new_surrogate("cnn", clean, 0, torch.device("cpu"))
    surrogate.half = None
    frozen = Generator(3, 2).eval()
    images = Images(clean, torch.device("cpu"))
    x, y = images.pixels(torch.arange(30)), images.labels
    other = copy.deepcopy(surrogate.model)
    noisy = (x + plain.eps * frozen(x)).clamp(0, 1).detach()
    optimizer = torch.optim.SGD(other.parameters(), lr=plain.lr)
    loss = torch.nn.functional.cross_entropy(other((noisy - surrogate.mean) / surrogate.std), y)
    loss.backward()
    optimizer.step()
    assert dc._learn(plain, surrogate, frozen, x, y, 1.0) == pytest.approx(float(loss.detach()), rel=1e-5)
    for a, b in zip(surrogate.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_generator_that_confuses_most_is_kept(make_dataset, monkeypatch):
    """Rounds are judged by the classifier of the next one, the last by one that is trained for it."""
    seen, judged = [], iter([0.9, 0.4, 0.4, 0.6])

    def accuracy(surrogate, images):
        return next(judged)

    kept = dc._learn

    def learn(poison, surrogate, frozen, *rest):
        seen.append(frozen.last[0].weight.detach().clone())
        return kept(poison, surrogate, frozen, *rest)

    monkeypatch.setattr(dc, "_accuracy", accuracy)
    monkeypatch.setattr(dc, "_learn", learn)
    made = poison(make_dataset(30), "dc", **DC | {"rounds": 4, "epochs": 1})
    making = made.manifest["making"]
    assert making["round"] == 2
    assert [row.get("clean_accuracy") for row in making["epochs"]] == [None, 0.9, 0.4, 0.4, 0.6]
    assert "loss_clean" in making["epochs"][3]
    assert "loss_clean" not in making["epochs"][4]
    assert len(seen) == 5
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(seen))


def test_same_seed_same_bytes_within_the_budget(make_dataset):
    clean = make_dataset(60)
    made = poison(clean, "dc", seed=1, **DC)
    assert made.checksum() == poison(clean, "deepconfuse", seed=1, **DC).checksum()
    assert made.checksum() != poison(clean, "dc", **DC).checksum()
    tight = poison(clean, "dc", seed=1, eps=4.6 / 255, **DC)
    for one, most in ((made, 8), (tight, 4)):
        moved = np.abs(one.images.astype(int) - clean.images).max()
        assert 0 < moved <= most
    assert get_poison("dc")[1].resolved(clean)["width"] == 64


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, 9])  # in a round, and in the judgement of the last
def test_a_killed_run_resumes_to_the_same_bytes(make_dataset, tmp_path, monkeypatch, at):
    clean = make_dataset(60)
    want = poison(clean, "dc", **DC)
    step, counted = dc._learn, []

    def kill(*arguments):
        if len(counted) == at:
            raise Killed
        counted.append(1)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(dc, "_learn", kill)
        with pytest.raises(Killed):
            poison(clean, "dc", folder=tmp_path, **DC)
    with pytest.raises(InputError, match="another"):
        poison(clean, "dc", folder=tmp_path, resume=True, **DC | {"lr": 0.5})
    got = poison(clean, "dc", folder=tmp_path, resume=True, **DC)
    assert got.checksum() == want.checksum()
    assert got.manifest == want.manifest


def test_a_generator_tells_its_method(make_dataset, tmp_path):
    """A file of one method is not taken for the other's."""
    clean = make_dataset(40)
    made = poison(clean, "dc", folder=tmp_path, **DC)
    file = str(tmp_path / "generator.safetensors")
    assert poison(clean, "dc", generator=file).checksum() == made.checksum()
    with pytest.raises(InputError, match="was made by dc: give --method dc"):
        poison(clean, "gue", generator=file)


@pytest.mark.slow
def test_after_some_rounds_a_step_on_the_noise_harms_more_than_a_step_on_random_noise(make_dataset):
    """What the generator is trained for: the loss on clean images after the classifier's step on its noise grows."""
    clean = make_dataset(120)
    made = poison(clean, "dc", surrogate="cnn", width=4, rounds=1, epochs=40, batch_size=60, generator_lr=3e-3, lr=0.1)
    rows = made.manifest["making"]["epochs"][:40]
    classifier_alone = np.mean([row["loss_noisy"] for row in rows[-5:]])
    assert np.mean([row["loss_clean"] for row in rows[-5:]]) > classifier_alone + 0.2
