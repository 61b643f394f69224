"""The ways to choose directions: their results, ranks below and above the weights', rounds, the class-wise form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import ulfast
from ulfast import InputError, ops
from ulfast.attacks import Context, Plan, get_attack
from ulfast.data.loaders.memory import MemoryLoader
from ulfast.data.loaders.projected import ProjectedLoader, write_projected
from ulfast.data.tensors import as_tensor
from ulfast.parameters import with_parameters
from ulfast.projection.other_fits import (
    FITS,
    covariances,
    fisher_ratios,
    fit_weights,
    lbfgs,
    leace,
    partial_rows,
    ridge,
)
from ulfast.training import Recipe


@pytest.fixture(scope="module")
def poisoned():
    rng = np.random.default_rng(0)
    images = rng.integers(60, 196, (600, 8, 8, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, 600)
    clean = ulfast.Dataset(images, labels, tuple("abcd"), "noise")
    return ulfast.poison(clean, "regions-16", eps=24 / 255)


def rows(dataset):
    return torch.from_numpy(dataset.images.reshape(len(dataset), -1)).double() / 255


def linear_accuracy(x, labels):
    """Held out; chance is a quarter."""
    half = len(x) // 2
    return LogisticRegression(max_iter=500).fit(x[:half], labels[:half]).score(x[half:], labels[half:])


@pytest.mark.parametrize("fit", ["sgd", *FITS])
def test_every_fit_finds_the_class_perturbations(poisoned, fit):
    basis = ulfast.fit_basis(poisoned) if fit == "sgd" else fit_weights(poisoned, fit)
    assert basis.rank == 3
    assert basis.orthogonality_error < 1e-6
    assert basis.metadata["train_accuracy"] > 0.98
    before, after = rows(poisoned), ops.project(rows(poisoned), basis.rows.double())
    assert linear_accuracy(before, poisoned.labels) > 0.98
    # The least-squares weights are the perturbations in the metric of the inverse covariance: removing them leaves most
    # of the perturbations in place.
    assert (linear_accuracy(after, poisoned.labels) < 0.6) == (fit != "ridge")


def test_leace_leaves_nothing_linear(poisoned):
    erasure, basis = leace(poisoned)
    assert basis.rank == 3
    x = rows(poisoned).float().view(600, 8, 8, 3).permute(0, 3, 1, 2)
    after = erasure(x).permute(0, 2, 3, 1).reshape(600, -1)
    onehot = torch.nn.functional.one_hot(as_tensor(poisoned.labels)).float()
    cross = (onehot - onehot.mean(0)).T @ (after - after.mean(0)) / 600
    assert cross.abs().max() < 1e-5  # the classes' means are equal
    torch.testing.assert_close(erasure(erasure(x)), erasure(x), atol=1e-5, rtol=0)
    assert linear_accuracy(after, poisoned.labels) < 0.4
    # Erasure in the data's own metric changes the images less than the orthogonal projection on the same directions.
    orthogonal = ops.project(rows(poisoned).float(), basis.rows)
    assert (after - rows(poisoned)).norm() < (orthogonal - rows(poisoned)).norm()


def test_moments_stream(poisoned, monkeypatch):
    from ulfast.projection import other_fits

    x, y = rows(poisoned), as_tensor(poisoned.labels)
    for size in (8 << 20, 2000):
        monkeypatch.setattr(other_fits, "CHUNK_BYTES", size)
        m = covariances(poisoned, second=True)
        torch.testing.assert_close(m.mean, x.mean(0))
        torch.testing.assert_close(m.covariance.double(), x.T.cov(correction=0), atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(m.means[2], x[y == 2].mean(0))


def test_ridge_and_lbfgs_minimise_their_losses(poisoned):
    x, y = rows(poisoned), as_tensor(poisoned.labels)
    centred = x - x.mean(0)
    onehot = torch.nn.functional.one_hot(y).double()
    penalty = 1e-3 * centred.square().mean(0).mean() * len(x)
    want = torch.linalg.solve(centred.T @ centred + penalty * torch.eye(192), centred.T @ (onehot - onehot.mean(0))).T
    torch.testing.assert_close(ridge(poisoned)[0].double(), want, atol=2e-3, rtol=1e-2)
    w = lbfgs(poisoned, iterations=200, decay=1e-2)[0].double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ w.T, y) + 0.5 * 1e-2 * w.square().sum()
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.norm() < 1e-3  # a minimum of the stated loss


def test_fewer_directions_are_the_leading_ones(poisoned):
    whole, two = ulfast.fit_basis(poisoned), ulfast.fit_basis(poisoned, rank=2)
    assert two.rank == 2
    torch.testing.assert_close((two.rows @ whole.rows[:2].T).abs(), torch.eye(2), atol=1e-5, rtol=0)
    assert fit_weights(poisoned, "ridge", rank=2).rank == 2
    with pytest.raises(InputError, match="gives 3 directions"):
        fit_weights(poisoned, "ridge", rank=5)


def test_more_directions_come_from_rounds(poisoned):
    seven = ulfast.fit_basis(poisoned, rank=7, steps=300)
    assert seven.rank == 7
    assert seven.metadata["rounds"] == 3
    assert seven.orthogonality_error < 1e-6
    first, second, third = seven.metadata["round_accuracy"]
    assert first > second > third
    # A round on projected weights is a fit to projected images: the same steps, up to rounding.
    one = ulfast.fit_basis(poisoned, rank=3, steps=300)
    torch.testing.assert_close(seven.rows[:3].T @ seven.rows[:3], one.rows.T @ one.rows, atol=1e-4, rtol=0)
    left = ops.project(rows(poisoned).float(), one.rows)
    weight = torch.zeros(4, 192)
    from ulfast.projection.fit import _batches

    for step, (index, _) in enumerate(_batches(600, 256, 300, 1, drop_last=True, device=weight.device)):
        rate = 0.1 * (1.0 if step < 150 else 0.1 if step < 225 else 0.01)
        ops.softmax_regression_step(left, as_tensor(poisoned.labels), weight, rate, index=index)
    found = ulfast.Basis.from_weights(weight, poisoned.image_shape, {}).rows
    torch.testing.assert_close(seven.rows[3:6].T @ seven.rows[3:6], found.T @ found, atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="between 1 and 192"):
        ulfast.fit_basis(poisoned, rank=193)


@pytest.mark.parametrize("threads", [1, 2])
def test_rounding_is_not_a_direction(threads):
    """From a zero start the class weights sum to zero up to rounding, whose sum over a thousand steps looks like the
    mean image: counted as a tenth direction it cost a network on clean images 40 points.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        basis = ulfast.fit_basis(ulfast.load_dataset("sample"))
    finally:
        torch.set_num_threads(before)
    assert basis.rank == 9
    assert basis.weights.sum(0).norm() < 1e-5 * basis.weights.norm()


