from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ulfast import InputError
from ulfast.cli.main import group
from ulfast.data import load_dataset, write_dataset
from ulfast.poisons import Poisoning, generator as of_generator, get_poison, gue, poison
from ulfast.poisons.surrogate import Images, new_surrogate

GUE = {"surrogate": "cnn", "width": 2, "epochs": 2, "batch_size": 30, "inner_steps": 2}


@pytest.mark.parametrize(("size", "channels"), [((12, 12), 3), ((9, 14), 1), ((32, 32), 3)])
def test_the_generator_keeps_the_shape_and_the_bound(size, channels):
    torch.manual_seed(0)
    network = of_generator.Generator(channels, 4)
    out = network(torch.rand(5, channels, *size))
    assert out.shape == (5, channels, *size)
    assert out.abs().max() <= 1
    assert out.std() > 0.1
    full = sum(p.numel() for p in of_generator.Generator(3, 64).parameters())
    assert 7e6 < full < 9e6


def test_a_step_is_that_of_the_value_function(make_dataset):
    """Both networks' moves against autograd of the definition, term by term."""
    clean = make_dataset(30)
    plain = gue.GameUnlearnable(surrogate="cnn", width=2, inner_steps=3)
    surrogate = new_surrogate("cnn", clean, 0, torch.device("cpu"))
    surrogate.half = None
    torch.manual_seed(1)
    generator = of_generator.Generator(3, 2)
    images = Images(clean, torch.device("cpu"))
    x, y = images.pixels(torch.arange(30)), images.labels
    before = copy.deepcopy((surrogate.model, generator))

    def loss(network, pixels):
        return torch.nn.functional.cross_entropy(network((pixels - surrogate.mean) / surrogate.std), y)

    classifier, leader = copy.deepcopy(before)
    noisy = (x + plain.eps * leader(x)).clamp(0, 1)
    best = copy.deepcopy(classifier)
    adam = torch.optim.Adam(best.parameters(), lr=1e-4)
    for _ in range(3):
        adam.zero_grad()
        loss(best, noisy.detach()).backward()
        adam.step()
    gain = loss(classifier, noisy) - loss(best, noisy)
    theta, phi = list(classifier.parameters()), list(leader.parameters())
    q = torch.autograd.grad(gain, theta + phi, retain_graph=True)
    logits = classifier((x - surrogate.mean) / surrogate.std)
    others = [[-logits.log_softmax(1)[i, k] for k in range(3) if k != y[i]] for i in range(30)]
    wrong = torch.stack([torch.stack(each).max() for each in others]).mean()
    f = torch.autograd.grad(wrong, theta)
    square = sum(float(g.square().sum()) for g in q)
    inside = sum(float((a * b).sum()) for a, b in zip(f, q, strict=False))
    weight = max(0.0, (1.5 * square - inside) / square)
    groups = [(generator, 0.1), (surrogate.model, 0.01)]
    optimizer = torch.optim.SGD([{"params": list(one.parameters()), "lr": lr} for one, lr in groups])
    told = gue._step(plain, surrogate, generator, optimizer, x, y, 1.0)
    assert told.tolist() == pytest.approx([float(loss(before[0], noisy).detach()), float(wrong.detach())], rel=1e-4)
    for new, old, a, b in zip(surrogate.model.parameters(), before[0].parameters(), f, q, strict=False):
        torch.testing.assert_close(new, old - 0.01 * (a + weight * b), atol=1e-6, rtol=1e-3)
    for new, old, b in zip(generator.parameters(), before[1].parameters(), q[len(theta) :], strict=True):
        torch.testing.assert_close(new, old - 0.1 * weight * b, atol=1e-5, rtol=1e-2)


def test_same_seed_same_bytes_within_the_budget(make_dataset):
    clean = make_dataset(60)
    made = poison(clean, "gue", seed=1, **GUE)
    assert made.checksum() == poison(clean, "gue", seed=1, **GUE).checksum()
    assert made.checksum() != poison(clean, "gue", **GUE).checksum()
    tight = poison(clean, "gue", seed=1, eps=4.6 / 255, **GUE)
    for one, most in ((made, 8), (tight, 4)):
        moved = np.abs(one.images.astype(int) - clean.images).max()
        assert 0 < moved <= most
    assert len(made.manifest["making"]["epochs"]) == 2
    assert get_poison("gue")[1].resolved(clean)["width"] == 64


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bytes(make_dataset, tmp_path, monkeypatch):
    clean = make_dataset(60)
    options = GUE | {"epochs": 3}
    want = poison(clean, "gue", **options)
    step, counted = gue._step, []

    def kill(*arguments):
        if len(counted) == 3:  # in the middle of the second epoch
            raise Killed
        counted.append(1)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(gue, "_step", kill)
        with pytest.raises(Killed):
            poison(clean, "gue", folder=tmp_path, **options)
    with pytest.raises(InputError, match="another"):
        poison(clean, "gue", folder=tmp_path, resume=True, **options | {"lr": 0.5})
    got = poison(clean, "gue", folder=tmp_path, resume=True, **options)
    assert got.checksum() == want.checksum()
    assert got.manifest == want.manifest


def test_a_saved_generator_poisons_future_images(make_dataset, tmp_path):
    write_dataset(tmp_path / "clean", make_dataset(60), make_dataset(30, split="test", seed=9))
    write_dataset(tmp_path / "new", make_dataset(40, seed=7))
    pairs = [word for key, value in GUE.items() for word in ("--set", f"{key}={value}")]
    file = tmp_path / "kept" / "gue.safetensors"

    def run(*words):
        return CliRunner().invoke(group, ["poison", *map(str, words), "--json"])

    first = ["--method", "gue", "--data", tmp_path / "clean", *pairs]
    done = run(*first, "--generator-out", file, "--out", tmp_path / "out", "--poison-test", tmp_path / "unseen")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out.work").exists()
    made = load_dataset(tmp_path / "out")
    new = make_dataset(40, seed=7)
    done = run("--generator", file, "--data", tmp_path / "new", "--out", tmp_path / "more")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["method"] == "gue"
    later = load_dataset(tmp_path / "more")
    assert 0 < np.abs(later.images.astype(int) - new.images).max() <= 8
    assert later.manifest["making"]["generator"]["parameters"]["width"] == 2
    # By the file the same images become the same.
    again = poison(make_dataset(60), "gue", generator=str(file))
    assert again.checksum() == made.checksum()
    unseen = load_dataset(tmp_path / "unseen", split="test")
    want = Poisoning(make_dataset(60), "gue", generator=str(file)).unseen(make_dataset(30, split="test", seed=9))
    assert unseen.checksum() == want.checksum()
    with pytest.raises(InputError, match="images of 3 channels, these have 1"):
        poison(make_dataset(20, channels=1), "gue", generator=str(file))
    (tmp_path / "damaged.safetensors").write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"damaged.safetensors cannot be read"):
        poison(new, "gue", generator=str(tmp_path / "damaged.safetensors"))
    with pytest.raises(InputError, match="there is no generator"):
        poison(new, "gue", generator=str(tmp_path / "none.safetensors"))
    for words, message in {
        ("--method", "lsp", "--generator-out", "x.safetensors"): "keeps what --method gue or dc trains",
        ("--method", "gue", "--generator-out", "x.pt"): "must end in .safetensors",
        ("--method", "lsp", "--generator", str(file)): "lsp has no parameter 'generator'",
    }.items():
        wrong = run(*words, "--data", tmp_path / "new", "--out", tmp_path / "wrong")
        assert message in str(wrong.exception)
