"""Features in two dimensions, and the pixels that decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ulfast import InputError
from ulfast.analysis.inspection import plane, saliency


def test_pca_shows_the_two_directions_of_largest_variance():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=generator) * torch.tensor([0.1, 5.0, 0.1, 2.0, 0.1, 0.1]) + 7
    points, share = plane(x)
    centred = x - x.mean(0)
    assert points.shape == (200, 2)
    assert points.dtype == torch.float32
    for column, direction in ((0, 1), (1, 3)):
        assert torch.corrcoef(torch.stack([points[:, column], x[:, direction]]))[0, 1] > 0.99  # and not mirrored
    covariance = np.linalg.eigvalsh(np.cov(centred.numpy().T))
    assert share == pytest.approx(covariance[-2:].sum() / covariance.sum(), rel=1e-4)
    assert torch.equal(plane(x)[0], points)


@pytest.mark.parametrize("shape", [(2, 5), (9, 1), (1, 3)])
def test_few_features_or_images_are_shown_too(shape):
    points, share = plane(torch.arange(float(shape[0] * shape[1])).reshape(shape))
    assert points.shape == (shape[0], 2)
    assert share == pytest.approx(1.0)


def test_features_that_are_all_alike_are_one_point():
    points, share = plane(torch.full((7, 4), 3.0))
    assert not points.any()
    assert share == 1.0


def test_tsne_keeps_neighbours_together():
    pytest.importorskip("sklearn")
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60) % 3
    x = torch.randn(60, 8, generator=generator) * 0.1 + 10 * nn.functional.one_hot(groups, 8)
    points, share = plane(x, "tsne")
    assert share is None
    middle = torch.stack([points[groups == g].mean(0) for g in range(3)])
    assert torch.equal(torch.cdist(points, middle).argmin(1), groups)
    assert torch.equal(plane(x, "tsne")[0], points)
    assert plane(torch.ones(5, 3), "tsne")[0].shape == (5, 2)


def test_a_projection_that_is_not_there_is_an_error(monkeypatch):
    with pytest.raises(InputError, match="did you mean 'tsne'"):
        plane(torch.ones(3, 3), "tsnee")
    monkeypatch.setitem(__import__("sys").modules, "sklearn.manifold", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        plane(torch.ones(3, 3), "tsne")


def test_saliency_is_the_gradient_of_the_class_s_score():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 4, 7))
    images, labels = torch.rand(6, 3, 5, 4), torch.tensor([0, 6, 2, 2, 1, 5])
    got = saliency(model, images, labels, (0.4, 0.5, 0.6), (0.2, 0.25, 0.5))
    weights = model[1].weight.detach()[labels].reshape(6, 3, 5, 4) / torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(got, weights.abs().amax(1))  # of a linear model the noise changes nothing
    assert not images.requires_grad


def test_saliency_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)).train()
    model[1].eval()
    images, labels = torch.rand(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    with torch.no_grad():
        got = saliency(model, images, labels, (0.5,), (0.25,))
    assert got.shape == (5, 6, 6)
    assert bool((got >= 0).all())
    assert got.max() > 0
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_saliency_finds_the_pixels_that_a_class_depends_on():
    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, :, :2, :2].square().sum((1, 2, 3)), x.sum((1, 2, 3)) * 0], 1)

    got = saliency(Corner(), torch.rand(3, 3, 6, 6), torch.zeros(3, dtype=torch.int64), (0.5,) * 3, (0.5,) * 3)
    assert got[:, :2, :2].min() > 0
    assert got[:, 2:].max() == 0