def plan_of(dataset, name, **parameters):
    _, (step,) = get_attack(name)
    plan = Plan(dataset, dataset, Recipe("test", 1, 32, "adamw", 3e-3, 0.0, "one-cycle", None))
    with_parameters(step, name, parameters).apply(plan, Context(0, torch.device("cpu")))
    return plan


def test_the_classwise_form_takes_each_image_s_own_vector(tmp_path, poisoned):
    plan = plan_of(poisoned, "orthogonal-classwise")
    assert plan.removal.rows.shape == (4, 1, 192)
    w = plan.basis.weights / plan.basis.weights.norm(dim=1, keepdim=True)
    loader = MemoryLoader(poisoned, 100, basis=plan.removal.rows, mean=(0, 0, 0), std=(1, 1, 1), shuffle=True)
    for x, y in loader:
        flat = x.permute(0, 2, 3, 1).reshape(len(x), -1)
        products = flat @ w.T
        assert products[torch.arange(len(y)), y].abs().max() < 1e-4
        assert products.abs().mean() > 0.01
    # The new mark left by the label: only the product with the image's own class is zero.
    assert (products.abs().argmin(1) == y).float().mean() > 0.9
    write_projected(tmp_path / "p", poisoned, plan.removal)
    stored = next(iter(ProjectedLoader(tmp_path / "p", poisoned, 100, mean=(0, 0, 0), std=(1, 1, 1))))[0]
    direct = next(iter(MemoryLoader(poisoned, 100, basis=plan.removal.rows, mean=(0, 0, 0), std=(1, 1, 1))))[0]
    torch.testing.assert_close(stored, direct, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("orthogonal", {"fit": "leace"}),
        ("orthogonal", {"fit": "ridge", "rank": 2}),
        ("orthogonal", {"rank": 5, "fit_steps": 100}),
        ("orthogonal-classwise", {}),
    ],
)
def test_they_train(tmp_path, poisoned, method, options):
    for materialize in (False, True):
        result = ulfast.attack(
            poisoned,
            test=poisoned,
            method=method,
            model="resnet18-4",
            epochs=1,
            out=tmp_path / str(materialize),
            materialize=materialize,
            **options,
        )
        assert np.isfinite(result.history[0]["train_loss"])


