"""The paper's recipes: each part against the formula or another program."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageEnhance, ImageOps
from torch import nn

import ulfast
from ulfast.attacks import Plan
from ulfast.attacks.trainings import Runner
from ulfast.cli.main import group
from ulfast.data import MemoryLoader
from ulfast.data.tensors import channel_statistics
from ulfast.training import build_model, default_model, get_recipe, mixing, strong, train

PAPER = get_recipe("paper", "resnet18", 50_000)
STEP = mixing.Step(nn.Identity(), 0, torch.zeros(3), torch.ones(3))
CPU = torch.device("cpu")


def rates(recipe, scheduler):
    """The rate of each epoch by torch's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    schedule, found = scheduler(optimizer), []
    for _ in range(recipe.epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("name", ["paper", "paper-plain", "paper-dfr"])
def test_the_learning_rate_of_every_epoch(name):
    recipe = get_recipe(name, "resnet18", 50_000)
    want = rates(
        recipe,
        lambda optimizer: (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
            if name == "paper-dfr"
            else torch.optim.lr_scheduler.MultiStepLR(optimizer, [25, 37], 0.1)
        ),
    )
    assert len(want) == (60 if name == "paper-dfr" else 50)
    for epoch, rate in enumerate(want):
        for step in (0, 195, 390):
            assert recipe.rate(391 * epoch + step, 391) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "decay", "cutmix", "is_strong"),
    [("paper", 1e-4, 0.5, True), ("paper-plain", 1e-4, 0.0, False), ("paper-dfr", 5e-4, 0.0, False)],
)
def test_the_numbers_of_the_recipes(name, decay, cutmix, is_strong):
    recipe = get_recipe(name, "resnet18", 50_000)
    assert (recipe.optimizer, recipe.lr, recipe.batch_size) == ("sgd", 0.1, 128)
    assert (recipe.weight_decay, recipe.cutmix, recipe.strong, recipe.half) == (decay, cutmix, is_strong, False)
    assert (recipe.augment is None) == is_strong


def test_the_network_is_resnet_18_by_default():
    assert [default_model(name) for name in ("paper", "paper-dfr", "quick")] == ["resnet18", "resnet18", "cnn"]
    for words, model in (([], "resnet18"), (["--model", "cnn"], "cnn")):
        said = CliRunner().invoke(group, ["attack", "--dry-run", "--recipe", "paper", *words, "--json"])
        assert json.loads(said.output)["model"] == model


def trained(dataset, recipe, model="resnet18-2", seed=0, folder=None, resume=False, progress=None):
    """Sizes of the batches, notes and result of a training that `Runner` carries out."""
    sizes = []

    def count(x, y, step):
        sizes.append(len(x))
        return x, y

    plan = Plan(dataset, dataset, recipe, hooks=[count])
    result = Runner(model, seed, CPU, folder, resume, False, 10, progress).run("attack", plan)
    return sizes, plan.notes, result


@pytest.mark.parametrize("name", ["paper", "paper-plain", "paper-dfr"])
def test_the_last_short_batch_is_kept(make_dataset, name):
    recipe = replace(get_recipe(name, "resnet18", 70), epochs=1, batch_size=32)
    assert trained(make_dataset(70, 32), recipe)[0] == [32, 32, 6]
    assert trained(make_dataset(70, 32), replace(recipe, drop_last=True))[0] == [32, 32]


def test_the_constants_of_the_normalisation(make_dataset):
    recipe = replace(PAPER, epochs=1)
    notes = trained(make_dataset(40, 32), recipe)[1]
    assert notes == {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}
    other = make_dataset(40, 16)
    assert trained(other, recipe)[1]["std"] == list(channel_statistics(other)[1])
    x, _ = strong.strong_augmentation(*PAPER.normalisation)(torch.zeros(2, 3, 32, 32), torch.zeros(2), STEP)
    black = torch.tensor([-0.4914 / 0.2023, -0.4822 / 0.1994, -0.4465 / 0.2010])
    torch.testing.assert_close(x, black[:, None, None].expand_as(x))


def test_the_fit_of_the_paper_unless_the_user_says_otherwise(make_dataset):
    dataset = make_dataset(60)
    options = {"test": dataset, "recipe": "paper-plain", "model": "cnn", "epochs": 1}

    def fit(**parameters):
        result = ulfast.attack(dataset, **options | parameters)
        own = next(iter(result.config["parameters"].values()))
        return own["init"], own["fit_epochs"], own["fit_steps"]

    assert fit() == ("torch", 20, None)
    assert fit(init="zero") == ("zero", 20, None)
    assert fit(fit_epochs=3) == ("torch", 3, None)
    assert fit(fit_steps=5) == ("torch", None, 5)
    assert fit(recipe="quick") == ("zero", None, None)
    assert fit(method="orthogonal-full") == ("zero", None, None)


