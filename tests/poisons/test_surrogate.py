"""The poisons that train: budgets, losses, seeds, resumption, on data so small that a network takes a second."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.cli.main import group
from ulfast.data import DatasetWriter, load_dataset
from ulfast.poisons import POISONS, Workplace, em, get_poison, poison, rem, surrogate as engine
from ulfast.poisons.rem import Moved
from ulfast.poisons.store import PerturbationStore
from ulfast.poisons.surrogate import Images, Surrogate, descend, new_surrogate, searching, shuffled

CNN = {"surrogate": "cnn"}
# Every method as small as it goes; 60 images of 12 px.
SMALL = {
    "em": {**CNN, "lr": 0.01, "rounds": 3, "steps": 3, "train_steps": 3, "batch_size": 25, "stop": 0.0},
    "em-classwise": {**CNN, "lr": 0.01, "rounds": 4, "train_steps": 3, "batch_size": 6, "stop": 0.0},
    "tap": {**CNN, "epochs": 2, "steps": 8, "restarts": 2, "batch_size": 25},
    "tap-untargeted": {**CNN, "epochs": 2, "steps": 8, "batch_size": 25},
    "rem": {**CNN, "lr": 0.01, "iterations": 3, "steps": 2, "steps_a": 2, "samples": 2, "batch_size": 25},
    "hypo": {**CNN, "epochs": 2, "steps": 8, "batch_size": 25},
    "sep": {**CNN, "epochs": 3, "checkpoints": 2, "steps": 6, "batch_size": 25},
    "pil": {"epochs": 5, "batch_size": 25},
}
TRAINED = [name for name in SMALL if name != "pil"]


@pytest.fixture(scope="module")
def made(make_dataset):
    """`made(method, seed)`: 60 images poisoned as small as it goes, for the same method and seed once."""
    return functools.cache(lambda method, seed=0: poison(make_dataset(60), method, seed=seed, **SMALL[method]))


def test_all_of_them_are_here():
    assert {name for name, plain in POISONS.items() if plain.trains} == set(TRAINED)
    for name in TRAINED:
        assert POISONS[name].parameters()["surrogate"] == "resnet18"
        assert POISONS[name].eps == pytest.approx(8 / 255)
    assert get_poison("error_minimizing")[0] == "em"


@pytest.mark.parametrize("method", SMALL)
def test_same_seed_same_bytes_within_the_budget(make_dataset, made, method):
    clean, first = make_dataset(60), made(method, 1)
    assert first.checksum() == poison(clean, method, seed=1, **SMALL[method]).checksum()
    assert first.checksum() != made(method).checksum()
    moved = np.abs(first.images.astype(int) - clean.images)
    assert 0 < moved.max() <= 8
    assert first.manifest["making"]
    # A bound between two levels rounds down: 4.6 of them are 4, also with steps that would go beyond.
    tight = poison(clean, method, seed=1, **SMALL[method], eps=4.6 / 255, alpha=3 / 255)
    assert np.abs(tight.images.astype(int) - clean.images).max() == 4


@pytest.mark.parametrize("method", ["em", "em-classwise"])
def test_every_round_of_min_min_goes_down(made, method):
    rounds = made(method).manifest["making"]["rounds"]
    assert len(rounds) == SMALL[method]["rounds"]
    assert all(row["loss_after"] < row["loss_before"] for row in rounds)
    assert rounds[-1]["loss_after"] < rounds[0]["loss_before"]


@pytest.mark.parametrize("method", ["tap", "tap-untargeted", "hypo", "sep", "rem"])
def test_the_search_moves_its_loss(made, method):
    making = made(method).manifest["making"]
    if method == "tap-untargeted":
        assert making["loss_after"] > making["loss_before"]
    else:
        assert making["loss_after"] < making["loss_before"]
    if method == "rem":
        assert all(after < before for before, after in making["recent"])


def test_min_min_ends_when_nothing_is_wrong(make_dataset):
    options = SMALL["em"] | {"rounds": 30, "stop": 0.5, "train_steps": 10}
    rounds = poison(make_dataset(60), "em", **options).manifest["making"]["rounds"]
    assert len(rounds) < 30
    assert rounds[-1]["error"] < 0.5
    assert all(row["error"] >= 0.5 for row in rounds[:-1])


def test_class_wise_is_one_perturbation_a_class(make_dataset):
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
            poison(clean, method, seed=1, folder=tmp_path / "work", **SMALL[method])
    assert len(list((tmp_path / "work").glob("delta-*.npy"))) == 1
    with pytest.raises(InputError, match="another"):
        poison(clean, method, seed=1, folder=tmp_path / "work", resume=True, **SMALL[method] | {"eps": 4 / 255})
    got = poison(clean, method, seed=1, folder=tmp_path / "work", resume=True, **SMALL[method])
    assert got.checksum() == want.checksum()
    assert got.manifest == want.manifest


def test_a_damaged_state_is_said(make_dataset, tmp_path):
    clean = make_dataset(60)
    poison(clean, "hypo", folder=tmp_path, **SMALL["hypo"])
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match="damaged: start anew"):
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


def test_rem_starts_at_random_and_anew(make_dataset, monkeypatch):
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


def test_batches_walk_through_all_images():
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


def test_a_diverging_surrogate_is_said(make_dataset):
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
    words = ["poison", "--method", method, "--data", str(tmp_path / "clean"), "--out", str(tmp_path / "out"), "--json"]
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
    assert "say --resume to continue it" in str(run().exception)
    assert run("--resume").exit_code == 0
    assert not (tmp_path / "out.work").exists()
    assert load_dataset(tmp_path / "out").manifest["making"]["loss_after"] > 0
    wrong = CliRunner().invoke(group, ["poison", "-m", "lsp", "--data", "sample", "--dry-run", "--work", "x"])
    assert "belongs to methods that train a network" in str(wrong.exception)


@pytest.mark.parametrize("method", ["em", "em-classwise", "rem", "hypo", "sep"])
def test_the_manifest_says_the_step_that_was_taken(make_dataset, method):
    assert get_poison(method)[1].resolved(make_dataset(12, 8))["alpha"] == pytest.approx(
        8 / 255 / (5 if method == "rem" else 10)
    )
