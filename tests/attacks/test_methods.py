"""The other attacks: their effect on images, batches and networks."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ulfast
from ulfast import InputError
from ulfast.attacks import ATTACKS, Context, Plan, get_attack
from ulfast.attacks.squeeze import JPEG
from ulfast.data import Augment, MemoryLoader
from ulfast.data.lazy import LazyImages
from ulfast.data.mapped import map_images
from ulfast.parameters import with_parameters
from ulfast.training import Recipe, adversaries, build_model, mixing, refit

RECIPE = Recipe("test", 4, 32, "adamw", 3e-3, 0.0, "one-cycle", None)


@pytest.fixture(scope="module")
def data(bars):
    return bars(600, 240, 60)


def applied(name, train, test, context=None, **parameters):
    _, (step,) = get_attack(name)
    plan = Plan(train, test, RECIPE)
    with_parameters(step, name, parameters).apply(plan, context or Context(0, torch.device("cpu")))
    return plan


def test_gray_is_pillow_s_luma(data):
    plan = applied("gray", data[0], data[2])
    want = np.asarray(Image.fromarray(data[0].images[5]).convert("L"))
    assert all(np.array_equal(plan.train.images[5, :, :, c], want) for c in range(3))
    assert plan.test is data[2]
    assert not np.array_equal(applied("gray", data[0], data[2], squeeze_test=True).test.images, data[2].images)


def test_jpeg_is_pillow_s(data):
    """Byte for byte, whether the images lie in memory or are decoded when asked for. The other qualities and sizes are
    in tests/conformance.
    """
    images = data[1].images[:60]

    def pillow(image):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=10)
        return np.asarray(Image.open(stream))

    def read(i, out):
        out[...] = images[i]

    lazy = replace(data[1].subset(np.arange(60)), images=LazyImages(images.shape, read))
    want = np.stack([pillow(image) for image in images])
    assert np.array_equal(applied("jpeg", lazy, data[2]).train.images, want)
    assert np.array_equal(applied("jpeg", data[1], data[2]).train.images[:60], want)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_bit_depth(data, bits):
    got = applied("iss-bdr", data[0], data[2], bits=bits).train.images
    assert len(np.unique(got)) <= 2**bits
    assert np.array_equal(got, data[0].images // 2 ** (8 - bits) * 2 ** (8 - bits))


def test_blur_takes_high_frequencies_and_keeps_the_mean(data):
    images = data[0].images.astype(float)
    got = applied("gaussian", data[0], data[2]).train.images.astype(float)
    assert abs(got.mean() - images.mean()) < 0.5
    assert np.diff(got, axis=2).std() < 0.5 * np.diff(images, axis=2).std()
    assert np.array_equal(applied("gaussian", data[0], data[2], sigma=0.1).train.images, data[0].images)


def test_gray_images_pass_through_every_squeeze():
    images = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 1), dtype=np.uint8)
    one = ulfast.Dataset(images, np.arange(10) % 2, ("a", "b"))
    for name in ("iss-gray", "iss-jpeg", "iss-bdr", "gaussian"):
        assert applied(name, one, one).train.images.shape == images.shape
    assert np.array_equal(applied("gray", one, one).train.images, images)


def test_images_are_mapped_in_order_and_by_chunks(data, monkeypatch):
    from ulfast.data import mapped

    monkeypatch.setattr(mapped, "CHUNK_BYTES", 1000)
    seen = []
    done = map_images(data[0], lambda b: seen.append(len(b)) or 255 - b, lambda *a: None)
    assert len(seen) > 100
    assert np.array_equal(done.images, 255 - data[0].images)
    monkeypatch.setattr(mapped, "MEMORY_BYTES", 10)  # then to a temporary file
    assert np.array_equal(map_images(data[0], lambda b: 255 - b).images, 255 - data[0].images)


def test_values_out_of_range_are_refused(data):
    for name, bad in (
        ("iss-jpeg", {"quality": 101}),
        ("iss-bdr", {"bits": 9}),
        ("cutmix", {"probability": 2.0}),
        ("ueraser", {"jpeg_quality": 100}),
        ("ueraser", {"plasma": 1.5}),
    ):
        with pytest.raises(InputError, match="at most"):
            applied(name, data[0], data[2], **bad)


def test_joining_sorts_by_stage_and_refuses_what_makes_no_sense():
    assert get_attack("cutmix+orthogonal")[0] == "orthogonal+cutmix"
    assert get_attack("gray+dfr+adversarial+cutmix+orthogonal")[0] == "iss-gray+orthogonal+cutmix+adversarial+dfr"
    for name, message in (
        ("orthogonal+iss-jpeg", r"write iss-jpeg\+orthogonal"),
        ("cutmix+mixup", "both mix labels"),
        ("adversarial+ueraser", "hardest images"),
        ("dfr+linear-probe", "last layer"),
        ("none+cutmix", "leave it out"),
    ):
        with pytest.raises(InputError, match=message):
            get_attack(name)


def test_every_attack_names_its_source_and_excludes_both_ways():
    for name, attack in ATTACKS.items():
        assert attack.summary
        assert name == "none" or attack.source
        for other in attack.excludes:
            for joined in (f"{name}+{other}", f"{other}+{name}"):
                with pytest.raises(InputError, match=attack.excludes[other]):
                    get_attack(joined)


def step_for(model, channels=3, epoch=0):
    mean, std = torch.linspace(0.4, 0.5, channels), torch.linspace(0.2, 0.3, channels)
    return mixing.Step(model, epoch, mean, std)


def test_cutout_blackens_one_square_per_image():
    step = step_for(nn.Identity())
    pixels = torch.full((200, 3, 12, 16), 0.5)
    torch.manual_seed(0)
    got = step.pixels(mixing.cutout(6)(step.normalised(pixels), torch.zeros(200), step)[0])
    black = got.abs() < 1e-6
    assert ((got - 0.5).abs() < 1e-6)[~black].all()
    assert torch.equal(black[:, 0], black[:, 2])
    rows, columns = black[:, 0].any(2).sum(1), black[:, 0].any(1).sum(1)
    assert torch.equal(black[:, 0].sum((1, 2)), rows * columns)  # one rectangle
    assert rows.max() == 6
    assert rows.min() == 3  # half of it may be outside
    assert len(torch.unique(black[:, 0].flatten(1).float() @ torch.arange(192.0))) > 50


def small_network(data):
    model = build_model("cnn", num_classes=3, image_shape=data[0].image_shape, seed=0)
    loader = MemoryLoader(data[0], 64, shuffle=True)
    ulfast.training.train(model, loader, MemoryLoader(data[2], 64), RECIPE)
    return model, MemoryLoader(data[0], 64)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_raises_the_loss_within_its_bound(data, norm):
    model, loader = small_network(data)
    model.train()
    x, y = next(iter(loader))
    step = mixing.Step(model, 0, loader.mean, loader.std)
    eps = 8 / 255 if norm == "linf" else 0.5
    torch.manual_seed(0)
    hard, labels = adversaries.pgd(eps, 10, eps / 4, norm)(x, y, step)
    assert model.training
    assert labels is y
    delta = (step.pixels(hard) - step.pixels(x)).flatten(1)
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    assert size.max() <= eps * (1 + 1e-4)
    assert size.median() > 0.5 * eps
    assert step.pixels(hard).min() > -1e-6
    assert all(p.grad is None for p in build_model("cnn", num_classes=3, image_shape=(12, 12, 3)).parameters())
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(model(v), y) for v in (x, hard))
    assert after > 1.5 * before


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_start_of_apbench_is_a_step_times_normal_noise(data, norm):
    x, y = next(iter(MemoryLoader(data[0], 64)))
    step = step_for(nn.Identity())
    torch.manual_seed(0)
    delta = step.pixels(adversaries.pgd(0.5, 0, 2 / 255, norm, start="normal")(x, y, step)[0]) - step.pixels(x)
    if norm == "l2":
        torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((64,), 2 / 255), rtol=1e-3, atol=1e-5)
    else:
        assert float(delta.std()) == pytest.approx(2 / 255, rel=0.02)
        assert float(delta.abs().max()) > 3 * 2 / 255


def test_the_published_steps_of_adversarial_training(data, monkeypatch):
    given = []
    monkeypatch.setattr(adversaries, "pgd", lambda *values: given.append(values))
    for options in ({}, {"at_eps": 4 / 255}, {"norm": "l2"}, {"at_alpha": 0.1, "at_start": "normal"}):
        applied("adversarial", data[0], data[2], **options)
    eps, steps, alpha = zip(*(values[:3] for values in given), strict=True)
    assert eps == (8 / 255, 4 / 255, 0.5, 8 / 255)
    assert steps == (10,) * 4
    assert alpha == (2 / 255, 2 / 255, 0.125, 0.1)
    assert [values[5] for values in given] == ["uniform"] * 3 + ["normal"]


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_ueraser_s_search_in_either_mode(data, mode):
    pytest.importorskip("kornia")
    model = build_model("resnet18-2", num_classes=3, image_shape=(12, 12, 3)).train()
    x, y = next(iter(MemoryLoader(data[0], 32)))
    modes = []
    model.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    torch.manual_seed(0)
    (hook,) = applied("ueraser", data[0], data[2], search_mode=mode, copies=3).hooks
    before = model[1].running_mean.clone()
    hook(x, y, step_for(model))
    assert modes == [mode == "training"] * 3
    assert model.training
    assert torch.equal(model[1].running_mean, before) == (mode == "evaluation")


@pytest.mark.parametrize(("jpeg", "quality"), [("fixed", 10), ("fixed", 30), ("drawn", 10), ("drawn", 99)])
def test_ueraser_s_jpeg(data, monkeypatch, jpeg, quality):
    """The last thing that happens to an image, or the first."""
    pytest.importorskip("kornia")
    real, seen = JPEG.image_map, []
    monkeypatch.setattr(JPEG, "image_map", lambda self, c: seen.append(self.quality) or real(self, c))
    (hook,) = applied("ueraser", data[0], data[2], jpeg=jpeg, jpeg_quality=quality, copies=40, search_epochs=1).hooks
    model = build_model("cnn", num_classes=3, image_shape=(12, 12, 3))
    x, y = next(iter(MemoryLoader(data[0], 8)))
    step = step_for(model)
    torch.manual_seed(0)
    got = step.pixels(hook(x, y, step)[0]) * 255
    assert len(seen) == 40
    if jpeg == "fixed":
        assert set(seen) == {quality}
        torch.testing.assert_close(got, got.round(), atol=1e-3, rtol=0)  # it ends with stored pixels
    else:
        assert min(seen) >= quality
        assert max(seen) <= 99
        assert len(set(seen)) > (1 if quality == 99 else 20) - 1


def test_ueraser_takes_the_worst_copy_at_first(data):
    pytest.importorskip("kornia")
    model, loader = small_network(data)
    x, y = next(iter(loader))

    def loss(copies, epoch):
        torch.manual_seed(3)
        step = mixing.Step(model, epoch, loader.mean, loader.std)
        got, _ = adversaries.worst_augmentation(copies, 2)(x, y, step)
        pixels = step.pixels(got)
        assert pixels.min() > -1e-5
        assert pixels.max() < 1 + 1e-5
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model.eval()(got), y))

    assert loss(5, 0) > loss(1, 0)
    assert loss(5, 2) < loss(5, 0)


def test_a_hidden_layer_s_features_and_its_head(data):
    model, loader = small_network(data)
    x, y = refit.features(model.eval(), loader)
    assert x.shape == (600, 128)
    assert torch.equal(y, torch.from_numpy(data[0].labels))
    head = refit.head_of(model)
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch, _ in loader])
    torch.testing.assert_close(head(x), logits, atol=1e-5, rtol=1e-5)
    for new in (refit.reweight(nn.Linear(128, 3), refit.shuffled(x, y, 15, 1024, 0)), refit.probe(x, y, 3)):
        assert (new(x).argmax(1) == y).float().mean() > 0.97
    with pytest.raises(InputError, match="no linear layer"):
        refit.head_of(nn.Conv2d(1, 1, 1))


def trained_network(data, seed=0):
    """A network with batch normalisation that has seen the poisoned images once."""
    model = build_model("resnet18-4", num_classes=3, image_shape=(12, 12, 3), seed=seed)
    make = refit.MakeLoader((0.5,) * 3, (0.25,) * 3, torch.float32, 0, torch.device("cpu"))
    model.train()
    with torch.no_grad():
        for x, _ in make(data[1]):
            model(x)
    return refit.Trained(model, make, make(data[2]), None, seed)


def test_dfr_s_augmented_protocol_is_the_whole_network_s(data):
    """Against the plain computation: every LBFGS evaluation is a pass of the network in training mode, and only its
    last layer learns.
    """
    clean = data[0].balanced(90, 0)
    got = trained_network(data)
    refit.dfr(clean, passes=3, batch_size=64)(got)

    want = trained_network(data)
    for weights in want.model.parameters():
        weights.requires_grad_(False)
    head = refit.head_of(want.model).requires_grad_(True)
    want.model.train()
    optimizer = torch.optim.LBFGS(head.parameters(), lr=0.5)
    loader = want.make_loader(clean, 64, augment=Augment(4, True), shuffle=True)
    for epoch in range(3):
        loader.set_epoch(epoch)
        for x, y in loader:

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(want.model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    for name, value in want.model.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(got.model.state_dict()[name], value, rtol=2e-2, atol=2e-3, msg=name)
    assert all(m.momentum == 0.1 for m in got.model.modules() if isinstance(m, nn.BatchNorm2d))


def test_dfr_s_plain_protocol_changes_the_last_layer_only(data):
    network = trained_network(data)
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    refit.dfr(data[0].balanced(90, 0), augment=False)(network)
    changed = {name for name, value in network.model.state_dict().items() if not torch.equal(value, before[name])}
    assert len(changed) == 2
    assert {before[name].shape[0] for name in changed} == {3}


def test_dfr_draws_by_the_seed(data):
    clean = data[0].balanced(90, 0)

    def weights(seed):
        network = replace(trained_network(data), seed=seed)
        refit.dfr(clean, passes=2)(network)
        return refit.head_of(network.model).weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("method", "options"),
    [("finetune", {"finetune_lr": 0.05}), ("linear-probe", {}), ("dfr", {}), ("dfr", {"dfr_augment": False})],
)
def test_refits_recover_with_a_few_clean_images(data, method, options):
    clean, poisoned, test = data
    result = ulfast.attack(poisoned, test=test, clean=clean, method=method, epochs=4, clean_images=150, **options)
    note = result.notes[method]
    assert note["clean_images"] == 150
    assert result.test_accuracy == note["test_accuracy"]
    assert note["test_accuracy_before"] == pytest.approx(result.history[-1]["test_accuracy"])
    assert result.test_accuracy > note["test_accuracy_before"] + 0.05


def test_early_stop_keeps_the_best_epoch(tmp_path, data):
    clean, poisoned, test = data
    result = ulfast.attack(poisoned, test=test, clean=clean, method="early-stop", epochs=5, out=tmp_path / "run")
    rows = result.history
    best = max(range(5), key=lambda i: rows[i]["select_accuracy"])
    assert result.notes["early-stop"] == {"epoch": best + 1, "images": 60}
    assert result.test_accuracy == rows[best]["test_accuracy"]
    # A resumed run ends with the same weights: the best ones are kept beside the last.
    again = ulfast.attack(
        poisoned, test=test, clean=clean, method="early-stop", epochs=5, out=tmp_path / "run", resume=True
    )
    assert again.test_accuracy == result.test_accuracy


def test_methods_that_need_clean_images_say_so(data):
    for method in ("early-stop", "finetune", "linear-probe", "dfr"):
        with pytest.raises(InputError, match="--clean"):
            ulfast.attack(data[1], test=data[2], method=method)


@pytest.mark.parametrize("method", ["gray+cutmix", "orthogonal+mixup", "jpeg+orthogonal+cutout"])
def test_joined_methods_train(data, method):
    result = ulfast.attack(data[1], test=data[2], method=method, epochs=2)
    assert result.method == get_attack(method)[0]
    assert np.isfinite(result.history[-1]["train_loss"])


@pytest.mark.parametrize("method", ["adversarial", "orthogonal+adversarial", "ueraser"])
def test_searches_train(data, method):
    if "ueraser" in method:
        pytest.importorskip("kornia")
    options = {} if "ueraser" in method else {"at_steps": 2}
    result = ulfast.attack(data[1], test=data[2], method=method, epochs=2, **options)
    assert np.isfinite(result.history[-1]["train_loss"])
