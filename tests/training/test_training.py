from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from ulfast import InputError
from ulfast.data import Augment, MemoryLoader
from ulfast.runtime.devices import fast_half
from ulfast.training import RECIPES, Recipe, build_model, evaluate, get_recipe, mixing, train
from ulfast.training.models import BasicBlock

STEP = mixing.Step(nn.Identity(), 0, torch.zeros(1), torch.ones(1))
FAST = Recipe("test", 3, 16, "adamw", 3e-3, 0.0, "one-cycle", Augment(2, True))


def run(dataset, recipe=FAST, *, seed=0, **options):
    model = build_model("cnn", num_classes=dataset.num_classes, image_shape=dataset.image_shape, seed=seed)
    loader = MemoryLoader(dataset, recipe.batch_size, augment=recipe.augment, shuffle=True, seed=seed)
    result = train(model, loader, MemoryLoader(dataset, 64), recipe, seed=seed, **options)
    return model, result


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


@pytest.mark.parametrize("name", ["cnn", "resnet18-16", "resnet18-4"])
@pytest.mark.parametrize(("size", "channels", "classes"), [(10, 1, 2), (32, 3, 10), (64, 3, 7), (96, 1, 3)])
def test_networks_take_every_size(name, size, channels, classes):
    model = build_model(name, num_classes=classes, image_shape=(size, size, channels))
    x = torch.randn(2, channels, size, size).contiguous(memory_format=torch.channels_last)
    assert model(x).shape == (2, classes)


def test_sizes_of_the_networks():
    def count(name, size=32):
        return sum(p.numel() for p in build_model(name, num_classes=10, image_shape=(size, size, 3)).parameters())

    # conv 3->32, conv 32->64, 64*6*6 -> 128 -> 10; ResNet-18 with the CIFAR stem has 11.17 million weights.
    assert count("cnn") == 896 + 18496 + 2304 * 128 + 128 + 1290
    assert count("resnet18") == 11_173_962
    assert count("resnet18", 224) == 11_181_642
    assert count("resnet18-16") < count("resnet18") / 15


@pytest.mark.parametrize("width", [1, 4, 6, 12, 16])
def test_gradients_of_narrow_networks(width):
    """Of the strided 1 x 1 convolution, where oneDNN once damaged the heap; against float64, which it does not do."""
    conv = BasicBlock(width, 2 * width, 2).shortcut[0].to(memory_format=torch.channels_last)
    exact = copy.deepcopy(conv).double()
    for _ in range(10):
        x = torch.randn(32, width, 16, 16).contiguous(memory_format=torch.channels_last)
        for layer, images in ((conv, x), (exact, x.double())):
            layer.zero_grad()
            layer(images).square().sum().backward()
        torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1e-3)


def test_the_seed_makes_the_network_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    shape = {"num_classes": 3, "image_shape": (12, 12, 3)}
    a, b, c = (weights(build_model("cnn", **shape, seed=s)) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(state, torch.get_rng_state())


def test_unknown_models_and_recipes():
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        build_model("resnet19", num_classes=2, image_shape=(32, 32, 3))
    with pytest.raises(InputError, match="use resnet18-16"):
        build_model("cnn", num_classes=2, image_shape=(8, 8, 3))
    with pytest.raises(InputError, match="did you mean 'quick'"):
        get_recipe("quik", "cnn", 100)


def test_timm_networks():
    timm = pytest.importorskip("timm")
    shape = {"num_classes": 4, "image_shape": (32, 32, 1)}
    assert build_model("timm:resnet10t", **shape)(torch.randn(2, 1, 32, 32)).shape == (2, 4)
    assert "resnet10t" in timm.list_models()
    with pytest.raises(InputError, match="timm has no model 'resnet10x'"):
        build_model("timm:resnet10x", **shape)


def test_schedules():
    one = replace(FAST, epochs=10, lr=1.0)
    rates = [one.rate(s, 10) for s in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates.index(max(rates)) in (19, 20)
    assert rates[-1] < 1e-3
    step = replace(get_recipe("paper-plain", "resnet18", 50_000), epochs=8)
    assert [step.rate(s, 1) for s in range(8)] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    paper = get_recipe("paper", "resnet18", 50_000)
    assert (paper.epochs, paper.batch_size, paper.weight_decay, paper.cutmix, paper.strong) == (
        50,
        128,
        1e-4,
        0.5,
        True,
    )
    assert all(get_recipe(name, "cnn", n).epochs > 0 for name in RECIPES for n in (10, 5_000, 50_000))


def test_training_learns_and_reports(make_dataset):
    dataset = make_dataset(96, 16)
    seen = []
    model, result = run(dataset, replace(FAST, epochs=30), progress=lambda *a, **k: seen.append(a))
    assert result.train_accuracy > 0.8
    assert len(result.history) == 30
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    loss, accuracy = evaluate(model, MemoryLoader(dataset, 64), fast_half(torch.device("cpu")))
    assert accuracy == result.test_accuracy
    assert loss == pytest.approx(result.history[-1]["test_loss"], rel=1e-5)
    assert seen[-1] == ("train", 30, 30)
    assert result.images_per_second > 0


def test_evaluate_equals_the_plain_way(make_dataset):
    dataset = make_dataset(50)
    model = build_model("resnet18-4", num_classes=3, image_shape=(12, 12, 3)).eval()
    loader = MemoryLoader(dataset, 16)
    x = torch.cat([x for x, _ in loader])
    y = torch.from_numpy(dataset.labels)
    with torch.no_grad():
        out = model(x)
    loss, accuracy = evaluate(model, loader)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(out, y)), rel=1e-5)
    assert accuracy == pytest.approx(float((out.argmax(1) == y).float().mean()))


