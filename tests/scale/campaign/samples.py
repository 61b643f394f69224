"""Small files of every kind that ulfast reads, whole: what part `readers` damages."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import ulfast
from ulfast import AttackResult, load_dataset, write_dataset
from ulfast.attacks.snapshots import Examples
from ulfast.cli.common import _read_config
from ulfast.data.beton import open_beton, write_beton
from ulfast.data.dataset import Dataset
from ulfast.data.export import export_dataset
from ulfast.data.load import load_splits
from ulfast.data.loaders.projected import Shards, write_projected
from ulfast.data.loaders.removal import Removal
from ulfast.data.png import png
from ulfast.grids import GridResult
from ulfast.grids.grid import Grid
from ulfast.poisons.ar import load_coefficients, save_coefficients
from ulfast.poisons.generator import Generator, load_generator, save_generator
from ulfast.poisons.imported import import_published
from ulfast.poisons.labels import _read as read_labels
from ulfast.projection.fit_state import FitState
from ulfast.runtime.files import save_tensors
from ulfast.training.checkpoint import load_weights
from ulfast.training.start import Start

COUNT, CLASSES = 12, 3


@dataclass(frozen=True)
class Sample:
    """What is read, and how.

    Attributes:
        place: file or folder; an error names a path in it.
        files: those that may be damaged.
        read: reads it all; what it returns is equal whenever the same was read.
        reader: of `READERS` or `LAYOUTS`, where it is one of them.
        checked: whether its files have checksums that are compared, so that it is read as it was written or not at
            all.
    """

    place: Path
    files: tuple[Path, ...]
    read: Callable[[], Any]
    reader: str = ""
    checked: bool = False


def images(seed: int = 0, n: int = COUNT, size: int = 8, channels: int = 3) -> Dataset:
    """Small smooth images of three classes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (n, 4, 4, channels)).repeat(size // 4, 1).repeat(size // 4, 2)
    return Dataset(coarse.astype(np.uint8), np.arange(n) % CLASSES, ("a", "b", "c"), "images", "train")


def content(dataset: Dataset) -> tuple[bytes, bytes]:
    """Every image and label of a data set."""
    return np.ascontiguousarray(dataset.images[:]).tobytes(), np.ascontiguousarray(dataset.labels).tobytes()


def samples(root: Path) -> dict[str, Sample]:
    """Writes them below `root`, a folder for each."""
    made = _Samples(root)
    for make in (
        made.of_ulfast,
        made.betons,
        made.archives,
        made.folders,
        made.cifar,
        made.binaries,
        made.pairs,
        made.shards,
        made.tables,
        made.published,
        made.state,
        made.settings,
    ):
        make()
    return made.found


class _Samples:
    def __init__(self, root: Path) -> None:
        self.root, self.found = root, dict[str, Sample]()
        self.data, self.test, self.wide = images(), images(1, 6), images(2, 6, 32)

    def folder(self, name: str) -> Path:
        place = self.root / name
        place.mkdir(parents=True)
        return place

    def add(
        self,
        name: str,
        place: Path,
        read: Callable[[], Any] | None = None,
        *,
        reader: str = "",
        checked: bool = False,
        only: tuple[Path, ...] = (),
    ) -> None:
        files = only or tuple(sorted(f for f in self.root.joinpath(name).rglob("*") if f.is_file()))
        self.found[name] = Sample(place, files, read or (lambda: content(load_dataset(place))), reader, checked)

    # data sets

    def of_ulfast(self) -> None:
        folder = self.folder("ulfast")
        write_dataset(folder / "d", self.data, self.test)
        train = tuple(sorted((folder / "d" / "train").iterdir()))
        self.add("ulfast", folder / "d", reader="ulfast", checked=True, only=train)
        self.folder("ulfast-splits")
        write_dataset(self.root / "ulfast-splits" / "d", self.data, self.test)
        self.add("ulfast-splits", self.root / "ulfast-splits" / "d", lambda: _splits(self.root / "ulfast-splits" / "d"))

    def betons(self) -> None:
        for mode in ("raw", "jpeg"):
            file = self.folder(f"beton-{mode}") / "x.beton"
            write_beton(file, self.data, mode=mode)
            self.add(f"beton-{mode}", file, reader="beton", checked=True)
        file = self.folder("beton-foreign") / "x.beton"
        write_beton(file, self.data, mode="jpeg")
        file.with_name("x.beton.json").unlink()
        self.add("beton-foreign", file, reader="beton")
        file = self.folder("beton-verified") / "x.beton"
        write_beton(file, self.data, mode="raw")

        def verified() -> Any:
            beton = open_beton(file)
            for i in range(len(beton)):
                beton.check(i)
            return len(beton)

        self.add("beton-verified", file, verified)

    def archives(self) -> None:
        file = self.folder("npz") / "x.npz"
        export_dataset(self.data, file, "npz", test=self.test)
        self.add("npz", file, lambda: content(load_dataset(file, verify=True)), reader="npz")
        packed = self.folder("npz-packed") / "x.npz"
        np.savez_compressed(packed, data=self.data.images / np.float32(255), targets=np.eye(CLASSES)[self.data.labels])
        self.add("npz-packed", packed, reader="npz")
        words = self.folder("npz-words") / "x.npz"
        np.savez(words, x=self.data.images, y=np.array(["cat", "dog", "eel"])[self.data.labels])
        self.add("npz-words", words, reader="npz")
        from scipy.io import savemat

        y = (np.arange(COUNT) % 10 + 1).astype(np.uint8)[:, None]
        for name, packed_too in (("svhn", False), ("svhn-packed", True)):
            folder = self.folder(name)
            wide = np.moveaxis(images(3, COUNT, 32).images, 0, 3)
            savemat(folder / "train_32x32.mat", {"X": wide, "y": y}, do_compression=packed_too)
            self.add(name, folder, reader="svhn")

    def folders(self) -> None:
        place = self.folder("imagefolder") / "d"
        export_dataset(self.data.subset(np.arange(6)), place, "imagefolder", test=self.test.subset(np.arange(3)))
        self.add("imagefolder", place, lambda: _splits(place), reader="imagefolder")
        mixed = self.folder("pictures")
        for i in range(12):
            kind = ("png", "jpg", "gif", "bmp", "webp", "tiff", "ppm", "png", "tiff", "png", "jpg", "tiff")[i]
            folder = mixed / f"class{i % 2}"
            folder.mkdir(exist_ok=True)
            image = Image.fromarray(self.data.images[i])
            more: dict[str, Any] = {}
            if i == 7:
                image = image.convert("P")
            elif i == 8:
                more = {"compression": "tiff_lzw"}
            elif i == 9:
                image = Image.fromarray(self.data.images[i, ..., 0].astype(np.uint16) << 8)
            elif i == 10:
                more = {
                    "progressive": True,
                    "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + bytes(4),
                }
            elif i == 11:
                more = {"compression": "jpeg"}
            image.save(folder / f"{i}.{kind}", **more)
        self.add("pictures", mixed, lambda: content(load_dataset(mixed, resize=8)), reader="imagefolder")
        self.folder("pictures-skipped")
        for i in range(6):
            folder = self.root / "pictures-skipped" / f"class{i % 2}"
            folder.mkdir(exist_ok=True)
            Image.fromarray(self.data.images[i]).save(folder / f"{i}.{'png' if i % 3 else 'jpg'}")
        skipped = self.root / "pictures-skipped"
        self.add("pictures-skipped", skipped, lambda: content(load_dataset(skipped, skip_damaged=True)))
        listed = self.folder("label-table")
        (listed / "train").mkdir()
        rows = ["file,label"]
        for i in range(6):
            Image.fromarray(self.data.images[i]).save(listed / "train" / f"{i}.png")
            rows.append(f"{i}.png,{'ab'[i % 2]}")
        (listed / "train.csv").write_text("\n".join(rows) + "\n")
        self.add("label-table", listed, reader="imagefolder")

    def cifar(self) -> None:
        planes = self.wide.images.transpose(0, 3, 1, 2).reshape(len(self.wide), -1)
        labels = self.wide.labels.tolist()
        python = self.folder("cifar-python")
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            (python / name).write_bytes(pickle.dumps({b"data": planes[:1], b"labels": [int(name[-1] == "2")]}, 2))
        (python / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, 2))
        self.add("cifar-python", python, lambda: content(load_dataset(python, split="test")), reader="cifar-python")
        hundred = self.folder("cifar-100")
        for name in ("train", "test"):
            about = {"data": planes, "fine_labels": labels, "coarse_labels": labels}
            (hundred / name).write_bytes(pickle.dumps(about, 4))
        (hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b", "c"]}, 4))
        self.add("cifar-100", hundred, reader="cifar-python")
        binary = self.folder("cifar-binary")
        for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
            (binary / name).write_bytes(np.c_[self.wide.labels.astype(np.uint8), planes][:2].tobytes())
        (binary / "batches.meta.txt").write_text("a\nb\nc\n")
        self.add("cifar-binary", binary, lambda: content(load_dataset(binary, split="test")), reader="cifar-binary")

    def binaries(self) -> None:
        gray = np.ascontiguousarray(self.data.images[..., 0])
        labels = (np.arange(COUNT) % 10).astype(np.uint8)
        head = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in gray.shape)
        for name, pack, suffix in (("idx", bytes, ""), ("idx-packed", gzip.compress, ".gz")):
            folder = self.folder(name)
            (folder / f"train-images-idx3-ubyte{suffix}").write_bytes(pack(head + gray.tobytes()))
            text = bytes((0, 0, 8, 1)) + COUNT.to_bytes(4, "big") + labels.tobytes()
            (folder / f"train-labels-idx1-ubyte{suffix}").write_bytes(pack(text))
            self.add(name, folder, reader="idx")
        letters = self.folder("idx-letters")
        (letters / "emnist-letters-train-images-idx3-ubyte").write_bytes(head + gray.tobytes())
        text = bytes((0, 0, 8, 1)) + COUNT.to_bytes(4, "big") + (self.data.labels + 1).astype(np.uint8).tobytes()
        (letters / "emnist-letters-train-labels-idx1-ubyte").write_bytes(text)
        (letters / "emnist-letters-mapping.txt").write_text("1 65 97\n2 66 98\n3 67 99\n")
        self.add("idx-letters", letters, reader="idx")
        stl = self.folder("stl10")
        pixels = np.random.default_rng(0).integers(0, 256, (10, 3, 96, 96), np.uint8)
        (stl / "train_X.bin").write_bytes(pixels.tobytes())
        (stl / "train_y.bin").write_bytes(bytes(range(1, 11)))
        (stl / "class_names.txt").write_text("\n".join("abcdefghij"))
        self.add("stl10", stl, reader="stl10")

    def pairs(self) -> None:
        folder = self.folder("npy-pair")
        np.save(folder / "x_train_a.npy", self.data.images / np.float32(255))
        np.save(folder / "y_train_a.npy", np.eye(CLASSES)[self.data.labels])
        self.add("npy-pair", folder, reader="npy-pair")
        file = self.folder("pickle") / "p.pkl"
        listed = [
            (image.tobytes(), int(label)) for image, label in zip(self.data.images, self.data.labels, strict=True)
        ]
        file.write_bytes(pickle.dumps(listed, 4))
        self.add("pickle", file, reader="pickle")
        arrays = self.folder("pickle-arrays") / "p.pickle"
        pairs = [(image, np.int64(label)) for image, label in zip(self.data.images, self.data.labels, strict=True)]
        arrays.write_bytes(pickle.dumps(pairs, 2))
        self.add("pickle-arrays", arrays, reader="pickle")

    def shards(self) -> None:
        place = self.folder("wds") / "d"
        export_dataset(self.data.subset(np.arange(6)), place, "wds", test=self.test, shard_size=3)
        self.add("wds", place, lambda: _splits(place), reader="wds")
        tar = self.folder("wds-pax") / "x.tar"
        with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
            for i in range(6):
                label = json.dumps({"label": int(self.data.labels[i])}).encode()
                picture = io.BytesIO()
                Image.fromarray(self.data.images[i]).save(picture, "JPEG")
                image = ("png", png(self.data.images[i])) if i % 2 else ("jpg", picture.getvalue())
                for suffix, raw in (image, ("json", label)):
                    member = tarfile.TarInfo(f"{'ö' * 60}/{i}.{suffix}")
                    member.size = len(raw)
                    archive.addfile(member, io.BytesIO(raw))
        self.add("wds-pax", tar, reader="wds")

    def tables(self) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError:  # an extra
            return
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = [{"bytes": png(one), "path": f"{i}.png"} for i, one in enumerate(self.data.images)]
        table = pa.table({"image": pa.array(pictures, kind), "label": pa.array(self.data.labels, pa.int64())})
        features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        for name, compression in (("parquet", "none"), ("parquet-packed", "zstd")):
            file = self.folder(name) / "train-0000.parquet"
            pq.write_table(table, file, row_group_size=5, compression=compression)
            self.add(name, file, reader="parquet")
        place = self.folder("parquet-export") / "d"
        export_dataset(self.data.subset(np.arange(6)), place, "parquet", test=self.test, shard_size=3)
        self.add("parquet-export", place, lambda: _splits(place), reader="parquet")

    # published poisons

    def published(self) -> None:
        base, rng = self.data, np.random.default_rng(0)
        delta = rng.integers(-8, 9, (COUNT, 8, 8, 3)).astype(np.float32) / 255
        planes = torch.from_numpy(delta).permute(0, 3, 1, 2).contiguous()

        def of(name: str, file: str, layout: str, save: Callable[[Path], object], with_base: bool = True) -> None:
            place = self.folder(f"published-{name}")
            save(place / file)
            source = place / file if file else place
            how = base if with_base else None
            read = lambda: content(import_published(source, how, layout=layout))  # noqa: E731
            self.add(f"published-{name}", source, read, reader=layout)

        def numbered(place: Path) -> None:
            (place / "data").mkdir()
            for i in range(COUNT):
                (place / "data" / f"{i}.png").write_bytes(png(base.images[i]))

        def lsp(place: Path) -> None:
            np.save(place / "simple_data.npy", delta)
            np.save(place / "simple_label.npy", base.labels)

        def ntga(place: Path) -> None:
            np.save(place / "x_train_n.npy", (base.images / 255).astype(np.float32))
            np.save(place / "y_train_n.npy", np.eye(CLASSES)[base.labels])

        def safetensors(path: Path) -> None:
            from safetensors.torch import save_file

            save_file({"delta": planes}, path)

        pixels = {"data": torch.from_numpy(base.images.copy()), "labels": base.labels.tolist()}
        levels = (delta * 255).astype(np.int8)
        pairs = [(image.tobytes(), int(label)) for image, label in zip(base.images, base.labels, strict=True)]
        of("pngs", "", "png-index", numbered)
        of("pt", "d.pt", "perturbation-pt", lambda p: torch.save(planes, p))
        of("pt-old", "d.pt", "perturbation-pt", lambda p: torch.save(planes, p, _use_new_zipfile_serialization=False))
        of("pt-several", "d.pth", "perturbation-pt", lambda p: torch.save({"a": {"d": planes}, "epoch": 3}, p))
        of("safetensors", "d.safetensors", "perturbation-pt", safetensors)
        of("images-pt", "d.pt", "images-pt", lambda p: torch.save(pixels, p))
        of("int8", "d.pkl", "int8-pickle", lambda p: p.write_bytes(pickle.dumps(levels)))
        of("lsp", "", "lsp-npy", lsp)
        of("ntga", "", "ntga-npy", ntga, with_base=False)
        of("pairs", "d.pkl", "pairs-pickle", lambda p: p.write_bytes(pickle.dumps(pairs)))
        of("images-npz", "d.npz", "images-npz", lambda p: np.savez(p, data=base.images, targets=base.labels), False)
        of("npy", "d.npy", "npy", lambda p: np.save(p, delta))
        of("npz", "d.npz", "npy", lambda p: np.savez_compressed(p, delta))
        exported = self.folder("published-export") / "d"
        export_dataset(base, exported, "png-index")
        self.add("published-export", exported, lambda: content(import_published(exported, base)), reader="png-index")

    # what ulfast keeps

    def state(self) -> None:
        basis = ulfast.fit_basis(self.data, steps=5, device="cpu")
        file = self.folder("basis") / "b.safetensors"
        basis.save(file)
        self.add("basis", file, lambda: ulfast.Basis.load(file).rows.shape)
        weights = self.folder("checkpoint") / "last.pt"
        save_tensors(weights, {"model": {"weight": torch.rand(16, 8)}, "state": {"epoch": 1}})
        read = lambda: {k: v.numpy().tobytes() for k, v in load_weights(weights).items()}  # noqa: E731
        self.add("checkpoint", weights, read, checked=True)
        part = self.folder("fit-state") / "b.safetensors.part.pt"
        bases = [(basis.rows, [8, 8, 3], basis.weights, basis.metadata)]
        identity = {"steps": 5, "seed": 0}
        save_tensors(part, {"identity": identity, "bases": bases, "step": 3, "weight": torch.rand(3, 8)})

        def fit() -> Any:
            state = FitState(part, True, identity)
            weight = None if state.weight is None else state.weight.numpy().tobytes()
            return state.step, weight, [one.rows.numpy().tobytes() for one in state.bases]

        self.add("fit-state", part, fit, checked=True)
        made = self.folder("generator") / "g.safetensors"
        save_generator(made, Generator(3, 1), {"eps": 8 / 255})
        self.add("generator", made, lambda: len(load_generator(made, 3)[0].state_dict()))
        given = self.folder("start") / "w.pth"
        torch.save({"state_dict": {"module.weight": torch.rand(16, 8)}, "epoch": 3}, given)
        self.add("start", given, lambda: sorted(Start(given, (8, 8, 3)).weights))
        safe = self.folder("start-safetensors") / "w.safetensors"
        save_file({"weight": torch.rand(16, 8)}, safe)
        self.add("start-safetensors", safe, lambda: sorted(Start(safe, (8, 8, 3)).weights))
        shards = self.folder("projected") / "p"
        write_projected(shards, self.data, Removal(rows=basis.rows))
        self.add("projected", shards, lambda: Shards(shards)[torch.arange(COUNT)].numpy().tobytes())
        snapshot = self.folder("examples") / "examples.npz"
        Examples(self.data.images[:3], self.data.images[3:6], None, ("a", "b", "c")).save(snapshot)
        self.add("examples", snapshot, lambda: Examples.load(snapshot).given.tobytes())
        windows = torch.rand(CLASSES, 3, 3, 3)
        coefficients = self.folder("coefficients")
        save_coefficients(windows, coefficients / "c.json")
        self.add("coefficients", coefficients, lambda: _windows(coefficients / "c.json"))
        for suffix, save in (
            (".npy", lambda p: np.save(p, windows.numpy())),
            (".pt", lambda p: torch.save(windows, p)),
        ):
            place = self.folder(f"coefficients{suffix}") / f"c{suffix}"
            save(place)
            self.add(f"coefficients{suffix}", place, lambda place=place: _windows(place))
        for suffix, save in (
            (".txt", lambda p: p.write_text(" ".join(map(str, self.data.labels)))),
            (".npy", lambda p: np.save(p, self.data.labels)),
            (".npz", lambda p: np.savez(p, labels=self.data.labels)),
        ):
            place = self.folder(f"labels{suffix}") / f"l{suffix}"
            save(place)
            self.add(f"labels{suffix}", place, lambda place=place: read_labels(place).tobytes())

    def settings(self) -> None:
        grid = self.folder("grid") / "g.yaml"
        grid.write_text(
            "name: g\ndata: sample\npoisons: [clean, {method: lsp, eps: 0.5, rate: 0.5}, &a {method: ops}]\n"
            "attacks: [none, orthogonal]\nseeds: [0, 1]\nepochs: 2\nlimit: 100\nmodels: resnet18\n"
        )
        self.add("grid", grid, lambda: Grid.load(grid))
        config = self.folder("config") / "c.yaml"
        config.write_text("epochs: 3\nmethod: orthogonal\nfit-steps: 20\nquiet: true\ndata: sample\n")
        command = _attack_command()
        option = next(one for one in command.params if one.name == "config")
        self.add("config", config, lambda: _read_config(click.Context(command), option, config))
        run = self.folder("result")
        result = {
            "method": "none", "poison": "lsp", "model": "tiny", "recipe": "fast", "seed": 0, "train_accuracy": 0.5,
            "test_accuracy": 0.4, "baselines": {"clean": 0.5}, "baseline_history": {"clean": [{"train_accuracy": 0.5}]},
            "history": [{"epoch": 1, "loss": 1.0}], "seconds": {"train": 1.0}, "environment": {"torch": "2"},
            "config": {"data": {"training_fingerprint": "x"}}, "images_per_second": 5.0,
        }  # fmt: skip
        (run / "result.json").write_text(json.dumps(result))
        self.add("result", run, lambda: AttackResult.load(run))
        folder = self.folder("grid-result")
        plain = {"name": "g", "data": "sample", "poisons": ["clean"], "attacks": ["none"], "seeds": [0]}
        (folder / "grid.json").write_text(json.dumps(plain))
        self.add("grid-result", folder, lambda: GridResult.load(folder).to_dict())


def _windows(file: Path) -> bytes:
    return load_coefficients(str(file), CLASSES, 3).numpy().tobytes()


def _splits(place: Path) -> Any:
    train, test = load_splits(place)
    return content(train), test and content(test)


def _attack_command() -> click.Command:
    from ulfast.cli.main import group

    command = group.get_command(click.Context(group), "attack")
    assert command is not None
    return command
