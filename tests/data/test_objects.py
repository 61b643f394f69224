"""Data sets that are Python objects: of torch, of Hugging Face, lists."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import ulfast
from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.load import load_splits
from ulfast.data.png import png


class Map(torch.utils.data.Dataset):
    """A map-style dataset as torchvision's are."""

    def __init__(self, data, change=lambda image: image, classes=True):
        self.data, self.change = data, change
        if classes:
            self.classes = list(data.classes)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        return self.change(self.data.images[i]), int(self.data.labels[i])


def to_tensor(image):
    """torchvision's ToTensor."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    "change",
    [
        Image.fromarray,
        lambda image: image,
        to_tensor,
        lambda image: torch.from_numpy(image).permute(2, 0, 1),
        lambda image: image.astype(np.float64) / 255,
    ],
    ids=["pillow", "array", "tensor", "bytes", "floats"],
)
def test_a_map_style_dataset_of_torch(make_dataset, change):
    data = make_dataset(12, 10)
    got = load_dataset(Map(data, change))
    assert got == data
    assert load_dataset(Map(data, change, classes=False)).classes == ("0", "1", "2")
    assert len(load_dataset(Map(data, change), limit=6)) == 6
    assert load_dataset(Map(data, change), resize=8).image_shape == (8, 8, 3)


def test_gray_pictures_stay_gray_and_become_colour_among_others(make_dataset):
    gray, colour = make_dataset(12, 10, channels=1), make_dataset(12, 10)
    assert load_dataset(Map(gray, lambda image: Image.fromarray(image[..., 0]))) == gray
    for first in (gray, colour):
        mixed = [(Image.fromarray(first.images[0].squeeze()), 0)]
        mixed += [(Image.fromarray(image), 1) for image in colour.images]
        got = load_dataset(mixed)
        assert got.image_shape == (10, 10, 3)
        assert np.array_equal(got.images[1:], colour.images)
        assert np.array_equal(got.images[0], first.images[0].repeat(3 // first.image_shape[2], 2))


def test_lists_of_pairs_and_of_dictionaries(make_dataset):
    data = make_dataset(12, 10)
    names = [data.classes[c] for c in data.labels]
    assert load_dataset(list(zip(data.images, names, strict=True))) == data
    one_hot = np.eye(3)[data.labels]
    assert load_dataset(list(zip(data.images, one_hot, strict=True))).labels.tolist() == data.labels.tolist()
    rows = [{"img": image, "label": int(c), "id": 7} for image, c in data]
    assert np.array_equal(load_dataset(rows).images, data.images)
    assert (
        load_dataset([{"a": r["img"], "b": r["label"]} for r in rows], input_key="a", target_key="b").num_classes == 3
    )
    assert load_dataset(data) is data


def test_an_object_is_one_split(make_dataset):
    data, other = make_dataset(12, 10), make_dataset(6, 10, seed=1)
    train, test = load_splits(Map(data))
    assert train == data
    assert test is None
    train, test = load_splits(Map(data), test_data=Map(other))
    assert test == other
    train, test = load_splits({"train": Map(data), "validation": Map(other)})
    assert (train, test) == (data, other)
    assert load_dataset(Map(other), split="test") == other
    with pytest.raises(InputError, match="is the train split: give the test images with test_data"):
        load_dataset(data, split="test")
    assert load_dataset(data, split="test", test_data=data) is data


def test_an_attack_does_not_take_the_training_images_for_the_test(make_dataset):
    with pytest.raises(InputError, match="give the clean test images"):
        ulfast.attack(Map(make_dataset(30, 12)), method="none", epochs=1)


@pytest.mark.slow
def test_an_attack_on_an_object_is_the_attack_on_its_images(make_dataset):
    data, other = make_dataset(30, 12), make_dataset(12, 12, seed=1, split="test")
    same = {"method": "none", "epochs": 1, "seed": 3}
    result = ulfast.attack(Map(data), test=other, **same)
    assert result.test_accuracy == ulfast.attack(data, test=other, **same).test_accuracy


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda d: Map(d, lambda image: to_tensor(image) * 4 - 2),
            r"floats must lie in \[0, 1\].*undo the normalisation",
        ),
        (lambda d: Map(d, lambda image: to_tensor(image) * float("nan")), "NaN"),
        (lambda d: [(image, c, 0) for image, c in d], "item 0 is 3 values"),
        (lambda d: [image for image, _ in d], "item 0 is a ndarray"),
        (lambda d: [{"foo": 1, "bar": 2}], "item 0 has foo, bar: name two"),
        (lambda d: [("cat.jpg", 0)], "image 0 is a str"),
        (lambda d: [(np.zeros((10, 10, 3), np.uint8), 0), (np.zeros((9, 10, 3), np.uint8), 1)], "say resize="),
        (lambda d: [(np.zeros((10, 10, 3), np.uint8), 0.5)], "labels must be whole numbers"),
        (lambda d: [], "has no image"),
        (lambda d: 5, "not a int"),
        (lambda d: iter([]), "an object with a length"),
        (lambda d: {"a": 1}, "not a dict"),
    ],
)
def test_objects_that_are_not_data_sets_are_one_line(make_dataset, make, message):
    with pytest.raises(InputError, match=message):
        load_dataset(make(make_dataset(6, 10)))


# What `datasets` calls the types of columns; only their names are looked at.
HFImage = type("Image", (), {})
ClassLabel = type("ClassLabel", (SimpleNamespace,), {})
Value = type("Value", (), {})


class Rows:
    """A `datasets.Dataset` as far as it is used."""

    def __init__(self, data, label=("label",), image=("image",), names=True, damaged=()):
        self.data, self.damaged = data, damaged
        kind = ClassLabel(names=list(data.classes)) if names else Value()
        self.features = {**{key: HFImage() for key in image}, **dict.fromkeys(label, kind), "id": Value()}
        self.column_names = list(self.features)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        content = png(self.data.images[i])
        picture = Image.open(io.BytesIO(content[:50] if i in self.damaged else content))
        return {key: picture if "im" in key else int(self.data.labels[i]) for key in self.column_names}


def test_a_dataset_of_hugging_face_by_its_types(make_dataset):
    data, other = make_dataset(12, 10), make_dataset(6, 10, seed=1)
    assert ulfast.from_hf(Rows(data)) == data
    assert load_dataset(Rows(data, image=("img",))) == data
    assert ulfast.from_hf({"train": Rows(data), "test": Rows(other)}, split="test") == other
    assert ulfast.from_hf(Rows(data, names=False)).classes == ("0", "1", "2")
    two = Rows(data, label=("fine_label", "coarse_label"))
    with pytest.raises(InputError, match=r"fine_label, coarse_label.*target_key="):
        ulfast.from_hf(two)
    assert ulfast.from_hf(two, target_key="coarse_label") == data
    with pytest.raises(InputError, match=r"no column foo: it has image, label, id"):
        ulfast.from_hf(Rows(data), input_key="foo")
    with pytest.raises(InputError, match=r"image, img2.*input_key="):
        load_dataset(Rows(data, image=("image", "img2")))
    for wrong in ([1], {"train": [1]}, {"other": Rows(data)}):
        with pytest.raises(InputError):
            ulfast.from_hf(wrong)
    with pytest.raises(InputError, match="image 4 cannot be read"):
        ulfast.from_hf(Rows(data, damaged=(4,)))
    got = ulfast.from_hf(Rows(data, damaged=(4,)), skip_damaged=True)
    assert len(got) == 11
    assert got.notes == {"damaged images, left out": 1}


def test_to_hf_and_back(make_dataset):
    datasets = pytest.importorskip("datasets")
    data = make_dataset(12, 10)
    made = data.to_hf()
    assert isinstance(made, datasets.Dataset)
    assert made.features["label"].names == list(data.classes)
    assert np.array_equal(np.asarray(made[3]["image"]), data.images[3])
    assert ulfast.from_hf(made) == data
    assert load_dataset(made.with_format("torch")) == data
    gray = make_dataset(12, 10, channels=1)
    assert ulfast.from_hf(gray.to_hf()) == gray


def test_to_hf_names_the_package_that_is_missing(make_dataset, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        make_dataset(6, 10).to_hf()