@pytest.mark.parametrize("shape", [(32, 32), (24, 36)])
def test_cutmix_boxes_by_the_published_integer_cuts(shape):
    height, width = shape
    n = 16
    x = torch.arange(float(n))[:, None, None, None].expand(n, 3, height, width).contiguous()
    odd = 0
    for seed in range(60):
        torch.manual_seed(seed)
        mixed, target = mixing.cutmix(n, 1.0)(x, torch.arange(n), STEP)
        torch.manual_seed(seed)
        torch.rand(())
        share = float(torch.distributions.Beta(1.0, 1.0).sample())
        cut = np.sqrt(1 - share)
        cy, cx = int(torch.randint(height, ())), int(torch.randint(width, ()))
        tall, wide = int(height * cut), int(width * cut)
        odd += tall % 2
        want = np.zeros(shape, bool)
        want[max(0, cy - tall // 2) : cy + tall // 2, max(0, cx - wide // 2) : cx + wide // 2] = True
        assert np.array_equal((mixed != x).any(0).any(0).numpy(), want)
        own = target[torch.arange(n), torch.arange(n)]
        assert float(own.min()) == pytest.approx(1 - want.mean(), abs=1e-6)
    assert odd > 10


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def as_batch(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


def as_array(x):
    return (x[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (24, 40)])
@pytest.mark.parametrize("degrees", [-10.0, -7.3, -0.4, 0.0, 2.9, 9.99, 33.0])
def test_rotation_is_pillow_s(size, degrees):
    image = picture(*size)
    want = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))
    got = as_array(strong.resample(as_batch(image), strong.rotation(torch.tensor([degrees]))))
    assert (got != want).any(2).sum() <= 1  # Pillow counts in 1/65536 of a pixel: a place can lie between two


def sheared(image, degrees, scale):
    """By Pillow, with torchvision's documented matrix: scale times (1, -tan; 0, 1) about the centre, inverted."""
    height, width = image.shape[:2]
    about = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    forth = np.eye(3)
    forth[:2, :2] = scale * np.array([[1, -np.tan(np.radians(degrees))], [0, 1]])
    back = about @ np.linalg.inv(forth) @ np.linalg.inv(about)
    size, how = (width, height), Image.Transform.AFFINE
    picture = Image.fromarray(image).transform(size, how, back[:2].ravel().tolist(), Image.Resampling.NEAREST)
    return np.asarray(picture)


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (24, 40)])
@pytest.mark.parametrize(("degrees", "scale"), [(-10.0, 0.8001), (-3.7, 1.17), (0.6, 0.93), (8.2, 1.03), (9.9, 1.199)])
def test_shear_and_scale_are_torchvision_s(size, degrees, scale):
    image = picture(*size)
    source = strong.shear_and_scale(torch.tensor([degrees]), torch.tensor([scale]))
    assert np.array_equal(as_array(strong.resample(as_batch(image), source)), sheared(image, degrees, scale))


ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_jitter_is_pillow_s_in_every_order(order):
    factors = (1.2, 0.83, 1.15)
    image = want = Image.fromarray(picture(32, 32))
    for which in order:
        want = ENHANCERS[which](want).enhance(factors[which])
    got = strong.jitter(as_batch(image), torch.tensor([factors]), torch.tensor([order]))
    assert (got >= 0).all()
    assert (got <= 1).all()
    assert np.abs(as_array(got).astype(int) - np.asarray(want)).max() <= 3  # Pillow rounds three times


