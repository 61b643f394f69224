from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.readers.restricted import load_pickle


def write_images(folder: Path, images: np.ndarray, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{i}.{suffix}")


@pytest.fixture
def image_folder(tmp_path, make_dataset):
    data = make_dataset(12, 16)
    for split in ("train", "val"):
        for c in range(3):
            write_images(tmp_path / "set" / split / f"c{c}", data.images[data.labels == c])
    return tmp_path / "set"


def test_image_folder_is_read_in_order(image_folder, make_dataset):
    data = make_dataset(12, 16)
    got = load_dataset(image_folder)
    assert got.classes == ("c0", "c1", "c2")
    assert got.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(got.images, np.concatenate([data.images[data.labels == c] for c in range(3)]))
    assert len(load_dataset(image_folder, split="test")) == 12


def test_class_folders_alone_need_test_data(image_folder):
    alone = image_folder / "train"
    assert len(load_dataset(alone)) == 12
    with pytest.raises(InputError, match="--test-data"):
        load_dataset(alone, split="test")
    assert len(load_dataset(alone, split="test", test_data=image_folder / "val")) == 12
    assert len(load_dataset(alone, split="test", test_data=image_folder)) == 12


def test_jpeg_equals_its_decoder_and_gray_becomes_colour(tmp_path, make_dataset):
    data = make_dataset(4, 16)
    for c in range(2):
        (tmp_path / f"c{c}").mkdir()
        jpeg = simplejpeg.encode_jpeg(data.images[c], quality=90)
        (tmp_path / f"c{c}" / "a.jpg").write_bytes(jpeg)
        write_images(tmp_path / f"c{c}" / "gray", data.images[c : c + 1, :, :, :1])
    got = load_dataset(tmp_path)
    assert np.array_equal(got.images[0], simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(data.images[0], quality=90)))
    assert np.array_equal(got.images[1], data.images[0, :, :, :1].repeat(3, 2))


def test_mixed_sizes_require_resize(image_folder):
    Image.new("RGB", (20, 30), (10, 20, 30)).save(image_folder / "train" / "c1" / "big.png")
    with pytest.raises(InputError, match=r"16 x 16 and 20 x 30.*--resize"):
        load_dataset(image_folder)
    resized = load_dataset(image_folder, resize=8)
    assert resized.images.shape == (13, 8, 8, 3)
    assert resized.images[8].reshape(-1, 3).tolist() == [[10, 20, 30]] * 64


@pytest.mark.parametrize("content", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut"])
def test_an_unreadable_image_is_named(image_folder, content):
    (image_folder / "train" / "c2" / "broken.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read"):
        load_dataset(image_folder)


def test_a_truncated_jpeg_is_named(image_folder, make_dataset):
    jpeg = simplejpeg.encode_jpeg(make_dataset(1, 16).images[0])
    (image_folder / "train" / "c0" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 4])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read"):
        load_dataset(image_folder)


def test_a_class_without_image_is_named(image_folder):
    (image_folder / "train" / "empty").mkdir()
    with pytest.raises(InputError, match=r"class .*empty has no image"):
        load_dataset(image_folder)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no file, folder or data set"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        load_dataset("cifar1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is empty"):
        load_dataset(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("x")
    with pytest.raises(InputError, match="not a data set that ulfast knows"):
        load_dataset(tmp_path / "other")
    with pytest.raises(InputError, match=r"unknown format 'npy'.*did you mean 'npz'"):
        load_dataset(tmp_path / "other", format="npy")


def cifar_batch(n: int, seed: int, classes: int = 10) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), [i % classes for i in range(n)]


def write_cifar10(folder: Path, protocol: int) -> np.ndarray:
    folder.mkdir()
    parts = []
    for i in range(1, 6):
        data, labels = cifar_batch(10, i)
        parts.append(data)
        content = {b"data": data, b"labels": labels, b"filenames": [b"a.png"] * 10, b"batch_label": b"x"}
        (folder / f"data_batch_{i}").write_bytes(pickle.dumps(content, protocol))
    data, labels = cifar_batch(10, 9)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": data, b"labels": labels}, protocol))
    return np.concatenate(parts)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("inner", [True, False])