def test_the_same_seed_gives_the_same_weights(make_dataset):
    dataset = make_dataset()
    a, b, c = (weights(run(dataset, seed=s)[0]) for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, make_dataset, optimizer):
    dataset, recipe = make_dataset(), replace(FAST, optimizer=optimizer, epochs=4, lr=0.01)
    hooks = [mixing.cutmix(3), mixing.mixup(3)]  # they draw from torch's generator
    whole, want = run(dataset, recipe, hooks=hooks)

    def stop(stage, done, total, **_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(dataset, recipe, hooks=hooks, folder=tmp_path, progress=stop)
    resumed, got = run(dataset, recipe, hooks=hooks, folder=tmp_path, resume=True)
    assert torch.equal(weights(whole), weights(resumed))
    drop = ("seconds", "images_per_second")
    assert [{k: v for k, v in row.items() if k not in drop} for row in got.history] == [
        {k: v for k, v in row.items() if k not in drop} for row in want.history
    ]


def test_a_checkpoint_of_another_run_is_refused(tmp_path, make_dataset):
    run(make_dataset(), folder=tmp_path)
    with pytest.raises(InputError, match="another recipe"):
        run(make_dataset(), replace(FAST, lr=0.5), folder=tmp_path, resume=True)
    with pytest.raises(InputError, match="another seed"):
        run(make_dataset(), seed=1, folder=tmp_path, resume=True)
    (tmp_path / "last.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        run(make_dataset(), folder=tmp_path, resume=True)


def test_every_epoch_can_be_kept(tmp_path, make_dataset):
    run(make_dataset(), folder=tmp_path, keep_checkpoints=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"epoch-{i:03d}.pt" for i in range(4)] + ["last.pt"]


def test_a_diverged_training_is_an_error(make_dataset):
    with pytest.raises(InputError, match="training loss is"):
        run(make_dataset(), replace(FAST, optimizer="sgd", lr=1e12, epochs=5))


def test_cutmix_and_mixup_report_their_shares():
    x = torch.arange(8.0)[:, None, None, None].expand(8, 1, 10, 10).contiguous()
    y = torch.arange(8)
    for seed in range(20):
        torch.manual_seed(seed)
        mixed, target = mixing.cutmix(8, probability=1.0)(x, y, STEP)
        torch.testing.assert_close(target.sum(1), torch.ones(8))
        # The share of an image's own pixels is its own label's probability.
        own = (mixed == x).float().mean((1, 2, 3))
        order = target.argsort(1, descending=True)
        torch.testing.assert_close(target[y, y], torch.where(target[y, y] == 1, torch.ones(8), own))
        assert order.shape == (8, 8)
        blended, soft = mixing.mixup(8)(x, y, STEP)
        torch.testing.assert_close(blended.mean((1, 2, 3)), soft @ torch.arange(8.0), atol=1e-4, rtol=1e-4)
    assert mixing.cutmix(8, probability=0.0)(x, y, STEP)[1] is y
