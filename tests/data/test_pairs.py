"""Sets whose images each have a label: NTGA's arrays, pickled lists of pairs, AVATAR's archives."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from ulfast import InputError
from ulfast.data import load_dataset
from ulfast.data.dataset import Dataset
from ulfast.poisons.imported import import_published


def shuffled(data, seed=0):
    return data.subset(np.random.default_rng(seed).permutation(len(data)))


def smooth(n=30, side=16, classes=3):
    """Images whose neighbours are alike within a plane, and whose colours are far apart."""
    rng = np.random.default_rng(0)
    ramp = np.arange(side)[:, None, None] + np.arange(side)[None, :, None]
    images = (ramp[None] * 2 + rng.integers(0, 60, (n, 1, 1, 3)) + np.array([0, 60, 120])).astype(np.uint8)
    return Dataset(images, np.arange(n) % classes, tuple(map(str, range(classes))))


def write_ntga(folder, data, stem="train_cifar10_ntga_cnn_best", channels_first=False, one_hot=True):
    folder.mkdir(exist_ok=True)
    x = data.images.astype(np.float32) / 255
    np.save(folder / f"x_{stem}.npy", x.transpose(0, 3, 1, 2) if channels_first else x)
    np.save(folder / f"y_{stem}.npy", np.eye(data.num_classes)[data.labels] if one_hot else data.labels)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
def test_ntgas_arrays_are_a_set_of_their_own(tmp_path, make_dataset, channels_first, one_hot):
    data, test = shuffled(make_dataset(30, 16)), make_dataset(6, 16, seed=1)
    write_ntga(tmp_path / "n", data, channels_first=channels_first, one_hot=one_hot)
    write_ntga(tmp_path / "n", test, "test_cifar10")
    for path in (tmp_path / "n", tmp_path / "n" / "x_train_cifar10_ntga_cnn_best.npy"):
        got = load_dataset(path)
        assert np.array_equal(got.images, data.images)
        assert np.array_equal(got.labels, data.labels)
        assert np.array_equal(load_dataset(path, split="test").images, test.images)
    (tmp_path / "n" / "x_test_cifar10.npy").unlink()
    imported = import_published(tmp_path / "n")
    assert np.array_equal(imported.labels, data.labels)
    assert imported.classes == ("0", "1", "2")
    assert imported.manifest["parameters"]["kind"] == "images in their own order"
    nearest = import_published(tmp_path / "n", rounding="nearest")
    assert np.array_equal(nearest.images, data.images)


@pytest.mark.parametrize("form", ["planes", "pixels", "floats", "bytearray", "uint8", "scalars"])
def test_pickled_pairs(tmp_path, form):
    data = smooth()
    planes = data.images.transpose(0, 3, 1, 2)
    images = {
        "planes": [image.tobytes() for image in planes],
        "pixels": [image.tobytes() for image in data.images],
        "floats": list(planes.astype(np.float32) / 255),
        "bytearray": [bytearray(image.tobytes()) for image in planes],
        "uint8": list(data.images),
        "scalars": list(planes.astype(np.float64) / 255),
    }[form]
    labels = [np.int64(c) for c in data.labels] if form == "scalars" else data.labels.tolist()
    (tmp_path / "poison.pkl").write_bytes(pickle.dumps(list(zip(images, labels, strict=True))))
    got = load_dataset(tmp_path / "poison.pkl")
    assert np.array_equal(got.images, data.images)
    assert np.array_equal(got.labels, data.labels)
    alone = import_published(tmp_path / "poison.pkl", rounding="nearest")
    assert alone.manifest["parameters"]["layout"] == "pairs-pickle"
    assert np.array_equal(alone.images, data.images)
    named = replace(data, classes=("cat", "dog", "eel"))
    assert import_published(tmp_path / "poison.pkl", shuffled(named)).classes == ("cat", "dog", "eel")


def test_pairs_in_the_order_of_a_base_are_measured_against_it(tmp_path):
    base = smooth()
    poisoned = base.images + np.uint8(3)
    (tmp_path / "p.pkl").write_bytes(
        pickle.dumps([(image, int(c)) for image, c in zip(poisoned, base.labels, strict=True)])
    )
    got = import_published(tmp_path / "p.pkl", base)
    assert np.array_equal(got.images, poisoned)
    assert got.manifest["statistics"]["linf_max"] == pytest.approx(3 / 255)


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([(bytes(3072), 0), (bytes(3071), 1)], r"images 0 and 1 differ"),
        ([(bytes(3071), 0), (bytes(3071), 1)], r"3,071 bytes are not square"),
        ([(bytes(3072), 0), (bytes(3072), "dog")], r"label of image 1"),
        ([(bytes(3072), 0), 5], r"entry 1 is not a pair"),
        ([(np.zeros((3, 8, 8), np.int32), 0)] * 2, r"image 0 is a ndarray, not bytes"),
        ([(np.full((3, 8, 8), 2.5), 0)] * 2, r"floats must lie in \[0, 1\]"),
        ({"a": 1}, r"no list of \(image, label\)"),
        ([(bytes(3072), Code())], r"holds builtins\.print"),
    ],
)
def test_pickles_that_are_no_pairs_are_one_line(tmp_path, content, message):
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=message):
        load_dataset(tmp_path / "p.pkl")


def test_bytes_in_an_order_that_cannot_be_told_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    (tmp_path / "p.pkl").write_bytes(pickle.dumps([(row.tobytes(), i % 2) for i, row in enumerate(noise)]))
    with pytest.raises(InputError, match="cannot tell whether"):
        load_dataset(tmp_path / "p.pkl")


def test_an_array_shorter_than_its_header_takes_no_memory(tmp_path, make_dataset):
    write_ntga(tmp_path / "n", make_dataset(12, 16), "train")
    file = tmp_path / "n" / "x_train.npy"
    with file.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 30, 64, 64, 3)}
        )
        stream.write(bytes(1000))
    for read in (load_dataset, import_published):
        with pytest.raises(InputError, match=r"x_train\.npy cannot be read as an array"):
            read(tmp_path / "n")


def test_avatars_archive_is_a_set_with_labels(tmp_path, make_dataset):
    base = make_dataset(30, 16)
    np.savez(tmp_path / "avatar.npz", data=base.images // 2, targets=base.labels)
    alone = import_published(tmp_path / "avatar.npz")
    assert alone.manifest["parameters"]["layout"] == "images-npz"
    assert np.array_equal(alone.images, base.images // 2)
    own = shuffled(base)
    np.savez(tmp_path / "own.npz", data=own.images, targets=own.labels)
    got = import_published(tmp_path / "own.npz", base)
    assert np.array_equal(got.images, own.images)
    assert got.classes == base.classes
    np.savez(tmp_path / "noise.npz", noise=np.zeros_like(base.images, np.float32))
    with pytest.raises(InputError, match="give that with --base"):
        import_published(tmp_path / "noise.npz")


def test_classes_that_an_archive_names_are_matched_with_the_bases(tmp_path, make_dataset):
    base = make_dataset(30, 16)
    turned = {"data": base.images, "targets": 2 - base.labels, "classes": np.array(base.classes[::-1])}
    np.savez(tmp_path / "x.npz", **turned)
    got = import_published(tmp_path / "x.npz", base)
    assert np.array_equal(got.labels, base.labels)
    assert got.classes == base.classes
    np.savez(tmp_path / "x.npz", **{**turned, "targets": np.array(base.classes)[base.labels]})
    assert np.array_equal(import_published(tmp_path / "x.npz", base).labels, base.labels)
    np.savez(tmp_path / "x.npz", **{**turned, "classes": np.array(["class2", "class1", "bee"])})
    with pytest.raises(InputError, match="'bee', which tiny lacks"):
        import_published(tmp_path / "x.npz", base)


def test_a_perturbation_inside_a_checkpoint_with_its_bound_apart(tmp_path, make_dataset):
    """Contrastive poisoning keeps perturbations in [-1, 1] and the 8/255 in its programs."""
    base = make_dataset(30, 16)
    delta = torch.rand(30, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    content = {"epoch": 3, "perturbation": delta, "model": {"conv.weight": torch.zeros(8, 3, 16, 16)}}
    torch.save(content, tmp_path / "cp.pth")
    with pytest.raises(InputError, match="--scale 8/255"):
        import_published(tmp_path / "cp.pth", base)
    got = import_published(tmp_path / "cp.pth", base, scale=8 / 255)
    want = base.images.astype(np.float32) + 8 * delta.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(got.images - want.clip(0, 255)).max() <= 1
    assert got.manifest["parameters"]["scale"] == pytest.approx(8 / 255)
    assert got.manifest["statistics"]["linf_max"] <= 8.01 / 255
    torch.save({**content, "best": delta}, tmp_path / "two.pth")
    with pytest.raises(InputError, match=r"perturbation, best, not one array"):
        import_published(tmp_path / "two.pth", base, scale=8 / 255)
    for wrong in (0.0, 2.0):
        with pytest.raises(InputError, match=r"--scale .* must be in \(0, 1\]"):
            import_published(tmp_path / "cp.pth", base, scale=wrong)