def test_refusals(poisoned):
    for options in ({"rank": 3}, {"project_test": True}, {"partial": True}):
        with pytest.raises(InputError, match="leace takes no"):
            plan_of(poisoned, "orthogonal", fit="leace", **options)
    with pytest.raises(InputError, match="must be one of sgd"):
        plan_of(poisoned, "orthogonal", fit="magic")
    with pytest.raises(InputError, match="choose one"):
        get_attack("orthogonal+orthogonal-classwise")
    big = ulfast.Dataset(np.zeros((4, 80, 80, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    with pytest.raises(InputError, match="too large for this fit"):
        ridge(big)
    with pytest.raises(InputError, match="class 2 has no image"):
        covariances(ulfast.Dataset(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, ("a", "b", "c")), second=False)


def test_fisher_ratios_are_those_of_each_direction(poisoned):
    """Rotated within the span: uncorrelated within a class; variances between and within as in NumPy."""
    basis = ulfast.fit_basis(poisoned)
    turned, ratios = fisher_ratios(basis, poisoned)
    torch.testing.assert_close(turned @ turned.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.T @ turned, basis.rows.T @ basis.rows, atol=1e-5, rtol=0)
    answers = (rows(poisoned) @ turned.double().T).numpy()
    means = np.stack([answers[poisoned.labels == c].mean(0) for c in range(4)])
    apart = answers - means[poisoned.labels]
    within = apart.T @ apart / len(apart)
    np.testing.assert_allclose(within - np.diag(np.diag(within)), 0, atol=1e-6)
    assert (np.diff(np.diag(within)) >= 0).all()
    np.testing.assert_allclose(ratios, means.var(0) / np.diag(within), rtol=1e-3)


def test_partial_removes_what_the_classes_differ_by_and_leaves_the_rest(poisoned):
    """The pattern is removed; brightness, in which images vary most, stays up to the square of its ratio."""
    brighter = np.random.default_rng(1).integers(-50, 51, (600, 1, 1, 1))
    images = (poisoned.images.astype(int) + brighter).clip(0, 255).astype(np.uint8)
    data = ulfast.Dataset(images, poisoned.labels, poisoned.classes)
    pattern, uniform = ulfast.fit_basis(poisoned).rows, torch.full((1, 192), 192**-0.5)
    pattern = torch.linalg.qr((pattern - pattern @ uniform.T @ uniform).T)[0].T
    both = ulfast.Basis(torch.cat([pattern, uniform]), (8, 8, 3))
    turned, ratios = fisher_ratios(both, data)
    assert (ratios[:3] > 1).all()
    assert ratios[3] < 0.1
    assert turned[3] @ uniform[0] > 0.99 or turned[3] @ uniform[0] < -0.99
    left = ops.project(turned, partial_rows(both, data))
    torch.testing.assert_close(left, turned * (1 - ratios.clamp(0, 1) ** 2)[:, None], atol=1e-5, rtol=0)


def test_partial_of_nothing_and_of_classes_without_images(poisoned):
    none = ulfast.Basis(torch.empty(0, 192), (8, 8, 3))
    assert partial_rows(none, poisoned).shape == (0, 192)
    basis = ulfast.fit_basis(poisoned)
    more = ulfast.Dataset(poisoned.images, poisoned.labels, tuple("abcdefg"))
    torch.testing.assert_close(fisher_ratios(basis, more)[1], fisher_ratios(basis, poisoned)[1])


def test_the_attack_removes_directions_in_part(poisoned):
    plan = plan_of(poisoned, "orthogonal", partial=True)
    torch.testing.assert_close(plan.removal.rows, partial_rows(plan.basis, poisoned))
    assert plan.basis.orthogonality_error < 1e-6  # what is saved is the whole basis
