"""The autoencoder that tells images from perturbations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ulfast import InputError
from ulfast.attacks import Context, Plan, get_attack
from ulfast.attacks.d_vae import DisentangledVAE
from ulfast.parameters import with_parameters
from ulfast.training import Recipe

RECIPE = Recipe("test", 2, 32, "adamw", 3e-3, 0.0, "one-cycle", None)
CPU = Context(0, torch.device("cpu"))
SMALL = {"width": 4, "vae_epochs": 2}


@pytest.fixture(scope="module")
def data(bars):
    return bars(300, 60, 40)


def planned(data, context=CPU, **parameters):
    plan = Plan(data[1], data[2], RECIPE)
    _, (step,) = get_attack("d-vae")
    with_parameters(step, "d-vae", parameters).apply(plan, context)
    return plan


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (2, 1, 9, 12), (3, 3, 11, 7)])
def test_the_network_keeps_the_shape(shape):
    network = DisentangledVAE(shape[1], 4, shape[2:], 4)
    image, perturbation, rate = network(torch.rand(shape), torch.arange(shape[0]))
    assert image.shape == perturbation.shape == shape
    assert image.min() >= 0
    assert image.max() <= 1
    assert rate.shape == ()
    assert rate >= 0


def test_the_rate_is_that_of_a_standard_normal_prior():
    network = DisentangledVAE(3, 4, (8, 8), 2)
    torch.nn.init.zeros_(network.code.weight)
    with torch.no_grad():
        network.code.bias.copy_(torch.cat([torch.full((8,), 2.0), torch.zeros(8)]))
    want = torch.distributions.kl_divergence(torch.distributions.Normal(2, 1), torch.distributions.Normal(0, 1)) * 8
    rate = network(torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))[2]
    assert float(rate.detach()) == pytest.approx(float(want))


def test_the_perturbation_depends_on_the_class_and_the_image_does_not():
    network = DisentangledVAE(3, 4, (8, 8), 4).eval()
    x = torch.rand(1, 3, 8, 8).expand(2, -1, -1, -1)
    image, perturbation, _ = network(x, torch.tensor([0, 1]))
    torch.testing.assert_close(image[0], image[1])
    assert not torch.allclose(perturbation[0], perturbation[1])


def test_many_classes_of_large_images_share_one_embedding_per_position():
    with torch.device("meta"):
        network = DisentangledVAE(3, 1000, (224, 224), 64)
    assert network.grid == (1, 1)


@pytest.mark.parametrize("stages", [1, 2])
def test_images_are_replaced_and_labels_and_test_images_stay(data, stages):
    seen = []
    context = replace(CPU, progress=lambda stage, done, total, **info: seen.append(stage))
    plan = planned(data, context, stages=stages, **SMALL)
    assert plan.train.images.shape == data[1].images.shape
    assert plan.train.images.dtype == np.uint8
    assert not np.array_equal(plan.train.images, data[1].images)
    assert np.array_equal(plan.train.labels, data[1].labels)
    assert plan.test is data[2]
    assert len(plan.notes["d_vae"]) == stages
    assert {stage for stage in seen if stage.startswith("d-vae")} == {f"d-vae {i + 1}" for i in range(stages)}
    assert np.array_equal(planned(data, stages=stages, **SMALL).train.images, plan.train.images)


def test_resumed_it_gives_the_same_images(data, interrupted):
    whole = planned(data, **SMALL).train.images
    plan, steps = interrupted(lambda context: planned(data, context, **SMALL), "d-vae 2", 1)
    assert np.array_equal(plan.train.images, whole)
    assert steps == [("d-vae 2", 2)]


def test_training_lowers_error_and_power_and_bounds_the_rate(data):
    rows = []
    context = replace(CPU, progress=lambda stage, done, total, **info: rows.append(info) if "error" in info else None)
    planned(data, context, width=8, vae_epochs=8, stages=1)
    assert len(rows) == 8
    assert rows[-1]["error"] < 0.95 * rows[0]["error"]
    assert rows[-1]["rate"] < 3
    assert rows[-1]["power"] < rows[1]["power"]


def test_more_than_two_stages_are_refused(data):
    with pytest.raises(InputError, match="1 or 2"):
        planned(data, stages=3)