def test_jitter_draws_an_order_for_each_image(monkeypatch):
    seen = []
    real = strong.jitter
    monkeypatch.setattr(strong, "jitter", lambda x, f, order: seen.append((f, order)) or real(x, f, order))
    torch.manual_seed(0)
    strong.strong_augmentation(*PAPER.normalisation)(torch.rand(6000, 3, 4, 4), torch.zeros(6000), STEP)
    factors, order = seen[0]
    counts = torch.unique(order, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 900
    assert factors.min() >= 0.8
    assert factors.max() <= 1.2
    torch.testing.assert_close(factors.mean(0), torch.ones(3), atol=0.01, rtol=0)


def test_gray_images_take_brightness_and_contrast():
    x = torch.rand(4, 1, 16, 16)
    got = strong.strong_augmentation((0.5,), (0.25,))(x, torch.zeros(4), STEP)[0]
    assert got.shape == x.shape
    same = strong.jitter(x, torch.tensor([[1.0, 1.0, 1.7]] * 4), torch.tensor([[0, 1, 2]] * 4))
    torch.testing.assert_close(same, x)


def by_pillow(image, draw):
    """The published pipeline for one image, with Pillow's operations and 12 numbers between 0 and 1."""
    out = Image.fromarray(image).rotate(20 * draw[0] - 10, Image.Resampling.NEAREST)
    out = Image.fromarray(sheared(np.asarray(out), 20 * draw[1] - 10, 0.8 + 0.4 * draw[2]))
    for which in np.argsort(draw[6:9]):
        out = ENHANCERS[which](out).enhance(0.8 + 0.4 * draw[3 + which])
    top, left = (draw[9:11] * 9).astype(int)
    height, width = image.shape[:2]
    out = ImageOps.expand(out, 4).crop((left, top, left + width, top + height))
    return np.asarray(ImageOps.mirror(out) if draw[11] < 0.5 else out)


def statistics(x):
    """Statistics of images (n, H, W, C) in [0, 1]: mean, deviation, black share, mean gradients, centre of the left
    part.
    """
    black = (x == 0).all(3)
    rows, columns = np.arange(x.shape[1]), np.arange(x.shape[2])
    return {
        "mean": x.mean(),
        "deviation": x.std(),
        "black": black.mean(),
        "horizontal": np.abs(np.diff(x, axis=2)).mean(),
        "vertical": np.abs(np.diff(x, axis=1)).mean(),
        "black corner": black[:, :4, :4].mean(),
        "row": (black.mean((0, 2)) * rows).sum() / black.mean((0, 2)).sum(),
        "column": (black.mean((0, 1)) * columns).sum() / black.mean((0, 1)).sum(),
    }


def augmented(images, seed=0):
    torch.manual_seed(seed)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    got, _ = strong.strong_augmentation((0.0,) * 3, (1.0,) * 3)(x, torch.zeros(len(x)), STEP)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.min() >= 0
    assert got.max() <= 1
    return got.permute(0, 2, 3, 1).numpy()


def test_augmented_images_are_the_published_pipeline_s():
    images = ulfast.load_dataset("sample", limit=200).images
    torch.manual_seed(0)
    draws = torch.rand(len(images), 12).double().numpy()
    want = np.stack([by_pillow(image, draw) for image, draw in zip(images, draws, strict=True)])
    far = np.abs(255 * augmented(images) - want).max(3)
    assert (far > 4).mean() < 1e-3  # a pixel between two places, as above
    assert far.mean() < 2  # Pillow rounds three times


def test_augmented_images_have_the_statistics_of_the_published_pipeline():
    images = np.concatenate([ulfast.load_dataset("sample", limit=500).images] * 4)
    rng = np.random.default_rng(0)
    want = statistics(np.stack([by_pillow(image, rng.random(12)) for image in images]) / 255)
    for name, value in statistics(augmented(images)).items():
        assert value == pytest.approx(want[name], rel=0.06), name


def test_projected_images_outside_of_0_to_1_are_clamped_by_the_jitter():
    x = torch.linspace(-0.5, 1.5, 4 * 3 * 256).view(4, 3, 16, 16)
    got, _ = strong.strong_augmentation((0.0,) * 3, (1.0,) * 3)(x, torch.zeros(4), STEP)
    assert got.min() >= 0
    assert got.max() <= 1


def test_the_first_steps_are_sgd_s(make_dataset):
    """Two steps of the loop against v = 0.9 v + g + decay w, w -= rate v, written out in float64."""
    dataset = make_dataset(64, 32)
    recipe = replace(get_recipe("paper-plain", "resnet18", 64), epochs=1, batch_size=32, augment=None)
    model, exact = (build_model("cnn", num_classes=3, image_shape=(32, 32, 3), seed=5) for _ in range(2))
    exact = exact.double()
    loader = MemoryLoader(dataset, 32, mean=recipe.normalisation[0], std=recipe.normalisation[1], shuffle=True)
    train(model, loader, loader, recipe)
    speed = [torch.zeros_like(w) for w in exact.parameters()]
    loader.set_epoch(0)
    for x, y in loader:
        loss = nn.functional.cross_entropy(exact(x.double()), y)
        gradients = torch.autograd.grad(loss, list(exact.parameters()))
        with torch.no_grad():
            for w, v, g in zip(exact.parameters(), speed, gradients, strict=True):
                v.mul_(0.9).add_(g + 1e-4 * w)
                w.sub_(0.1 * v)
    for w, v in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(w.detach().double(), v.detach(), atol=2e-6, rtol=2e-4)


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path, make_dataset):
    dataset = make_dataset(40, 32)
    recipe = replace(PAPER, epochs=3, batch_size=16)
    whole = trained(dataset, recipe)[2]

    def stop(stage, done, total, **_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(dataset, recipe, folder=tmp_path, progress=stop)
    resumed = trained(dataset, recipe, folder=tmp_path, resume=True)[2]
    for mine, other in zip(whole.history, resumed.history, strict=True):
        assert mine["train_loss"] == other["train_loss"]
    assert whole.test_accuracy == resumed.test_accuracy
    assert trained(dataset, recipe, seed=1)[2].history[0]["train_loss"] != whole.history[0]["train_loss"]
