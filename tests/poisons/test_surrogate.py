"""The poisons that train: budgets, losses, seeds, resumption, on data so small that a network takes a second."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ulfast
from ulfast import InputError, ops
from ulfast.cli.main import group
from ulfast.data import DatasetWriter, load_dataset
from ulfast.poisons import POISONS, Workplace, em, get_poison, pil, poison, rem, surrogate as engine, tap
from ulfast.poisons.rem import Moved
from ulfast.poisons.store import PerturbationStore
from ulfast.poisons.surrogate import Images, Surrogate, descend, new_surrogate, searching, shuffled

CNN = {"surrogate": "cnn"}
REM = {**CNN, "lr": 0.01, "iterations": 3, "steps": 2, "steps_a": 2, "samples": 2, "batch_size": 25}
# Every method and preset as small as it goes; 60 images of 12 px.
SMALL = {
    "em": {**CNN, "lr": 0.01, "rounds": 3, "steps": 3, "train_steps": 3, "batch_size": 25, "stop": 0.0},
    "em-classwise": {**CNN, "lr": 0.01, "rounds": 4, "train_steps": 3, "batch_size": 6, "stop": 0.0},
    "em fu": {**CNN, "preset": "fu", "lr": 0.01, "rounds": 3, "steps": 2, "batch_size": 25},
    "aue": {**CNN, "lr": 0.01, "rounds": 3, "steps": 3, "train_steps": 3, "batch_size": 25},
    "aue classwise": {**CNN, "wise": "class", "lr": 0.01, "rounds": 4, "train_steps": 3, "batch_size": 6},
    "tap": {"preset": "quick", **CNN, "epochs": 2, "steps": 8, "restarts": 2, "batch_size": 25},
    "tap published": {"preset": "published", **CNN, "epochs": 2, "steps": 20, "restarts": 2, "batch_size": 25},
    "tap-untargeted": {"preset": "quick", **CNN, "epochs": 2, "steps": 8, "batch_size": 25},
    "aap": {**CNN, "epochs": 2, "lr": 0.01, "steps": 20, "batch_size": 25},
    "adaptive": {**CNN, "epochs": 2, "steps": 8, "batch_size": 25},
    "rem": REM,
    "sem": REM,
    "rem stored": {**REM, "start": "stored"},
    "hypo": {**CNN, "epochs": 2, "steps": 8, "batch_size": 25},
    "sep": {**CNN, "epochs": 3, "checkpoints": 2, "steps": 6, "batch_size": 25},
    "dune": {
        **CNN,
        "epochs": 3,
        "checkpoints": 2,
        "steps": 6,
        "batch_size": 25,
        "offset": 2,
        "spread": 0.0,
        "flights": 1,
    },
    "ntga": {"block_size": 10},
    "ntga cnn": {"surrogate": "cnn", "block_size": 10},
    "pil": {"epochs": 5, "batch_size": 25},
    "pil published": {"preset": "published", "epochs": 5, "batch_size": 25},
}
TRAINED = [name for name in SMALL if not name.startswith("pil")]


@pytest.fixture(scope="module")
def made(make_dataset):
    """`made(method, seed)`: 60 images poisoned as small as it goes, for the same method and seed once."""
    return functools.cache(lambda method, seed=0: small(make_dataset(60), method, seed=seed))


def small(clean, method, **more):
    return poison(clean, method.split()[0], **{**SMALL[method], **more})


def test_all_of_them_are_here():
    names = {name.split()[0] for name in TRAINED}
    assert {name for name, plain in POISONS.items() if plain.trains} == names | {
        "gue",
        "dc",
    }  # which have files of their own
    for name in names:
        assert POISONS[name].parameters()["surrogate"] == ("fnn" if name == "ntga" else "resnet18")
        assert POISONS[name].eps == pytest.approx(8 / 255)
    assert get_poison("error_minimizing")[0] == "em"


@pytest.mark.parametrize("method", SMALL)
def test_same_seed_same_bytes_within_the_budget(make_dataset, made, method):
    clean, first = make_dataset(60), made(method, 1)
    assert first.checksum() == small(clean, method, seed=1).checksum()
    assert first.checksum() != made(method).checksum()
    moved = np.abs(first.images.astype(int) - clean.images)
    assert 0 < moved.max() <= 8
    assert first.manifest["making"]
    # A bound between two levels rounds down: 4.6 of them are 4, also with steps that would go beyond.
    step = {"alpha": 3 / 255} if "alpha" in get_poison(method.split()[0])[1].parameters() else {}
    tight = small(clean, method, seed=1, eps=4.6 / 255, **step)
    assert np.abs(tight.images.astype(int) - clean.images).max() == 4


@pytest.mark.parametrize("method", ["em", "em-classwise"])
def test_every_round_of_min_min_goes_down(made, method):
    rounds = made(method).manifest["making"]["rounds"]
    assert len(rounds) == SMALL[method]["rounds"]
    assert all(row["loss_after"] < row["loss_before"] for row in rounds)
    assert rounds[-1]["loss_after"] < rounds[0]["loss_before"]


@pytest.mark.parametrize(
    "method",
    ["tap", "tap published", "tap-untargeted", "aap", "adaptive", "hypo", "sep", "dune", "rem", "sem", "em fu"],
)
def test_the_search_moves_its_loss(made, method):
    making = made(method).manifest["making"]
    if method == "tap-untargeted":
        assert making["loss_after"] > making["loss_before"]
    else:
        assert making["loss_after"] < making["loss_before"]
    if method in ("rem", "sem"):
        assert all(after < before for before, after in making["recent"])


def test_wandering_is_a_shift_between_pixels_and_its_inverse():
    x = torch.rand(200, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    mean = torch.tensor([0.2, 0.5, 0.7])[:, None, None]
    moved, back = tap.wander(x, mean, 3, 9, 40)
    # The transpose of its linear part, image by image.
    y = torch.rand(200, 3, 16, 16)
    torch.testing.assert_close(
        ((moved - tap.wander(torch.zeros_like(x), mean, 3, 9, 40)[0]) * y).sum((1, 2, 3)), (x * back(y)).sum((1, 2, 3))
    )
    # Of ramps it shows the shift: at most an eighth of the size, each way, mirrored or not.
    across = torch.arange(16.0).expand(200, 3, 16, 16)
    for ramp, turned in ((across, True), (across.transpose(2, 3), False)):
        middle = tap.wander(ramp, mean, 3, 9, 40)[0][:, 0, 6:10, 6:10]
        slope = (middle[:, :, 1:] - middle[:, :, :-1] if turned else middle[:, 1:] - middle[:, :-1]).mean((1, 2))
        assert 60 < int((slope < 0).sum()) < 140 if turned else bool((slope > 0).all())
        torch.testing.assert_close(slope.abs(), torch.ones(200), atol=1e-4, rtol=0)
        shift = middle.mean((1, 2)) - 7.5
        assert 1.8 < float(shift.abs().max()) <= 2.001
        assert float(shift.std()) == pytest.approx(4 / 12**0.5, rel=0.15)
    # What lies beyond the border is the mean, so that a flat image of it stays.
    flat = mean.expand(200, 3, 16, 16)
    torch.testing.assert_close(tap.wander(flat, mean, 3, 9, 40)[0], flat)
    assert torch.equal(tap.wander(x[5:], mean, 3, 9, 45)[0], moved[5:])
    assert not torch.equal(tap.wander(x, mean, 3, 10, 40)[0], moved)


def test_published_tap_takes_its_authors_steps(make_dataset, monkeypatch):
    """Constant steps of 0.05 eps from 8 clamped normal starts, on images that move."""
    clean, seen, sweep = make_dataset(60), {}, tap.sweep
    monkeypatch.setattr(tap, "sweep", lambda *a, **options: (seen.update(options), sweep(*a, **options)))
    options = {**CNN, "epochs": 1, "steps": 3}
    made = poison(clean, "tap", **options)
    assert seen["alphas"] == pytest.approx([-0.4 / 255] * 3)
    assert (seen["restarts"], seen["normal"]) == (8, True)
    assert made.manifest["parameters"]["alpha"] == pytest.approx(0.4 / 255)
    assert made.manifest["parameters"]["restarts"] == 8
    x = torch.rand(4, 3, 12, 12)
    moved, _ = seen["augment"](torch.arange(4), 2)(x, 1)
    assert not torch.equal(moved, x)
    again, _ = seen["augment"](torch.arange(4), 1)(x, 1)  # each step of each start is another draw
    assert not torch.equal(moved, again)
    start = engine.random_start(0, 0, torch.zeros(20, 3, 12, 12), 8 / 255, normal=True)
    assert start.abs().max() == pytest.approx(8 / 255)
    assert float((start.abs() > 7.99 / 255).float().mean()) == pytest.approx(0.317, abs=0.02)  # beyond one sigma
    poison(clean, "tap", preset="quick", **options)
    assert seen["alphas"] == pytest.approx([-2 / 255, -4 / 3 / 255, -2 / 3 / 255])
    assert (seen["restarts"], seen["normal"], seen["augment"]) == (1, False, None)
    own = poison(clean, "tap", alpha=1 / 255, restarts=2, **options)
    assert seen["alphas"] == pytest.approx([-1 / 255] * 3)
    assert own.manifest["parameters"]["restarts"] == 2


def test_min_min_ends_when_nothing_is_wrong(make_dataset):
    options = SMALL["em"] | {"rounds": 30, "stop": 0.5, "train_steps": 10}
    rounds = poison(make_dataset(60), "em", **options).manifest["making"]["rounds"]
    assert len(rounds) < 30
    assert rounds[-1]["error"] < 0.5
    assert all(row["error"] >= 0.5 for row in rounds[:-1])


def test_class_wise_is_one_perturbation_per_class(make_dataset):
    clean = make_dataset(60)
    gray = ulfast.Dataset(clean.images // 2 + 60, clean.labels, clean.classes)
    by_class = poison(gray, "em-classwise", **SMALL["em-classwise"]).images.astype(int) - gray.images
    by_image = poison(gray, "em", **SMALL["em"]).images.astype(int) - gray.images
    for label in range(3):
        rows = np.flatnonzero(gray.labels == label)
        assert (by_class[rows] == by_class[rows[0]]).all()
        assert (by_image[rows] != by_image[rows[0]]).any()
    assert (by_class[0] != by_class[1]).any()


def test_class_wise_noise_steps_for_every_batch_of_the_subset(make_dataset, monkeypatch):
    """Each image's noise takes a step from its class's, and the class's is the mean over the batch's images of it."""
    clean = make_dataset(60)
    subset = em.share_of_classes(torch.from_numpy(clean.labels), 0.5, 3)
    assert np.bincount(clean.labels[subset]).tolist() == [10, 10, 10]
    assert torch.equal(subset, em.share_of_classes(torch.from_numpy(clean.labels), 0.5, 3))
    assert not torch.equal(subset, em.share_of_classes(torch.from_numpy(clean.labels), 0.5, 4))
    assert len(em.share_of_classes(torch.from_numpy(clean.labels), 1e-6, 3)) == 3
    steps, gradient = [], Surrogate.gradient

    def watched(self, x, y):
        found = gradient(self, x, y)
        steps.append((x.clone(), y, found[0]))
        return found

    written, write = [], PerturbationStore.write
    monkeypatch.setattr(Surrogate, "gradient", watched)
    monkeypatch.setattr(PerturbationStore, "write", lambda *a: (written.append(a[2].clone()), write(*a)))
    eps, alpha = 8 / 255, 0.8 / 255
    options = SMALL["em-classwise"] | {"rounds": 1, "subset": 0.5, "batch_size": 7}
    made = poison(clean, "em-classwise", seed=3, **options)
    assert [len(y) for _, y, _ in steps] == [7] * 4  # of 30 images; the two left are none
    assert made.manifest["parameters"]["subset"] == 0.5
    noise, pixels = torch.zeros(3, 3, 12, 12), torch.from_numpy(clean.images).permute(0, 3, 1, 2) / 255
    for x, y, found in steps:
        # Which images they were: those with the nearest pixels.
        flat = (x - noise[y]).flatten(1)
        start = pixels[torch.cdist(flat, pixels.flatten(1)).argmin(1)]
        torch.testing.assert_close(x, (start + noise[y]).clamp(0, 1))
        each = (x - alpha * found.sign() - start).clamp(-eps, eps)
        for label in y.unique():
            noise[label] = each[y == label].mean(0).clamp(-eps, eps)
    torch.testing.assert_close(written[0], noise, atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="subset must be above 0"):
        poison(clean, "em-classwise", **SMALL["em-classwise"] | {"subset": 0})


def test_untargeted_and_targeted_differ_and_rate_counts(make_dataset, made):
    clean, whole = make_dataset(60), made("tap")
    assert whole.checksum() != poison(clean, "tap", **SMALL["tap"], targeted=False).checksum()
    half = poison(clean, "tap", rate=0.5, **SMALL["tap"])
    touched = (half.images != clean.images).any(axis=(1, 2, 3))
    assert np.bincount(clean.labels[touched], minlength=3).tolist() == [10, 10, 10]
    assert np.array_equal(half.images[touched], whole.images[touched])


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", TRAINED)
def test_a_killed_run_resumes_to_the_same_bytes(make_dataset, made, tmp_path, monkeypatch, method):
    monkeypatch.setattr(engine, "COMMIT_SECONDS", 0.0)
    clean, want = make_dataset(60), made(method, 1)
    commit, counted = engine.Search.commit, []

    def kill(self, state, *, last=False):
        # After the second commit the store is spoilt, as by a search that was under way.
        if len(counted) == 2:
            self.store.write(torch.arange(self.store.rows), torch.full((self.store.rows, 3, 12, 12), 0.02))
            raise Killed
        counted.append(1)
        commit(self, state, last=last)

    with monkeypatch.context() as patched:
        patched.setattr(engine.Search, "commit", kill)
        with pytest.raises(Killed):
            small(clean, method, seed=1, folder=tmp_path / "work")
    assert len(list((tmp_path / "work").glob("delta-*.npy"))) == 1
    with pytest.raises(InputError, match="another"):
        small(clean, method, seed=1, folder=tmp_path / "work", resume=True, eps=4 / 255)
    got = small(clean, method, seed=1, folder=tmp_path / "work", resume=True)
    assert got.checksum() == want.checksum()
    assert got.manifest == want.manifest


def test_a_damaged_state_is_reported(make_dataset, tmp_path):
    clean = make_dataset(60)
    poison(clean, "hypo", folder=tmp_path, **SMALL["hypo"])
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be read .* start anew with --overwrite"):
        poison(clean, "hypo", folder=tmp_path, resume=True, **SMALL["hypo"])


@pytest.mark.parametrize("kind", ["int8", "float16"])
def test_the_store_keeps_and_restores(tmp_path, kind):
    eps = 8 / 255
    store = PerturbationStore(tmp_path, 20, (4, 5, 3), eps, kind)
    assert (store.read(torch.arange(20)) == 0).all()
    delta = (torch.rand(3, 3, 4, 5) * 2 - 1) * eps * 1.1
    rows = torch.tensor([2, 19, 7])
    store.write(rows, delta)
    got = store.read(rows)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, delta.clamp(-eps, eps), atol=eps / 250, rtol=0)
    assert got.abs().max() <= eps * (1 + 1e-3)
    assert (tmp_path / "delta.npy").stat().st_size < 20 * 60 * (1 if kind == "int8" else 2) + 200
    store.commit(1)
    store.write(rows, torch.zeros(3, 3, 4, 5))
    store.restore(1)
    assert torch.equal(store.read(rows), got)
    gray = np.full((3, 4, 5, 3), 128, np.uint8)
    levels = store.apply(gray, rows).astype(int) - 128
    assert np.abs(levels - 255 * got.permute(0, 2, 3, 1).numpy()).max() <= 0.51
    with pytest.raises(InputError, match="missing or damaged"):
        store.restore(4)
    with pytest.raises(InputError, match="int8 or float16"):
        PerturbationStore(tmp_path, 2, (4, 5, 3), eps, "int4")


def test_gradients_are_autograd_s(make_dataset):
    clean = make_dataset(30)
    surrogate = new_surrogate("cnn", clean, 0, torch.device("cpu"))
    surrogate.half = None
    images = Images(clean, torch.device("cpu"))
    x, y = images.pixels(torch.arange(8)), images.labels[:8]
    torch.testing.assert_close(x.permute(0, 2, 3, 1), torch.from_numpy(clean.images[:8]).float() / 255)
    leaf = x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(surrogate.model((leaf - surrogate._mean) / surrogate._std), y)
    (want,) = torch.autograd.grad(loss, leaf)
    with searching(surrogate):
        got, losses, _ = surrogate.gradient(x, y)
        assert not any(p.requires_grad for p in surrogate.model.parameters())
    torch.testing.assert_close(got / 8 / surrogate._std, want, atol=1e-7, rtol=1e-4)
    assert float(losses.mean()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert surrogate.model.training
    assert all(p.requires_grad for p in surrogate.model.parameters())


def test_descent_on_several_networks_is_on_their_mean():
    """Two linear networks whose gradients oppose: the stronger decides."""

    def linear(slope):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2, bias=False))
        model[1].weight.data = slope * torch.tensor([[1.0, 1, 1], [-1, -1, -1]])
        return Surrogate(model, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))

    start = torch.full((1, 3, 1, 1), 0.5)
    x, weak, strong = start.clone(), linear(-0.1), linear(0.5)
    before = descend([weak, strong], x, start, torch.tensor([0]), alphas=[-0.01] * 3, eps=0.02)
    torch.testing.assert_close(x, start + 0.02)
    assert before.shape == (1,)
    descend([linear(-1.0), linear(0.1)], x, start, torch.tensor([0]), alphas=[-0.01] * 8, eps=0.02)
    torch.testing.assert_close(x, start - 0.02)


def test_there_and_back():
    """Every image has a crop and a mirroring of its own."""
    x, y = torch.rand(4, 3, 9, 11), torch.rand(4, 3, 9, 11)
    some = [(0, 0, False), (2, -3, False), (-4, 1, True), (0, 4, True)]
    dy, dx, flip = (torch.tensor(column) for column in zip(*some, strict=True))
    there = Moved(4, dy, dx, flip).there(x)
    assert there.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    for i, (down, right, mirrored) in enumerate(some):
        want = padded[i, :, 4 + down : 13 + down, 4 + right : 15 + right]
        assert torch.equal(there[i], want.flip(2) if mirrored else want)
    # The transpose: <there(x), y> = <x, back(y)>, image by image.
    back = Moved(4, dy, dx, flip).back(y)
    torch.testing.assert_close((there * y).sum((1, 2, 3)), (x * back).sum((1, 2, 3)))
    drawn = Moved.draw(4, 0, 5, 300, torch.device("cpu"))
    assert set(drawn.dy.tolist()) == set(drawn.dx.tolist()) == set(range(-4, 5))
    assert 100 < int(drawn.flip.sum()) < 200
    assert torch.equal(Moved.draw(4, 0, 5 + 7, 20, torch.device("cpu")).dx, drawn.dx[7:27])


def test_rem_starts_at_random_each_time(make_dataset, monkeypatch):
    """Both searches start uniformly in their balls, and no two of them alike; with start=stored neither does."""
    starts, seen = [], rem.random_start

    def watched(seed, row, like, eps, **options):
        starts.append((row, eps, seen(seed, row, like, eps, **options)))
        return starts[-1][2]

    monkeypatch.setattr(rem, "random_start", watched)
    options = SMALL["rem"] | {"iterations": 2}
    random = poison(make_dataset(60), "rem", **options)
    bounds = [eps for _, eps, _ in starts]
    # A search of each of two batches to train on and of three in the end; of the adversary: two samples at two steps
    # and after the last, and one of each batch to train on.
    assert sorted(set(bounds)) == pytest.approx([4 / 255, 8 / 255])
    assert bounds.count(max(bounds)) == 5
    assert len(bounds) == 5 * (1 + 2 * 3) + 2
    assert len({row for row, _, _ in starts}) == len({float(start.sum()) for _, _, start in starts}) == len(starts)
    for _, eps, start in starts:
        assert start.abs().max() <= eps
        assert float(start.std()) == pytest.approx(eps / 3**0.5, rel=0.05)
    starts.clear()
    stored = poison(make_dataset(60), "rem", **options, start="stored")
    assert not starts
    assert stored.checksum() != random.checksum()


def test_batches_cover_all_images():
    seen = torch.cat([shuffled(50, 10, 0, at) for at in range(5)])
    assert sorted(seen.tolist()) == list(range(50))
    assert not torch.equal(shuffled(50, 10, 0, 0), shuffled(50, 10, 0, 5))
    assert torch.equal(shuffled(50, 10, 3, 7), shuffled(50, 10, 3, 7))
    assert len(shuffled(5, 10, 0, 0)) == 5


def test_a_linear_model_reads_pil(make_dataset):
    """What pil adds is linearly separable, and the images keep their budget where bound and pixels meet."""
    clean = make_dataset(120)
    got = poison(clean, "pil", epochs=20, batch_size=16)
    delta = (got.images.astype(int) - clean.images).reshape(120, -1)
    centroids = np.stack([delta[:60][clean.labels[:60] == c].mean(0) for c in range(3)])
    guess = (delta[60:] @ centroids.T).argmax(1)
    assert (guess == clean.labels[60:]).mean() > 0.95
    with pytest.raises(InputError, match="share must be between"):
        poison(clean, "pil", share=1.2)


def test_published_pil_is_two_layers_and_a_random_start(make_dataset, monkeypatch):
    """Against a plain descent of the two terms by autograd, and no image knows its neighbours."""
    clean, found = make_dataset(40), {}
    plain, fit = get_poison("pil")[1], pil.PerturbationInducedLinearisation._fit_two

    def watched(*a):
        found["weight"], accuracy = fit(*a)
        found["size"] = a[-1]
        return found["weight"], accuracy

    monkeypatch.setattr(pil.PerturbationInducedLinearisation, "_fit_two", watched)
    made = poison(clean, "pil", preset="published", seed=2, steps=5)
    assert found["size"] == made.manifest["parameters"]["batch_size"] == 512
    assert plain.resolved(clean)["batch_size"] == 128
    weight, y = found["weight"].double(), torch.from_numpy(clean.labels)
    u = ops.philox_uniform(2, ops.philox.STREAM_SURROGATE, 0, 40, 432).double()
    noise, images = (u * 2 - 1) * 8 / 255, torch.from_numpy(clean.images).reshape(40, -1).double() / 255
    assert noise.abs().max() <= 8 / 255
    for _ in range(5):
        leaf = noise.clone().requires_grad_()
        rest = ((images - leaf) @ weight.T).log_softmax(1)
        own = torch.nn.functional.cross_entropy(leaf @ weight.T, y, reduction="sum")
        (0.9 * own - 0.1 * rest.mean(1).sum()).backward()
        noise = (noise - 0.8 / 255 * leaf.grad.sign()).clamp(-8 / 255, 8 / 255)
    want = (clean.images.reshape(40, -1) - (255 * noise).round().numpy()).clip(0, 255)
    assert np.array_equal(made.images.reshape(40, -1), want)
    monkeypatch.setattr(pil, "BLOCK", 7 * 432)
    monkeypatch.setattr("ulfast.poisons.run.CHUNK_BYTES", 11 * 432)
    assert poison(clean, "pil", preset="published", seed=2, steps=5).checksum() == made.checksum()
    with pytest.raises(InputError, match="diverged at lr 1e"):
        poison(clean, "pil", preset="published", lr=1e20)
    with pytest.raises(InputError, match="preset must be one of quick, published"):
        poison(clean, "pil", preset="fast")


def test_a_diverging_surrogate_is_reported(make_dataset):
    with pytest.raises(InputError, match="smaller learning rate"):
        poison(make_dataset(60), "em", **SMALL["em"] | {"lr": 1e25, "train_steps": 10})


def test_a_temporary_workplace_leaves_nothing():
    work = Workplace(device="cpu")
    folder = work.folder
    assert folder is not None
    assert folder.is_dir()
    del work
    assert not folder.exists()


@pytest.mark.parametrize("method", SMALL)
def test_from_the_command_line(make_dataset, made, tmp_path, method):
    with DatasetWriter(tmp_path / "clean") as writer:
        for split in ("train", "test"):
            part = make_dataset(60, split=split)
            writer.split(split, part.image_shape, part.classes, source="tiny").append_all(part)
    pairs = [word for key, value in SMALL[method].items() for word in ("--set", f"{key}={value}")]
    name = method.split()[0]
    words = ["poison", "--method", name, "--data", str(tmp_path / "clean"), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(group, [*words, *pairs], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["statistics"]["linf_max"] <= 8 / 255 + 1e-6
    assert not (tmp_path / "out.work").exists()
    got = load_dataset(tmp_path / "out")
    assert np.array_equal(load_dataset(tmp_path / "clean").images, make_dataset(60).images)
    assert got.checksum() == made(method).checksum()


def test_an_unfinished_run_on_the_command_line(make_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "COMMIT_SECONDS", 0.0)
    with DatasetWriter(tmp_path / "clean") as writer:
        part = make_dataset(60)
        writer.split("train", part.image_shape, part.classes, source="tiny").append_all(part)
    pairs = [word for key, value in SMALL["hypo"].items() for word in ("--set", f"{key}={value}")]
    words = ["poison", "-m", "hypo", "--data", str(tmp_path / "clean"), "--out", str(tmp_path / "out"), *pairs]

    def run(*more):
        return CliRunner().invoke(group, [*words, *more])

    assert "leave --resume out" in str(run("--resume").exception)
    with monkeypatch.context() as patched:
        patched.setattr(PerturbationStore, "apply", lambda *a: (_ for _ in ()).throw(Killed()))
        assert isinstance(run().exception, Killed)
    assert (tmp_path / "out.work" / "state.json").is_file()
    assert "give --resume to continue it" in str(run().exception)
    assert run("--resume").exit_code == 0
    assert not (tmp_path / "out.work").exists()
    assert load_dataset(tmp_path / "out").manifest["making"]["loss_after"] > 0
    wrong = CliRunner().invoke(group, ["poison", "-m", "lsp", "--data", "sample", "--dry-run", "--work", "x"])
    assert "belongs to methods that train a network" in str(wrong.exception)


@pytest.mark.parametrize("method", ["em", "em-classwise", "rem", "hypo", "sep"])
def test_the_manifest_records_the_step_taken(make_dataset, method):
    assert get_poison(method)[1].resolved(make_dataset(12, 8))["alpha"] == pytest.approx(
        8 / 255 / (5 if method == "rem" else 10)
    )
