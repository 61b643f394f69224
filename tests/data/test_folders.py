"""Image folders found in practice: names of splits, tables of labels, links, leftovers, order of classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from ulfast import InputError
from ulfast.data import load_dataset

COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])


def picture(c: int, i: int = 0) -> np.ndarray:
    noise = np.random.default_rng(100 * c + i).integers(-15, 16, (10, 12, 3))
    return (COLOURS[c] + noise).clip(0, 255).astype(np.uint8)


def save(file: Path, c: int = 0, i: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(c, i)).save(file)


def folders(root: Path, classes: list[str], n: int = 2) -> Path:
    for c, name in enumerate(classes):
        for i in range(n):
            save(root / name / f"{i}.png", c % 4, i)
    return root


def of(dataset, name: str) -> int:
    return int((dataset.labels == dataset.classes.index(name)).sum())


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "VAL"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("seg_train", "seg_test"),
        ("train", "eval"),
        ("train", "validation"),
        ("train", "dev"),
        ("train_data", "valid"),
    ],
)
def test_splits_by_their_usual_names(tmp_path, train, test):
    folders(tmp_path / "d" / train, ["cat", "dog", "fox"], 3)
    folders(tmp_path / "d" / test, ["cat", "dog", "fox"], 2)
    got, held = load_dataset(tmp_path / "d"), load_dataset(tmp_path / "d", split="test")
    assert got.classes == held.classes == ("cat", "dog", "fox")
    assert (len(got), len(held)) == (9, 6)


def test_test_precedes_val_and_two_of_a_kind_are_refused(tmp_path):
    folders(tmp_path / "train", ["a", "b"])
    folders(tmp_path / "val", ["a", "b"], 3)
    folders(tmp_path / "test", ["a", "b"], 4)
    assert len(load_dataset(tmp_path, split="test")) == 8
    assert load_dataset(tmp_path).notes["folders beside the splits"] == 1
    folders(tmp_path / "Testing", ["a", "b"], 4)
    with pytest.raises(InputError, match=r"test and Testing|Testing and test"):
        load_dataset(tmp_path, split="test")
    assert len(load_dataset(tmp_path)) == 4
    folders(tmp_path / "Training", ["a", "b"], 4)
    with pytest.raises(InputError, match="which holds the training images"):
        load_dataset(tmp_path)


def test_classes_called_train_and_test(tmp_path):
    names = ["bus", "test", "train", "val"]
    folders(tmp_path / "d/train", names)
    folders(tmp_path / "d/test", names, 1)
    for root, split in ((tmp_path / "d", "train"), (tmp_path / "d", "test"), (tmp_path / "d/train", "train")):
        assert load_dataset(root, split=split).classes == tuple(names)
    with pytest.raises(InputError, match="CLASS folders"):
        load_dataset(folders(tmp_path / "flat", ["train", "test"]))
    folders(tmp_path / "doubt", ["car"])
    folders(tmp_path / "doubt/train", ["steam", "diesel"])
    with pytest.raises(InputError, match="is it a class or the training images"):
        load_dataset(tmp_path / "doubt")


def test_tiny_imagenet_takes_its_annotations(tmp_path):
    names = ["n01", "n02", "n03"]
    for c, name in enumerate(names):
        save(tmp_path / "train" / name / "images" / f"{name}_0.JPEG", c)
    for i in range(6):
        save(tmp_path / f"val/images/val_{i}.JPEG", i % 3)
        save(tmp_path / f"test/images/test_{i}.JPEG", i % 3)
    lines = [f"val_{i}.JPEG\t{names[i % 3]}\t0\t0\t9\t9\n" for i in range(6)]
    (tmp_path / "val/val_annotations.txt").write_text("".join(lines))
    held = load_dataset(tmp_path, split="test")
    assert held.classes == tuple(names) == load_dataset(tmp_path).classes
    assert held.labels.tolist() == [0, 1, 2, 0, 1, 2]
    alone = load_dataset(tmp_path / "train", split="test", test_data=tmp_path / "val")
    assert (alone.classes, alone.labels.tolist()) == (tuple(names), [0, 1, 2, 0, 1, 2])
    with pytest.raises(InputError, match="nor a table"):
        load_dataset(tmp_path / "train", split="test", test_data=tmp_path / "test")
    (tmp_path / "val/val_annotations.txt").write_text("".join(lines[:5]))
    with pytest.raises(InputError, match="no class folders"):
        load_dataset(tmp_path, split="test")


@pytest.mark.parametrize(
    ("name", "head", "line"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\n", "{stem},{name} 85 1 499 272\n"),
        ("val.txt", "", "{stem}.JPEG {name}\n"),
        ("labels.csv", "filename,label\n", "val/{stem}.JPEG,{name}\n"),
    ],
)
def test_imagenets_flat_val_takes_a_table(tmp_path, name, head, line):
    folders(tmp_path / "train", ["n02", "n10"])
    for i in range(4):
        save(tmp_path / f"val/ILSVRC2012_val_{i:08d}.JPEG", i % 2)
    rows = [line.format(stem=f"ILSVRC2012_val_{i:08d}", name=("n02", "n10")[i % 2]) for i in (2, 3, 0, 1)]
    (tmp_path / name).write_text(head + "".join(rows))
    assert load_dataset(tmp_path, split="test").labels.tolist() == [0, 1, 0, 1]
    (tmp_path / name).write_text(head + "".join(rows).replace("n10", "17"))
    with pytest.raises(InputError, match="'17'"):
        load_dataset(tmp_path, split="test")


def test_a_sample_submission_is_not_a_table_of_labels(tmp_path):
    folders(tmp_path / "train", ["a", "b"])
    save(tmp_path / "test/0.png")
    (tmp_path / "sample_submission.csv").write_text("id,label\n0,a\n")
    with pytest.raises(InputError, match="no class folders"):
        load_dataset(tmp_path, split="test")
    assert len(load_dataset(tmp_path)) == 4


def test_what_is_left_out_is_counted_by_kind(tmp_path):
    root = folders(tmp_path / "d/train", ["cat", "dog"])
    folders(root, [".ipynb_checkpoints", "@eaDir", "__MACOSX"])
    save(root / "cat/.ipynb_checkpoints/0-checkpoint.png")
    save(root / "cat/deep/@eaDir/x.png")
    save(root / "cat/deep/y.png", 0, 9)
    save(root / "cat/._0.png")
    save(root / "loose.png")
    (root / "cat/notes.txt").write_text("mine")
    (root / "dog/README").write_text("mine")
    os.mkfifo(root / "dog/pipe.png")
    os.symlink("nowhere.png", root / "dog/gone.png")
    os.symlink("..", root / "cat/up")
    os.symlink("../dog", root / "cat/friend")
    got = load_dataset(tmp_path / "d")
    assert (of(got, "cat"), of(got, "dog"), got.num_classes) == (3, 2, 2)
    assert got.notes == {
        "hidden or left by a tool": 6,
        "images beside the class folders": 1,
        ".txt files": 1,
        "files without a suffix": 1,
        "pipes, sockets and devices": 1,
        "broken links": 1,
        "links to a folder above": 1,
        "links to a folder of the same set": 1,
    }


def test_links_to_files_and_folders_elsewhere_are_followed(tmp_path):
    folders(tmp_path / "store", ["cat", "dog"])
    (tmp_path / "d/train").mkdir(parents=True)
    for name in ("cat", "dog"):
        os.symlink(tmp_path / "store" / name, tmp_path / "d/train" / name)
    os.symlink("0.png", tmp_path / "store/dog/again.png")
    os.symlink(tmp_path, tmp_path / "store/dog/far")  # above the set
    got = load_dataset(tmp_path / "d")
    assert (of(got, "cat"), of(got, "dog")) == (2, 3)
    assert got.notes == {"links to a folder above": 1, "links to a folder elsewhere, followed": 2}


def test_suffixes_in_any_case(tmp_path):
    names = ["a.JPG", "b.Jpeg", "c.jfif", "d.PNG", "e.TIF", "f.jpe"] + (["g.avif"] if features.check("avif") else [])
    for name in ("x", "y"):
        for file in names:
            (tmp_path / name).mkdir(exist_ok=True)
            kind = "JPEG" if file[-4:].lower() in (".jpg", "jpeg", "jfif", ".jpe") else None
            Image.fromarray(picture(0)).save(tmp_path / name / file, kind)
    assert len(load_dataset(tmp_path)) == 2 * len(names)


def test_numbers_sort_as_numbers_and_other_names_as_text(tmp_path):
    names = [str(c) for c in range(12)]
    got = load_dataset(folders(tmp_path / "n", names, 1))
    assert got.classes == tuple(names)
    assert got.notes == {"classes sorted by number, where torchvision sorts 10 before 2": 12}
    assert load_dataset(folders(tmp_path / "z", ["01", "2", "10"], 1)).classes == ("01", "2", "10")
    assert load_dataset(folders(tmp_path / "t", ["c1", "c10", "c2"], 1)).classes == ("c1", "c10", "c2")


def test_test_images_of_some_classes_have_the_numbers_of_the_training_images(tmp_path):
    folders(tmp_path / "train", ["a", "b", "c"])
    folders(tmp_path / "val", ["b", "c"], 1)
    held = load_dataset(tmp_path, split="test")
    assert (held.classes, held.labels.tolist()) == (("a", "b", "c"), [1, 2])
    folders(tmp_path / "val", ["d"], 1)
    assert load_dataset(tmp_path, split="test").classes == ("b", "c", "d")


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    folders(tmp_path / "d", ["dog"])
    place = os.fsencode(tmp_path / "d") + b"/caf\xe9"
    os.mkdir(place)
    with open(place + b"/0.png", "wb") as file:
        Image.fromarray(picture(0)).save(file, "PNG")
    assert load_dataset(tmp_path / "d").classes == ("café", "dog")


def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    folders(tmp_path / "d", ["a", "b"])
    (tmp_path / "d/b").chmod(0)
    try:
        if os.access(tmp_path / "d/b", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(InputError, match="cannot be read"):
            load_dataset(tmp_path / "d")
    finally:
        (tmp_path / "d/b").chmod(0o755)


def test_splits_and_classes_within_class_folders_are_refused(tmp_path):
    for kind in ("cats", "dogs"):
        folders(tmp_path / "a" / kind, ["train", "test"])
        folders(tmp_path / "b" / f"part_{kind}", ["ant", "bee", kind])
        folders(tmp_path / "c" / kind, ["images"])
        folders(tmp_path / "e" / kind, [f"{kind}-young", f"{kind}-old"])
    with pytest.raises(InputError, match="splits within a class folder"):
        load_dataset(tmp_path / "a")
    with pytest.raises(InputError, match=r"part_cats, part_dogs in .* all hold folders ant, bee"):
        load_dataset(tmp_path / "b")
    folders(tmp_path / "w/unpacked/train", ["x", "y"])
    folders(tmp_path / "w/unpacked/test", ["x", "y"])
    with pytest.raises(InputError, match=r"point --data at .*/w/unpacked"):
        load_dataset(tmp_path / "w")
    for name in "ce":
        assert load_dataset(tmp_path / name).classes == ("cats", "dogs")


def test_flat_splits_need_a_table(tmp_path):
    for split in ("train", "test"):
        for i in range(4):
            save(tmp_path / split / f"{split}{i}.png", i % 2, i)
    with pytest.raises(InputError, match="images but no class folders in them, nor a table"):
        load_dataset(tmp_path)
    rows = [f"{split}{i}.png,{('cat', 'dog')[i % 2]}\n" for split in ("train", "test") for i in range(4)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(rows))
    for split in ("train", "test"):
        got = load_dataset(tmp_path, split=split)
        assert (got.classes, got.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])


def test_every_suffix_of_the_page_is_read(tmp_path):
    page = next((Path(__file__).parents[2] / "docs").rglob("data.md")).read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `.jpg` `.jpeg`"))
    suffixes = [word.strip("`") for word in row.partition(", in any case")[0].split()[1:]]
    assert len(suffixes) == 14
    kinds = {".jpe": "JPEG", ".jfif": "JPEG", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM"}
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        for suffix in suffixes:
            image = Image.fromarray(picture(0))
            image = image.convert({".pgm": "L", ".pbm": "1"}.get(suffix, "RGB"))
            image.save(tmp_path / name / f"{suffix[1:]}{suffix}", kinds.get(suffix))
    assert len(load_dataset(tmp_path)) == 2 * len(suffixes)