def test_cifar_python(tmp_path, protocol, inner):
    folder = tmp_path / "cifar-10-batches-py"
    flat = write_cifar10(folder, protocol)
    got = load_dataset(tmp_path if inner else folder)
    assert np.array_equal(got.images, flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert got.labels.tolist() == list(range(10)) * 5
    assert len(load_dataset(tmp_path, split="test")) == 10


def test_cifar_saved_again_by_python_3(tmp_path):
    """Its keys are text then, and its labels may be an array."""
    flat = write_cifar10(tmp_path / "c", 4)
    for file in (tmp_path / "c").iterdir():
        content = {key.decode(): value for key, value in pickle.loads(file.read_bytes()).items()}
        file.write_bytes(pickle.dumps({**content, "labels": np.array(content["labels"])}))
    got = load_dataset(tmp_path / "c")
    assert np.array_equal(got.images, flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert got.labels.tolist() == list(range(10)) * 5


def test_cifar100_python_takes_the_fine_labels(tmp_path):
    for name in ("train", "test"):
        data, labels = cifar_batch(200, 1, 100)
        content = {b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * 200}
        (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    names = [f"thing{i}".encode() for i in range(100)]
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}, 2))
    got = load_dataset(tmp_path)
    assert got.num_classes == 100
    assert got.classes[7] == "thing7"
    assert got.labels.tolist() == list(range(100)) * 2


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_binary(tmp_path, label_bytes):
    classes = {1: 10, 2: 100}[label_bytes]
    names = {1: [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"], 2: ["train.bin", "test.bin"]}
    for name in names[label_bytes]:
        data, labels = cifar_batch(classes, 3, classes)
        head = np.array([[7] * (label_bytes - 1) + [y] for y in labels], np.uint8)
        np.concatenate([head, data], 1).tofile(tmp_path / name)
    got = load_dataset(tmp_path, split="test")
    assert got.labels.tolist() == list(range(classes))
    assert np.array_equal(got.images[3].transpose(2, 0, 1).ravel(), cifar_batch(classes, 3, classes)[0][3])
    with (tmp_path / names[label_bytes][-1]).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="not a multiple"):
        load_dataset(tmp_path, split="test")


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path):
    write_cifar10(tmp_path / "cifar-10-batches-py", 4)
    marker = tmp_path / "ran"
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil(str(marker))}))
    with pytest.raises(InputError, match=r"data_batch_3 holds .*system, not only arrays"):
        load_dataset(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [np.array([{}], dtype=object), np.zeros(2, dtype=[("a", "i4")]), Path("x"), np.random.default_rng, np.ndarray],
)
def test_only_plain_arrays_and_containers_are_read(tmp_path, value):
    (tmp_path / "p").write_bytes(pickle.dumps([value]))
    with pytest.raises(InputError, match="not only arrays"):
        load_pickle(tmp_path / "p")


def test_restricted_reading_keeps_values(tmp_path):
    value = {
        "a": [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3))],
        "b": (np.float32(2.5), {1, 2}, b"x", None, True, 3.5),
        "c": np.array(["ab", "c"]),
    }
    for protocol in range(2, 6):
        (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
        got = load_pickle(tmp_path / "p")
        assert np.array_equal(got["a"][0], value["a"][0])
        assert np.array_equal(got["a"][1], value["a"][1])
        assert got["b"] == value["b"]
        assert got["c"].tolist() == ["ab", "c"]


@pytest.mark.parametrize("cut", [0, 1, 10, 200])
def test_a_damaged_pickle_is_named(tmp_path, cut):
    (tmp_path / "p").write_bytes(pickle.dumps({"a": np.zeros(1000)})[:cut])
    with pytest.raises(InputError, match=r"cannot be read|holds"):
        load_pickle(tmp_path / "p")


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "gray", "float"])
def test_npz_layouts(tmp_path, make_dataset, layout):
    data = make_dataset(12, 16)
    images = {
        "nhwc": data.images,
        "nchw": data.images.transpose(0, 3, 1, 2),
        "gray": data.images[..., 0],
        "float": data.images / 255.0,
    }[layout]
    labels = np.eye(3)[data.labels] if layout == "float" else data.labels
    np.savez(tmp_path / "a.npz", x=images, y=labels)
    got = load_dataset(tmp_path / "a.npz")
    assert np.array_equal(got.images, data.images[..., :1] if layout == "gray" else data.images)
    assert got.labels.tolist() == data.labels.tolist()


def test_npz_splits(tmp_path, make_dataset):
    train, test = make_dataset(12), make_dataset(6, seed=1)
    np.savez(tmp_path / "a.npz", x_train=train.images, y_train=train.labels, x_test=test.images, y_test=test.labels)
    assert len(load_dataset(tmp_path / "a.npz")) == 12
    assert np.array_equal(load_dataset(tmp_path / "a.npz", split="test").images, test.images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (np.where(x > 250, np.nan, x / 255.0), y), "NaN"),
        (lambda x, y: (x / 128.0, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x / 255.0 - 0.5, y), r"must lie in \[0, 1\]"),
        (lambda x, y: (x.astype(np.int32), y), "must be uint8"),
        (lambda x, y: (x[0, 0], y), "3 or 4 dimensions"),
        (lambda x, y: (x, y[:-1]), "labels of shape"),
        (lambda x, y: (x, y - 1), "out of range"),
        (lambda x, y: (x, y + 0.5), "whole numbers"),
        (lambda x, y: (x, np.where(y == 1, 2, y)), "has no image"),
        (lambda x, y: (x, y * 0), "only one class"),
        (lambda x, y: (x[:, :6, :6], y), "too small"),
    ],
)
def test_bad_npz(tmp_path, make_dataset, change, message):
    data = make_dataset(12, 16)
    data.images[0, 0, 0, 0] = 255
    images, labels = change(data.images, data.labels)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "a.npz")


def test_npz_with_objects_or_without_keys(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(InputError, match="cannot be read as arrays"):
        load_dataset(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.zeros(1))
    with pytest.raises(InputError, match="it has a"):
        load_dataset(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"PK broken")
    with pytest.raises(InputError, match="cannot be read as arrays"):
        load_dataset(tmp_path / "c.npz")


def test_svhn(tmp_path, make_dataset):
    from scipy.io import savemat

    data = make_dataset(20, 32, classes=10)
    for split in ("train", "test"):
        labels = np.where(data.labels == 0, 10, data.labels)[:, None].astype(np.uint8)
        savemat(tmp_path / f"{split}_32x32.mat", {"X": np.moveaxis(data.images, 0, 3), "y": labels})
    got = load_dataset(tmp_path)
    assert np.array_equal(got.images, data.images)
    assert got.labels.tolist() == data.labels.tolist()
    (tmp_path / "test_32x32.mat").write_bytes(b"x" * 300)
    with pytest.raises(InputError, match=r"test_32x32\.mat is not a \.mat file"):
        load_dataset(tmp_path, split="test")
