"""The choice of images, labels and surrogate data for a poison; unseen images; plain arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import ulfast
from ulfast import InputError
from ulfast.analysis.describe import describe
from ulfast.analysis.distinct import distinct_perturbations
from ulfast.cli.main import group
from ulfast.data import Dataset, load_dataset, write_dataset
from ulfast.poisons import POISONS, Poisoning, poison
from ulfast.poisons.labels import clusters

TAP = {"preset": "quick", "surrogate": "cnn", "epochs": 1, "steps": 2}


def changed(clean: Dataset, made: Dataset) -> np.ndarray:
    return (clean.images != made.images).any(axis=(1, 2, 3))


@pytest.mark.parametrize("given", ["0,class2", [0, "class2"], [2, 0]])
def test_only_some_classes(make_dataset, given):
    clean = make_dataset(60)
    made, whole = poison(clean, "lsp", classes=given), poison(clean, "lsp")
    assert np.array_equal(changed(clean, made), clean.labels != 1)
    assert np.array_equal(made.images[clean.labels != 1], whole.images[clean.labels != 1])
    assert made.manifest["classes"] == ["class0", "class2"]
    assert made.manifest["statistics"]["images"] == 40
    assert "classes" not in whole.manifest
    half = poison(clean, "lsp", classes=given, rate=0.5)
    assert np.bincount(clean.labels[changed(clean, half)], minlength=3).tolist() == [10, 0, 10]
    for wrong in ("3", "horse", "", "0,"):
        with pytest.raises(InputError, match="there is no class"):
            poison(clean, "lsp", classes=wrong)


def test_clusters_drive_the_noise_and_the_labels_stay(make_dataset):
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 80)
    images = (rng.integers(0, 20, (80, 10, 10, 3)) + 60 * kind[:, None, None, None]).astype(np.uint8)
    clean = Dataset(images, rng.permutation(np.arange(80) % 3), ("a", "b", "c"))
    found = clusters(clean, 4, 0)
    pairs = {(int(a), int(b)) for a, b in zip(kind, found, strict=True)}
    assert len(pairs) == 4
    made = poison(clean, "cwrandom", labels="kmeans:4")
    assert np.array_equal(made.labels, clean.labels)
    assert made.classes == clean.classes
    assert made.manifest["labels"] == {"from": "kmeans:4", "classes": 4, "purity": pytest.approx(0.5, abs=0.2)}
    flat = Dataset(np.full_like(images, 128), clean.labels, clean.classes)
    noise = poison(flat, "cwrandom", labels=found).images.astype(int) - 128
    for cluster in range(4):
        rows = np.flatnonzero(found == cluster)
        assert (noise[rows] == noise[rows[0]]).all()
    assert len({row.tobytes() for row in noise}) == 4
    again = poison(clean, "cwrandom", labels="kmeans:4")
    assert again.checksum() == made.checksum()


def test_labels_from_a_file_may_count_otherwise(make_dataset, tmp_path):
    clean = make_dataset(60)
    guess = (np.arange(60) // 7) * 5
    np.save(tmp_path / "guess.npy", guess)
    np.savez(tmp_path / "guess.npz", labels=guess)
    (tmp_path / "guess.txt").write_text("\n".join(map(str, guess)))
    want = poison(clean, "lsp", labels=guess)
    assert want.manifest["labels"]["classes"] == 9
    for name in ("guess.npy", "guess.npz", "guess.txt"):
        assert poison(clean, "lsp", labels=str(tmp_path / name)).checksum() == want.checksum()
    # Methods that train take them too.
    assert poison(clean, "tap", labels=guess, **TAP).checksum() != poison(clean, "tap", **TAP).checksum()
    np.save(tmp_path / "few.npy", guess[:50])
    np.save(tmp_path / "half.npy", guess / 2)
    (tmp_path / "words.txt").write_text("dog cat")
    np.savez(tmp_path / "other.npz", scores=guess)
    for given, message in {
        str(tmp_path / "few.npy"): "60 images need as many labels",
        str(tmp_path / "half.npy"): "must be whole numbers",
        str(tmp_path / "words.txt"): "cannot be read as labels",
        str(tmp_path / "other.npz"): "has no labels, y or targets",
        str(tmp_path / "none.npy"): "there is no file",
        "kmeans": "say kmeans:K",
        "kmeans:1": "say kmeans:K",
        "kmeans:61": "say kmeans:K",
    }.items():
        with pytest.raises(InputError, match=message):
            poison(clean, "lsp", labels=given)
    with pytest.raises(InputError, match="all of these are the same"):
        poison(clean, "lsp", labels=np.zeros(60, np.int64))


def test_noise_that_is_assigned_at_random_is_tied_to_no_class(make_dataset):
    clean = make_dataset(300)
    gray = Dataset(np.full_like(clean.images, 128), clean.labels, clean.classes)
    by_class = poison(gray, "cwrandom").images
    random = poison(gray, "cwrandom", assign="random")
    assert {row.tobytes() for row in random.images} == {row.tobytes() for row in by_class}
    kinds = {row.tobytes(): i for i, row in enumerate(by_class[:3])}
    got = np.array([kinds[row.tobytes()] for row in random.images])
    assert np.bincount(got).tolist() == [100, 100, 100]
    assert 60 < (got == gray.labels).sum() < 140
    assert random.manifest["assign"] == "random"
    with pytest.raises(InputError, match="tap finds noise for single images, not for classes"):
        poison(gray, "tap", assign="random", **TAP)
    with pytest.raises(InputError, match="assign must be one of class, random"):
        poison(gray, "lsp", assign="sample")


def test_the_surrogate_may_be_trained_on_other_images(make_dataset, tmp_path):
    clean, other = make_dataset(60), make_dataset(90, seed=5)
    made = poison(clean, "tap", surrogate_data=other, **TAP)
    assert made.manifest["surrogate_data"] == {"name": "tiny", "sha256": other.checksum()}
    assert made.checksum() != poison(clean, "tap", **TAP).checksum()
    assert made.checksum() == poison(clean, "tap", surrogate_data=other, **TAP).checksum()
    # The saved network is not mistaken for one trained on other images.
    poison(clean, "tap", folder=tmp_path, **TAP)
    with pytest.raises(InputError, match="another data"):
        poison(clean, "tap", folder=tmp_path, resume=True, surrogate_data=other, **TAP)
    with pytest.raises(InputError, match="differ in their classes"):
        poison(clean, "tap", surrogate_data=make_dataset(60, classes=4), **TAP)
    for method in ("em", "lsp", "ntga"):
        with pytest.raises(InputError, match=f"{method} trains no network on clean images"):
            poison(clean, method, surrogate_data=other)
    takes = {name for name, one in POISONS.items() if one.clean_surrogate}
    assert takes == {"tap", "tap-untargeted", "aap", "adaptive", "hypo", "sep", "dune"}


@pytest.mark.parametrize("method", ["cwrandom", "ops", "ar", "pil", "em-classwise"])
def test_unseen_images_get_the_noise_of_their_class(make_dataset, method):
    clean, test = make_dataset(60), make_dataset(30, split="test", seed=9)
    more = {"surrogate": "cnn", "lr": 0.01, "rounds": 1, "train_steps": 1} if method == "em-classwise" else {}
    work = Poisoning(clean, method, classes=[0, 1], **more)
    made = work.unseen(test)
    assert np.array_equal(changed(test, made), test.labels != 2)
    assert made.split == "test"
    assert made.manifest["method"] == method
    if method == "cwrandom":
        gray = Dataset(np.full_like(clean.images, 128), clean.labels, clean.classes)
        noise = poison(gray, method).images.astype(int)[:2] - 128
        inside = (made.images > 0) & (made.images < 255) & (test.labels != 2)[:, None, None, None]
        moved = made.images.astype(int) - test.images
        assert (moved == noise[test.labels.clip(max=1)])[inside].all()


def test_noise_of_single_images_cannot_poison_others(make_dataset):
    clean = make_dataset(60)
    for method in ("tap", "tue", "em", "swrandom", "ntga", "dune"):
        with pytest.raises(InputError, match=f"{method} finds noise for single images, none for others"):
            Poisoning(clean, method).unseen(clean)
    with pytest.raises(InputError, match="none of the labels that drive"):
        Poisoning(clean, "lsp", labels="kmeans:3").unseen(clean)


@pytest.fixture
def folder(make_dataset, tmp_path):
    write_dataset(tmp_path / "clean", make_dataset(60), make_dataset(30, split="test", seed=9))
    return tmp_path


def run(*words: object) -> dict:
    done = CliRunner().invoke(group, [*map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_poisoned_test_images_are_made_and_measured(folder):
    out, unseen = folder / "out", folder / "unseen"
    words = ["poison", "-m", "cwrandom", "--eps", "64/255", "--data", folder / "clean", "--out", out]
    told = run(*words, "--poison-test", unseen)
    assert told["poison_test"] == str(unseen)
    made = load_dataset(unseen, split="test")
    clean = load_dataset(folder / "clean", split="test")
    assert changed(clean, made).all()
    assert load_dataset(out, split="test").checksum() == clean.checksum()
    again = CliRunner().invoke(group, [*map(str, words), "--overwrite", "--poison-test", str(unseen)])
    assert again.exit_code == 0
    attack = ["attack", "-m", "none", "--data", out, "--epochs", 40, "--out", folder / "run"]
    result = run(*attack, "--poison-test", unseen)
    # What was learned is the noise.
    assert result["notes"]["poisoned_test_accuracy"] > result["test_accuracy"] + 0.2
    words = ["poison", "-m", "tue", "--data", folder / "clean", "--out", folder / "x", "--poison-test", folder / "y"]
    shown = CliRunner().invoke(group, [str(word) for word in words])
    assert "finds noise for single images" in str(shown.exception)
    alone = CliRunner().invoke(group, ["attack", "--poison-test", str(unseen), "--out", str(folder / "other")])
    assert "--poison-test needs --data" in str(alone.exception)


def test_all_of_it_from_the_command_line(folder):
    words = ["poison", "--data", folder / "clean"]
    told = run(*words, "-m", "lsp", "--classes", "class1,2", "--out", folder / "some")
    assert told["classes"] == ["class1", "class2"]
    told = run(*words, "-m", "lsp", "--labels", "kmeans:4", "--assign", "random", "--out", folder / "clusters")
    assert told["labels"]["from"] == "kmeans:4"
    made = load_dataset(folder / "clusters")
    want = poison(load_dataset(folder / "clean"), "lsp", labels="kmeans:4", assign="random")
    assert made.checksum() == want.checksum()
    assert made.manifest == want.manifest
    pairs = [word for key, value in TAP.items() for word in ("--set", f"{key}={value}")]
    told = run(*words, "-m", "tap", *pairs, "--surrogate-data", folder / "clean", "--out", folder / "tap")
    assert told["surrogate_data"]["name"]
    # All of it counts where a finished run is resumed.
    again = CliRunner().invoke(group, [*map(str, words), "-m", "lsp", "--out", str(folder / "some"), "--resume"])
    assert isinstance(again.exception, InputError)


def test_class_wise_noise_is_told_from_sample_wise(make_dataset, folder):
    clean = make_dataset(60)
    assert distinct_perturbations(clean, poison(clean, "cwrandom")) == dict.fromkeys(clean.classes, 1)
    assert distinct_perturbations(clean, poison(clean, "swrandom")) == dict.fromkeys(clean.classes, 16)
    assert distinct_perturbations(clean, clean) == {}
    # Three perturbations a class, and images that are cut at both ends.
    rng = np.random.default_rng(1)
    rough = Dataset(rng.integers(0, 256, clean.images.shape).astype(np.uint8), clean.labels, clean.classes)
    noise = rng.integers(-90, 91, (9, 12, 12, 3))
    which = clean.labels + 3 * (np.arange(60) % 9 // 3)
    mixed = Dataset((rough.images + noise[which]).clip(0, 255).astype(np.uint8), clean.labels, clean.classes)
    assert distinct_perturbations(rough, mixed) == dict.fromkeys(clean.classes, 3)
    made = poison(clean, "cwrandom")
    claim = made.manifest | {"parameters": {"wise": "sample"}}
    write_dataset(folder / "made", Dataset(made.images, made.labels, made.classes, "m", "train", claim))
    found = describe(folder / "made", base=clean)
    assert found["distinct_perturbations"]["class0"] == 1
    assert any("class-wise: every image of a class has the same, though" in text for text in found["warnings"])
    assert "distinct_perturbations" not in describe(folder / "made", look_for_poison=False)
    words = ["data", "info", str(folder / "made"), "--base", str(folder / "clean")]
    done = CliRunner().invoke(group, words, catch_exceptions=False)
    assert "1 to 1 different ones in each class" in done.stdout


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_arrays_keep_their_shape_and_type(make_dataset, dtype, first):
    clean = make_dataset(60)
    x = clean.images if dtype == "uint8" else (clean.images / 255).astype(dtype)
    x = x.transpose(0, 3, 1, 2) if first else x
    y = np.eye(3)[clean.labels] if first else clean.labels
    for method in ("ops", "lsp"):
        before = x.copy()
        made = ulfast.poison_arrays(x, y, method, seed=2)
        assert np.array_equal(x, before)
        assert made.shape == x.shape
        assert made.dtype == x.dtype
        made = made.transpose(0, 2, 3, 1) if first else made
        want = poison(clean, method, seed=2).images
        assert np.array_equal(made if dtype == "uint8" else np.rint(255 * made.astype(float)), want)


def test_arrays_of_floats_keep_what_lies_between_levels():
    rng = np.random.default_rng(0)
    x = rng.random((30, 8, 8, 1))
    made = ulfast.poison_arrays(x, np.arange(30) % 3, "cwrandom", eps=8 / 255)
    inside = (x > 9 / 255) & (x < 246 / 255)
    levels = 255 * (made - x)[inside]
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-9)
    assert made.min() >= 0
    assert made.max() <= 1
    unchanged = ulfast.poison_arrays(x, np.arange(30) % 3, "cwrandom", classes=[0])
    assert np.array_equal(unchanged[1::3], x[1::3])


def test_arrays_that_are_no_images_are_one_line():
    y = np.arange(6) % 2
    for x, message in (
        (np.zeros((6, 8, 8)), r"x must be \(n, H, W, C\)"),
        (np.zeros((6, 3, 8, 3)), "both places could be 1 or 3 channels"),
        (np.zeros((6, 8, 8, 4)), "no axis is 1 or 3 channels"),
        (np.full((6, 8, 8, 3), 2.0), "must lie in"),
        (np.full((6, 8, 8, 3), np.nan), "must lie in"),
        (np.zeros((6, 8, 8, 3), np.int64), "x must be uint8, or floats"),
    ):
        with pytest.raises(InputError, match=message):
            ulfast.poison_arrays(x, y)
    assert ulfast.poison_arrays(np.zeros((6, 3, 8, 3)), y, layout="NCHW").shape == (6, 3, 8, 3)
    with pytest.raises(InputError, match="y must be"):
        ulfast.poison_arrays(np.zeros((6, 8, 8, 3)), y + 0.5)
    with pytest.raises(InputError, match="layout must be one of"):
        ulfast.poison_arrays(np.zeros((6, 8, 8, 3)), y, layout="CHW")
