"""Published files in and out: every layout makes a round trip, and what does not fit the base is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import ulfast
from ulfast import InputError
from ulfast.cli.main import group
from ulfast.data import load_dataset, write_dataset
from ulfast.data.export import EXPORTS, export_dataset
from ulfast.data.readers.published import LAYOUTS, detect_layout
from ulfast.poisons import perturbation
from ulfast.poisons.imported import import_published


@pytest.fixture(scope="module")
def base():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 9, 11, 3), dtype=np.uint8)
    return ulfast.Dataset(images, np.arange(60) % 4, ("a cat", "dog", "x/y", "é"), "base")


@pytest.fixture(scope="module")
def poisoned(base):
    return ulfast.poison(base, "cwrandom")


def float_perturbation(base, poisoned):
    return perturbation(base, poisoned).numpy()


def class_perturbation(base):
    rng = np.random.default_rng(1)
    return (rng.integers(-8, 9, (4, *base.image_shape)) / 255).astype(np.float32)


def write_layout(kind, folder, base, poisoned):
    """Writes a published file and returns (path, layout, poisoned images that it stands for)."""
    delta = float_perturbation(base, poisoned)
    nchw = delta.transpose(0, 3, 1, 2)
    classes = class_perturbation(base)
    by_class = np.rint((base.images + 255 * classes[base.labels]).clip(0, 255)).astype(np.uint8)
    want = poisoned.images
    if kind == "png-index":
        (folder / "data").mkdir()
        for i, image in enumerate(want):
            Image.fromarray(image).save(folder / "data" / f"{i}.png")
        return folder, kind, want
    if kind == "pt-sample":
        torch.save(torch.from_numpy(nchw.copy()), folder / "perturbation.pt")
        return folder / "perturbation.pt", "perturbation-pt", want
    if kind == "pt-class":
        torch.save({"perturbation": torch.from_numpy(classes.transpose(0, 3, 1, 2).copy())}, folder / "p.pth")
        return folder / "p.pth", "perturbation-pt", by_class
    if kind == "safetensors":
        save_file({"delta": torch.from_numpy(nchw.copy())}, folder / "p.safetensors")
        return folder / "p.safetensors", "perturbation-pt", want
    if kind == "int8-pickle":
        (folder / "rem.pkl").write_bytes(pickle.dumps(np.rint(nchw * 255).astype(np.int8)))
        return folder / "rem.pkl", kind, want
    if kind == "int8-class":
        (folder / "rem.pkl").write_bytes(pickle.dumps(np.rint(classes * 255).astype(np.int8).transpose(0, 3, 1, 2)))
        return folder / "rem.pkl", "int8-pickle", by_class
    if kind == "ntga":
        np.save(folder / "x_train_cifar10_ntga.npy", want.astype(np.float32) / 255)
        np.save(folder / "y_train_cifar10_ntga.npy", np.eye(4)[base.labels])
        return folder, "ntga-npy", want
    if kind == "npy-images":
        np.save(folder / "ops.npy", want.astype(np.float64))  # 0 to 255
        return folder / "ops.npy", "npy", want
    if kind == "npy-class":
        np.save(folder / "ops.npy", classes)
        shares = base.images / 255 + classes[base.labels]  # truncated, a level is lost where k / 255 is not exact
        return folder / "ops.npy", "npy", (shares.clip(0, 1) * 255).astype(np.uint8)
    if kind == "pil":
        images = torch.from_numpy(want.transpose(0, 3, 1, 2).copy()).float() / 255
        torch.save({"data": images, "labels": torch.from_numpy(base.labels)}, folder / "pil.pt")
        return folder / "pil.pt", "images-pt", want
    if kind == "pil-bytes":
        torch.save({"data": torch.from_numpy(want), "labels": base.labels.tolist()}, folder / "pil.pth")
        return folder / "pil.pth", "images-pt", want
    if kind == "lsp":
        labels, rows = np.random.default_rng(2).permutation(base.labels), np.empty(60, int)
        for c in range(4):
            rows[base.labels == c] = np.flatnonzero(labels == c)
        np.save(folder / "simple_data.npy", delta)
        np.save(folder / "simple_label.npy", labels)
        shares = base.images / 255 + delta[rows]
        return folder, "lsp-npy", (shares * 255).clip(0, 255).astype(np.uint8)
    np.savez(folder / "p.npz", np.rint(255 * delta).astype(np.int16))
    return folder / "p.npz", "npy", want


KINDS = (
    "png-index",
    "pt-sample",
    "pt-class",
    "safetensors",
    "int8-pickle",
    "int8-class",
    "ntga",
    "lsp",
    "pil",
    "pil-bytes",
    "npy-images",
    "npy-class",
    "npz-levels",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_is_detected_and_read(tmp_path, base, poisoned, kind):
    path, layout, want = write_layout(kind, tmp_path, base, poisoned)
    assert detect_layout(path) == layout
    got = import_published(path, base)
    assert np.array_equal(got.images, want)
    assert np.array_equal(got.labels, base.labels)
    assert got.manifest["parameters"]["layout"] == layout
    assert got.manifest["parameters"]["per"] == ("class" if "class" in kind else "image")
    assert got.manifest["source"]["sha256"] == base.checksum()
    assert 0.02 < got.manifest["statistics"]["linf_max"] < 0.04


@pytest.mark.parametrize("layout", list(EXPORTS))
def test_what_is_exported_reads_back(tmp_path, base, poisoned, layout):
    test = base.subset(np.arange(8))
    out = tmp_path / {"npz": "d.npz", "perturbation-pt": "d.pt", "beton": "d.beton"}.get(layout, "d")
    export_dataset(poisoned, out, layout, test=test, base=base)
    if layout in ("png-index", "perturbation-pt"):
        assert np.array_equal(import_published(out, base).images, poisoned.images)
    else:
        back = load_dataset(out)
        order = np.lexsort((np.arange(60), base.labels)) if layout == "imagefolder" else np.arange(60)
        assert np.array_equal(np.sort(np.bincount(back.labels)), np.sort(np.bincount(base.labels)))
        assert len(load_dataset(out, split="test")) == 8
        if layout == "npz":
            assert np.array_equal(back.images[order], poisoned.images)
        else:
            assert {im.tobytes() for im in back.images} == {im.tobytes() for im in poisoned.images}
    with pytest.raises(InputError, match="exists already"):
        export_dataset(poisoned, out, layout, test=test, base=base)
    export_dataset(poisoned, out, layout, test=test, base=base, overwrite=True)


def test_pickles_that_run_code_are_not_read(tmp_path, base):
    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path / 'ran'}",)

    (tmp_path / "rem.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({"p": Evil()}, tmp_path / "p.pt")
    for file in ("rem.pkl", "p.pt"):
        with pytest.raises(InputError, match="not read"):
            import_published(tmp_path / file, base)
    assert not (tmp_path / "ran").exists()


def test_what_does_not_fit_is_refused(tmp_path, base, poisoned):
    delta = torch.from_numpy(float_perturbation(base, poisoned).transpose(0, 3, 1, 2).copy())

    def refused(message, array, base=base, name="p.pt", **options):
        if name.endswith("pt"):
            torch.save(array, tmp_path / name)
        else:
            np.save(tmp_path / name, array)
        with pytest.raises(InputError, match=message):
            import_published(tmp_path / name, base, **options)

    refused("has 59 entries", delta[:59])
    refused("entries of shape", delta[:, :, :8])
    refused("four dimensions", torch.zeros(60))
    refused("NaN", torch.full_like(delta, float("nan")))
    refused("reaches 300", delta * 0 + 300.0)
    refused("not one array", {"a": delta, "b": delta})
    refused("does not follow the order", poisoned.images[::-1].copy(), name="p.npy")
    refused("unknown layout", delta, layout="zip")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "p.pt").read_bytes()[:200])
    for name in ("cut.pt", "missing.pt", "notes.txt"):
        if name == "notes.txt":
            (tmp_path / name).write_text("hello")
        with pytest.raises(InputError):
            import_published(tmp_path / name, base)


def test_ntga_in_an_order_of_its_own(tmp_path, base, poisoned):
    """Fewer images, shuffled, with their own labels: a set of its own, of which the base names the classes."""
    order = np.random.default_rng(3).permutation(60)[:48]
    images = tmp_path / "x_train_toy_ntga_best.npy"
    np.save(images, poisoned.images[order] / 255)
    with pytest.raises(InputError, match=r"no y_train_toy_ntga_best\.npy beside it"):
        import_published(tmp_path, base)
    np.save(tmp_path / "y_train_toy.npy", np.eye(4)[base.labels[order]])
    got = import_published(tmp_path, base)
    assert np.array_equal(got.images, poisoned.images[order])
    assert np.array_equal(got.labels, base.labels[order])
    assert got.classes == base.classes
    assert got.manifest["parameters"]["kind"] == "images in their own order"
    assert got.manifest["source"] == {"name": tmp_path.name, "images": 48}
    np.save(images, poisoned.images[order])
    assert np.array_equal(import_published(images, base).images, poisoned.images[order])

    np.save(images, poisoned.images[order] / 255 - 0.5)
    with pytest.raises(InputError, match="below 0"):
        import_published(tmp_path, base)
    for labels, message in (
        ((base.labels[order] + 1), "labels up to 4"),
        (base.labels[order][:-1], "47 labels for 48"),
    ):
        np.save(tmp_path / "y_train_toy.npy", labels)
        with pytest.raises(InputError, match=message):
            import_published(tmp_path, base)
    np.save(tmp_path / "y_train_other.npy", labels)
    with pytest.raises(InputError, match=r"2 files y_train\*\.npy"):
        import_published(tmp_path, base)


def test_perturbations_with_their_own_labels_must_suffice(tmp_path, base, poisoned):
    write_layout("lsp", tmp_path, base, poisoned)
    file = tmp_path / "simple_data.npy"
    assert detect_layout(file) == "lsp-npy"
    assert np.array_equal(import_published(file, base).images, import_published(tmp_path, base).images)
    labels = np.load(tmp_path / "simple_label.npy")
    np.save(tmp_path / "simple_label.npy", np.where(labels == 2, 1, labels))
    with pytest.raises(InputError, match=r"0 perturbations of class 2, base has 15 images of it \(x/y\)"):
        import_published(tmp_path, base)
    np.save(tmp_path / "simple_label.npy", labels[:-1])
    with pytest.raises(InputError, match="59 labels for 60 perturbations"):
        import_published(tmp_path, base)
    np.save(tmp_path / "simple_label.npy", labels.astype(str))
    with pytest.raises(InputError, match="not class numbers"):
        import_published(tmp_path, base)
    (tmp_path / "simple_label.npy").unlink()
    with pytest.raises(InputError, match="gives the class of each perturbation"):
        import_published(tmp_path, base)
    import_published(file, base, layout="npy")


def test_images_with_labels_must_fit_the_base(tmp_path, base, poisoned):
    path, _, _ = write_layout("pil", tmp_path, base, poisoned)
    content = torch.load(path)
    for change, message in (
        ({"labels": (content["labels"] + 1) % 4}, "labels of base in 60 places"),
        ({"labels": content["labels"][:-1]}, "59 labels, base 60"),
        ({"labels": ["cat"] * 60}, "not class numbers"),
        ({"labels": [[1, 2], [3]]}, "not class numbers"),
        ({"data": content["data"][:-1]}, "59 entries"),
        ({"data": content["data"].flip(0)}, "does not follow the order"),
        ({"data": content["data"] - 0.5}, "undo the normalisation"),
        ({"data": torch.from_numpy(float_perturbation(base, poisoned))}, "does not look like the images"),
    ):
        torch.save(content | change, path)
        with pytest.raises(InputError, match=message):
            import_published(path, base)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    assert np.array_equal(import_published(path, base).images, poisoned.images)
    with pytest.raises(InputError, match="ulfast data import"):
        ulfast.poison(base, "file", path=str(path))
    torch.save(content["data"], path)
    with pytest.raises(InputError, match="leave --layout out"):
        import_published(path, base, layout="images-pt")


def test_floats_are_rounded_as_requested(tmp_path, base):
    noise = np.random.default_rng(4).uniform(-8 / 255, 8 / 255, base.images.shape).astype(np.float32)
    np.save(tmp_path / "p.npy", noise)
    exact = base.images + 255 * noise.astype(np.float64)
    truncated, nearest = (import_published(tmp_path / "p.npy", base, rounding=r) for r in ("truncate", "nearest"))
    assert np.array_equal(nearest.images, np.rint(exact.clip(0, 255)))
    assert np.array_equal(truncated.images, np.trunc(exact.clip(0, 255)))
    assert truncated.manifest["parameters"]["rounding"] == "truncate"
    assert np.array_equal(ulfast.poison(base, "file", path=str(tmp_path / "p.npy")).images, nearest.images)
    cut = ulfast.poison(base, "file", path=str(tmp_path / "p.npy"), rounding="truncate")
    assert np.array_equal(cut.images, truncated.images)
    with pytest.raises(InputError, match="unknown rounding"):
        import_published(tmp_path / "p.npy", base, rounding="up")


def test_damaged_and_crafted_files_are_named(tmp_path, base, poisoned):
    delta = torch.from_numpy(float_perturbation(base, poisoned).transpose(0, 3, 1, 2).copy())

    def refused(message, name, content=None):
        if content is not None:
            torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=message) as caught:
            import_published(tmp_path / name, base)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty.pt").write_bytes(b"")
    refused(r"empty\.pt cannot be read", "empty.pt")
    refused("save the array alone, dense", "sparse.pt", delta.to_sparse())
    refused("fewer values than its shape", "wide.pt", torch.zeros(1).expand(10**6, 10**6))
    refused("fewer values than its shape", "half.pt", torch.zeros(1, dtype=torch.bfloat16).expand(10**6, 10**6))
    nested = delta
    for _ in range(100):
        nested = {"p": nested}
    refused("holds a dict", "nested.pt", nested)
    with zipfile.ZipFile(tmp_path / "half.pt") as given, zipfile.ZipFile(tmp_path / "itself.pt", "w") as out:
        for name in given.namelist():  # {"a": the dictionary itself}
            pickled = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
            out.writestr(name, pickled if name.endswith("data.pkl") else given.read(name))
    refused("holds a container that contains itself", "itself.pt")
    np.savez_compressed(tmp_path / "cut.npz", np.zeros((60, 9, 11, 3), np.uint8))
    whole = (tmp_path / "cut.npz").read_bytes()
    for at in (len(whole) // 2, 60, len(whole) - 30):
        broken = bytearray(whole)
        broken[at] ^= 255
        (tmp_path / "cut.npz").write_bytes(broken)
        refused("cannot be read", "cut.npz")


@pytest.mark.parametrize("scale", ["-1 to 1", "mean and standard deviation"])
def test_normalised_images_are_no_perturbation(tmp_path, scale):
    clean = load_dataset("sample", limit=100)
    images = ulfast.poison(clean, "lsp").images / 255
    images = 2 * images - 1 if scale == "-1 to 1" else (images - images.mean((0, 1, 2))) / images.std((0, 1, 2))
    np.save(tmp_path / "p.npy", images.astype(np.float32))
    with pytest.raises(InputError, match="undo the normalisation"):
        import_published(tmp_path / "p.npy", clean)


def test_a_folder_of_pngs_must_be_complete(tmp_path, base, poisoned):
    write_layout("png-index", tmp_path, base, poisoned)
    shutil.copy(tmp_path / "data" / "0.png", tmp_path / "data" / "60.png")
    with pytest.raises(InputError, match=r"has 60\.png"):
        import_published(tmp_path, base)
    (tmp_path / "data" / "60.png").unlink()
    (tmp_path / "data" / "7.png").unlink()
    with pytest.raises(InputError, match=r"lacks 7\.png"):
        import_published(tmp_path, base)
    Image.new("RGB", (3, 3)).save(tmp_path / "data" / "7.png")
    with pytest.raises(InputError, match=r"7\.png is 3 x 3"):
        import_published(tmp_path, base)
    (tmp_path / "data" / "7.png").unlink()
    os.mkfifo(tmp_path / "data" / "7.png")
    with pytest.raises(InputError, match=r"7\.png is not a file"):
        import_published(tmp_path, base)
    (tmp_path / "data" / "7.png").unlink()
    (tmp_path / "data" / "7.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"7\.png cannot be read"):
        import_published(tmp_path, base)
    assert set(LAYOUTS) >= {"png-index"}


def test_the_poison_file(tmp_path, base, poisoned):
    for kind in ("pt-sample", "pt-class", "int8-class"):
        folder = tmp_path / kind
        folder.mkdir()
        path, _, want = write_layout(kind, folder, base, poisoned)
        assert np.array_equal(ulfast.poison(base, "file", path=str(path)).images, want)
    twice = perturbation(base, ulfast.poison(base, "file", path=str(path), scale=2.0))
    assert twice.abs().max() > 1.5 * perturbation(base, ulfast.poison(base, "file", path=str(path))).abs().max()
    with pytest.raises(InputError, match="--set path=FILE"):
        ulfast.poison(base, "file")
    np.save(tmp_path / "images.npy", poisoned.images)
    with pytest.raises(InputError, match="ulfast data import"):
        ulfast.poison(base, "file", path=str(tmp_path / "images.npy"))


def test_the_verbs(tmp_path):
    def said(*words):
        return json.loads(CliRunner().invoke(group, [*map(str, words), "--json"], catch_exceptions=False).output)

    clean = load_dataset("sample", limit=300)
    write_dataset(tmp_path / "clean", clean, load_dataset("sample", split="test"))
    said("poison", "--data", tmp_path / "clean", "--out", tmp_path / "p")
    exported = said(
        "data",
        "export",
        tmp_path / "p",
        "--layout",
        "perturbation-pt",
        "--base",
        tmp_path / "clean",
        "--out",
        tmp_path / "p.pt",
    )
    assert exported["images"] == 300
    words = ("data", "import", tmp_path / "p.pt", "--base", tmp_path / "clean", "--name", "lsp")
    nearest = said(*words, "--rounding", "nearest", "--out", tmp_path / "n")
    assert nearest["parameters"]["rounding"] == "nearest"
    own = np.arange(200)[::-1]
    np.save(tmp_path / "x_train_own.npy", clean.images[own] / 255)
    np.save(tmp_path / "y_train_own.npy", clean.labels[own])
    words_own = (
        "data",
        "import",
        tmp_path / "x_train_own.npy",
        "--base",
        tmp_path / "clean",
        "--out",
        tmp_path / "own",
    )
    plain = CliRunner().invoke(group, [*map(str, words_own)], catch_exceptions=False).output
    assert "200 images" in plain
    assert "in their own order" in plain
    back = said(*words, "--out", tmp_path / "b")
    assert back["method"] == "lsp"
    assert np.array_equal(load_dataset(tmp_path / "b").images, load_dataset(tmp_path / "p").images)
    assert len(load_dataset(tmp_path / "b", split="test")) == 1000
    info = said("data", "info", tmp_path / "b")
    assert info["splits"]["train"]["classes"]["cat"] == 30
    assert info["splits"]["train"]["sha256"] == load_dataset(tmp_path / "b").checksum()
    assert "poisoned with lsp, says the manifest" in info["warnings"][0]
    shown = said("show", tmp_path / "p", "--clean", tmp_path / "clean", "--per-class", 2, "--out", tmp_path / "s.png")
    assert shown["statistics"]["all"]["images"] == 300
    assert shown["statistics"]["cat"]["l2_mean"] == pytest.approx(1.3, abs=0.1)
    similarity = shown["statistics"]["all"]["ssim"]
    assert similarity is None or 0.9 < similarity < 1
    assert (tmp_path / "s.png").stat().st_size > 20_000
    assert said("show", tmp_path / "p", "--clean", "sample", "--out", tmp_path / "s.png")["method"] == "lsp"
    write_dataset(tmp_path / "other", load_dataset("sample", limit=300, seed=5))
    with pytest.raises(InputError, match="differ in the labels"):
        said("show", tmp_path / "p", "--clean", tmp_path / "other", "--out", tmp_path / "s.png")
    with pytest.raises(InputError, match=r"must end in \.pt"):
        said("data", "export", tmp_path / "p", "--layout", "perturbation-pt", "--out", tmp_path / "x")


def test_info_finds_poison_without_a_manifest(tmp_path):
    from dataclasses import replace

    from ulfast.analysis.describe import describe

    clean = load_dataset("sample")
    write_dataset(tmp_path / "found", replace(ulfast.poison(clean, "regions-16"), manifest={}))
    warnings = describe(tmp_path / "found")["warnings"]
    assert any("look poisoned" in w for w in warnings)
    assert any("no test images" in w for w in warnings)
    np.savez(tmp_path / "n.npz", images=np.random.randn(10, 8, 8, 3), labels=np.arange(10) % 2)
    with pytest.raises(InputError, match="undo the normalisation"):
        describe(tmp_path / "n.npz")
