"""Two sets that are used together are matched by class name, or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ulfast import InputError, attack, poison
from ulfast.data import load_dataset, write_dataset
from ulfast.data.beton import open_beton, write_beton
from ulfast.data.classes import Outline, aligned, in_order, matched
from ulfast.data.export import class_folders, export_dataset
from ulfast.data.load import load_splits
from ulfast.poisons import perturbation

NAMES = ("training images", "test images")


def other_order(dataset):
    """The same images with the classes in another order."""
    classes = dataset.classes[::-1]
    return replace(dataset, classes=classes, labels=len(classes) - 1 - dataset.labels)


def test_classes_are_matched_by_name(make_dataset):
    data = make_dataset()
    got = matched(data, other_order(data), names=NAMES)
    assert got.classes == data.classes
    assert np.array_equal(got.labels, data.labels)
    few = replace(data, classes=("class2", "class0"), labels=np.arange(60) % 2)
    assert matched(data, few, names=NAMES, part=True).labels.tolist()[:2] == [2, 0]
    outline = Outline(data.image_shape, data.classes)
    assert np.array_equal(matched(outline, other_order(data), names=NAMES).labels, data.labels)


@pytest.mark.parametrize(
    ("change", "part", "message"),
    [
        ({"classes": ("class0", "class1", "bee")}, True, "test images have 'bee' and training images have 'class2'"),
        ({"classes": ("class0", "class1", "class2", "x")}, True, "3 and 4 classes.*test images have 'x'"),
        ({"classes": ("class0", "class1"), "labels": np.arange(60) % 2}, False, "training images have 'class2'"),
        ({"classes": ("0", "1", "2")}, True, "numbers are not matched with names"),
        ({"classes": ("class0", "class0", "class1")}, True, "two classes called 'class0'"),
        ({"images": np.zeros((60, 12, 10, 3), np.uint8)}, True, "12 x 12 x 3 and images of 12 x 10 x 3"),
        ({"images": np.zeros((60, 12, 12, 1), np.uint8)}, True, "12 x 12 x 3 and images of 12 x 12 x 1"),
    ],
)
def test_what_differs_is_named(make_dataset, change, part, message):
    data = make_dataset()
    with pytest.raises(InputError, match=f"training images and test images differ.*{message}|{message}"):
        matched(data, replace(data, **change), names=NAMES, part=part)


def test_image_by_image_count_and_labels_must_match_too(make_dataset):
    data = make_dataset()
    assert np.array_equal(aligned(data, other_order(data), names=NAMES).labels, data.labels)
    with pytest.raises(InputError, match="60 and 59 images"):
        aligned(data, data.subset(np.arange(59)), names=NAMES)
    with pytest.raises(InputError, match="labels of 40 images"):
        aligned(data, replace(data, labels=np.zeros(60, np.int64)), names=NAMES)
    with pytest.raises(InputError, match="labels of 40 images"):
        perturbation(data, replace(data, labels=np.zeros(60, np.int64)))


def test_numbers_are_the_same_class_with_zeros_in_front(make_dataset):
    data = replace(make_dataset(), classes=("0", "1", "2"))
    other = replace(data, classes=("02", "00", "01"), labels=(data.labels + 1) % 3)
    got = matched(data, other, names=NAMES)
    assert (got.classes, got.labels.tolist()) == (data.classes, data.labels.tolist())


def test_numbers_sort_by_value():
    assert in_order(["10", "2", "1"]) == ["1", "2", "10"]
    assert in_order(["10", "2", "x"]) == ["10", "2", "x"]


def test_attack_compares_all_that_it_is_given(make_dataset):
    data = make_dataset(90)
    options = {"method": "none", "model": "cnn", "epochs": 4, "compare": other_order(data)}
    got = attack(data, test=other_order(make_dataset(90)), **options)
    same = attack(data, test=make_dataset(90), **{**options, "compare": data})
    assert (got.test_accuracy, got.baselines) == (same.test_accuracy, same.baselines)
    strange = replace(data, classes=("class0", "class1", "bee"))
    for kind in ({"test": strange}, {"test": data, "compare": strange}, {"test": data, "clean": strange}):
        with pytest.raises(InputError, match="'bee'"):
            attack(data, method="none", epochs=1, **kind)


def test_a_run_is_resumed_only_with_the_same_images(tmp_path, make_dataset):
    data, test = make_dataset(60), make_dataset(30, seed=1)
    options = {"method": "none", "model": "cnn", "epochs": 1, "out": tmp_path / "r"}
    attack(data, test=test, **options)
    attack(data, test=test, resume=True, **options)
    changes = [
        (replace(data, images=255 - data.images), test, "training_fingerprint"),
        (data, replace(test, images=255 - test.images), "test_fingerprint"),
        (replace(data, labels=(data.labels + 1) % 3), test, "training_fingerprint"),
    ]
    for train, held, key in changes:
        with pytest.raises(InputError, match=f"other data.*{key}"):
            attack(train, test=held, resume=True, **options)


def twelve(make_dataset, **options):
    data = make_dataset(48, 16, classes=12, **options)
    return replace(data, classes=tuple(map(str, range(12))))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("names", ["numbers", "unsorted", "odd"])
@pytest.mark.parametrize("layout", ["imagefolder", "npz", "beton", "wds", "parquet"])
def test_what_is_exported_reads_back_the_same(tmp_path, make_dataset, layout, names, channels):
    if layout == "parquet":
        pytest.importorskip("pyarrow")
    data = make_dataset(48, 16, classes=12, channels=channels)
    data = replace(data, images=np.ascontiguousarray(data.images[:, :, :10]))  # not square
    classes = {
        "numbers": map(str, range(12)),
        "unsorted": [f"name{11 - c}" for c in range(12)],
        "odd": ["a/b", "a_b", "A_B", ".hidden", "train", "", "é", "[x]", "..", "__MACOSX", "con ", "z" * 300],
    }[names]
    data = replace(data, classes=tuple(classes))
    out = tmp_path / {"npz": "f.npz", "beton": "f.beton"}.get(layout, "f")
    export_dataset(data, out, layout, test=data.subset(np.arange(5)))
    back, held = load_splits(out)
    assert back.classes == held.classes == data.classes
    assert back.image_shape == data.image_shape
    where = {image.tobytes(): label for image, label in zip(data.images, data.labels, strict=True)}
    assert [where[image.tobytes()] for image in back.images] == back.labels.tolist()
    assert [where[image.tobytes()] for image in held.images] == held.labels.tolist()


def test_torchvision_sorts_exported_folders_into_the_same_numbers():
    for classes in (list(map(str, range(12))), ["dog", "cat"], ["a b", "a_b"], [f"c{c}" for c in range(11)]):
        names = class_folders(classes)
        assert names == sorted(names)
        assert len({name.casefold() for name in names}) == len(classes)
    assert class_folders(list(map(str, range(11))))[1] == "01"
    assert class_folders(["cat", "dog"]) == ["cat", "dog"]


def test_every_layout_has_its_class_names(tmp_path, make_dataset):
    data = make_dataset()
    export_dataset(data, tmp_path / "p", "png-index")
    export_dataset(data, tmp_path / "d.pt", "perturbation-pt", base=data)
    for file in (tmp_path / "p/ulfast.json", tmp_path / "d.pt.ulfast.json"):
        about = json.loads(file.read_text())
        assert about["classes"] == list(data.classes)
        assert about["labels"] == data.labels.tolist()


def test_a_changed_export_is_reported(tmp_path, make_dataset):
    export_dataset(make_dataset(), tmp_path / "f", "imagefolder")
    (tmp_path / "f/train/new").mkdir()
    with pytest.raises(InputError, match=r"new is not a class in ulfast\.json"):
        load_dataset(tmp_path / "f")
    (tmp_path / "f/ulfast.json").write_text(json.dumps({"format": "ulfast-export-1", "layout": "imagefolder"}))
    with pytest.raises(InputError, match="damaged"):
        load_dataset(tmp_path / "f")


def test_folders_of_two_splits_that_differ_are_not_joined(tmp_path, make_dataset):
    data = make_dataset(12)
    write_dataset(tmp_path / "w", data, other_order(data))
    assert np.array_equal(load_dataset(tmp_path / "w", split="test").labels, data.labels)
    with pytest.raises(InputError, match="differ"):
        write_dataset(tmp_path / "x", data, replace(data, classes=("a", "b", "c")))
    with pytest.raises(InputError, match="differ"):
        export_dataset(data, tmp_path / "y", "imagefolder", test=replace(data, classes=("a", "b", "c")))
    assert not (tmp_path / "y").exists()


def test_labels_may_be_names(tmp_path, make_dataset):
    data = make_dataset(12)
    words = np.array(["dog", "ant", "cat"])[data.labels]
    np.savez(tmp_path / "d.npz", x_train=data.images, y_train=words, x_test=data.images[:2], y_test=words[:2])
    train, test = load_splits(tmp_path / "d.npz")
    assert train.classes == test.classes == ("ant", "cat", "dog")
    assert [train.classes[c] for c in train.labels] == words.tolist()
    assert test.labels.tolist() == train.labels.tolist()[:2]
    np.savez(tmp_path / "e.npz", x=data.images, y=words, classes=np.array(["dog", "cat"]))
    with pytest.raises(InputError, match="'ant' is not among the classes"):
        load_dataset(tmp_path / "e.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"classes": 3}, "classes has shape"),
        ({"classes": np.array([])}, "classes has shape"),
        ({"y": np.arange(12) + 10**9}, "reaches 1000000011"),
        ({"y": np.full(12, np.nan)}, "whole numbers"),
        ({"y": np.zeros(12, complex)}, "not class numbers"),
        ({"y": np.zeros((12, 3, 2), "U3")}, "one per image"),
    ],
)
def test_invalid_labels_are_one_line(tmp_path, make_dataset, content, message):
    data = make_dataset(12)
    np.savez(tmp_path / "d.npz", **{"x": data.images, "y": data.labels, **content})
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "d.npz")


def test_an_array_with_the_suffix_of_an_archive(tmp_path, make_dataset):
    np.save(tmp_path / "d.npy", make_dataset(12).images)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    with pytest.raises(InputError, match="one array"):
        load_dataset(tmp_path / "d.npz")


def two_integers(path, names: tuple[str, str], make_dataset) -> None:
    """A .beton of images and two integer fields, as FFCV writes it: (number of the image, class)."""
    from ulfast.data.beton import format as fmt

    data = make_dataset(12, 16)
    write_beton(path, data)
    path.with_name(path.name + ".json").unlink()
    raw = path.read_bytes()
    header = np.frombuffer(raw[: fmt.HEADER.itemsize], fmt.HEADER).copy()
    old, new = fmt.row_type([fmt.RGB, fmt.INT]), fmt.row_type([fmt.RGB, fmt.INT, fmt.INT])
    at = fmt.HEADER.itemsize + 2 * fmt.FIELD.itemsize
    samples = np.frombuffer(raw[at : at + 12 * old.itemsize], old)
    rows = np.zeros(12, new)
    rows["f0"], rows["f1"], rows["f2"] = samples["f0"], np.arange(12), samples["f1"]
    fields = np.zeros(3, fmt.FIELD)
    for row, kind, name in zip(fields, (fmt.RGB, fmt.INT, fmt.INT), ("image", *names), strict=True):
        row["kind"] = kind
        row["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    header["fields"] = 3
    head = header.tobytes() + fields.tobytes() + rows.tobytes()
    path.write_bytes(head + raw[len(head) :])


def test_several_integer_fields_require_a_choice_of_the_label(tmp_path, make_dataset):
    labels = make_dataset(12, 16).labels.tolist()
    two_integers(tmp_path / "a.beton", ("index", "label"), make_dataset)
    assert load_dataset(tmp_path / "a.beton").labels.tolist() == labels
    two_integers(tmp_path / "b.beton", ("index", "group"), make_dataset)
    with pytest.raises(InputError, match=r"index, group.*--label-field"):
        load_dataset(tmp_path / "b.beton")
    assert load_dataset(tmp_path / "b.beton", label_field="group").labels.tolist() == labels
    assert open_beton(tmp_path / "b.beton", label_field="index").labels.tolist() == list(range(12))
    with pytest.raises(InputError, match="no integer field called 'x'"):
        load_dataset(tmp_path / "b.beton", label_field="x")


def test_numbered_pngs_with_zeros_in_front(tmp_path, make_dataset):
    from ulfast.poisons.imported import import_published

    data = make_dataset(12, 16)
    poisoned = poison(data, "lsp")
    (tmp_path / "p").mkdir()
    for i, image in enumerate(poisoned.images):
        Image.fromarray(image).save(tmp_path / f"p/{i:05d}.PNG", format="PNG")
    assert np.array_equal(import_published(tmp_path / "p", data).images, poisoned.images)
    Image.fromarray(poisoned.images[3]).save(tmp_path / "p/3.png")
    with pytest.raises(InputError, match=r"00003\.PNG and 3\.png"):
        import_published(tmp_path / "p", data)


def test_perturbations_in_whole_levels(tmp_path, make_dataset):
    from ulfast.poisons.imported import import_published

    data = make_dataset(12, 16)
    delta = np.random.default_rng(0).integers(-1, 2, data.images.shape)
    for kind in (np.int8, np.int16, np.int64):
        np.save(tmp_path / "d.npy", delta.astype(kind))
        got = import_published(tmp_path / "d.npy", data)
        assert np.array_equal(got.images, (data.images + delta).clip(0, 255))


@pytest.mark.parametrize("scale", ["signed", "normalised"])
def test_images_on_another_scale_are_no_perturbation(tmp_path, make_dataset, scale):
    from ulfast.poisons.imported import import_published

    data = make_dataset(60, 16)
    values = data.images / 127.5 - 1 if scale == "signed" else (data.images / 255 - 0.47) / 0.25
    np.save(tmp_path / "d.npy", values.astype(np.float32))
    with pytest.raises(InputError, match="another scale"):
        import_published(tmp_path / "d.npy", data)


def test_an_import_compares_the_classes_of_an_export(tmp_path, make_dataset):
    from ulfast.poisons.imported import import_published

    data = make_dataset(12, 16)
    poisoned = poison(data, "lsp")
    export_dataset(poisoned, tmp_path / "d.pt", "perturbation-pt", base=data)
    export_dataset(poisoned, tmp_path / "p", "png-index")
    for source in (tmp_path / "d.pt", tmp_path / "p"):
        got = import_published(source, data, rounding="nearest")
        assert np.array_equal(got.images, poisoned.images)
        assert np.array_equal(import_published(source, other_order(data), rounding="nearest").images, poisoned.images)
        other = replace(data, labels=(data.labels + 1) % 3)
        with pytest.raises(InputError, match="image 0 is 'class0' there and 'class1' here"):
            import_published(source, other)


@pytest.mark.parametrize("label", [200, -3, 3.7])
def test_labels_of_svhn_are_digits(tmp_path, label):
    from scipy.io import savemat

    y = np.array([[1.0], [10.0], [label]])
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 3), np.uint8), "y": y})
    with pytest.raises(InputError, match=r"not digits|whole numbers"):
        load_dataset(tmp_path)
