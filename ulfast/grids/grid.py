"""`Grid`: poisons x attacks x models x seeds, as given in a YAML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attacks import get_attack
from ..attacks.run import configure
from ..data.catalog import NAMES
from ..errors import InputError
from ..parameters import with_parameters
from ..poisons import get_poison
from ..registry import nearest, resolve
from ..runtime.made import expand
from ..runtime.reading import naming, read_yaml, shown
from ..training import build_model, get_recipe
from .literature import PUBLISHED

SHIPPED = Path(__file__).parent
CLEAN = "clean"
LONGEST_NAME = 120  # bytes: a seed and a checksum are appended in folder names


@dataclass(frozen=True)
class Variant:
    """A poison or an attack with its parameters, under the name shown in tables."""

    label: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One training: everything on which its result depends."""

    data: str
    limit: int | None
    resize: int | None
    poison: Variant
    attack: Variant
    model: str
    recipe: str
    epochs: int | None
    evaluate_every: int
    seed: int

    @property
    def path(self) -> str:
        """Its folder below that of the grid."""
        return f"cells/{self.poison.label}/{self.attack.label}/{self.model.replace(':', '-')}-seed{self.seed}"

    @property
    def poison_seed(self) -> int:
        """The seed of the poison: its own if the grid gives one, otherwise the cell's."""
        return int(self.poison.parameters.get("seed", self.seed))

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Grid:
    """A table of trainings.

    Attributes:
        name: name of the table.
        data: clean images: a path or a name.
        limit: class-balanced subset of the training images, the same for every seed.
        resize: scale the shorter side to this many pixels and take the centre square.
        poisons: rows; "clean" is the unchanged data.
        attacks: columns.
        models, seeds: every row and column is run with each of them. A seed determines the initialisation, the order,
            and the poison if its entry has no `seed` of its own.
        recipe, epochs: recipe and number of epochs.
        evaluate_every: epochs between two evaluations on the test images.
        published: name of a published table to show alongside.
    """

    name: str
    data: str
    poisons: tuple[Variant, ...]
    attacks: tuple[Variant, ...]
    models: tuple[str, ...] = ("cnn",)
    seeds: tuple[int, ...] = (0,)
    recipe: str = "quick"
    epochs: int | None = None
    limit: int | None = None
    resize: int | None = None
    evaluate_every: int = 1
    published: str | None = None

    def cells(self) -> list[Cell]:
        """The cells row by row, so that a poison is made once for all its attacks."""
        return [
            Cell(
                self.data,
                self.limit,
                self.resize,
                poison,
                attack,
                model,
                self.recipe,
                self.epochs,
                self.evaluate_every,
                seed,
            )
            for seed in self.seeds
            for model in self.models
            for poison in self.poisons
            for attack in self.attacks
        ]

    @classmethod
    def load(cls, source: str | Path) -> Grid:
        """Reads a YAML file, or one of the shipped grids by name.

        Raises:
            InputError: there is no such file, it is not YAML, or its content cannot be run; nothing has been trained
                then.
        """
        path = Path(source)
        if not path.is_file():
            shipped = SHIPPED / f"{path.name.removesuffix('.yaml')}.yaml"
            if not shipped.is_file():
                known = shipped_grids()
                raise InputError(
                    f"there is no grid {str(source)!r}{nearest(str(source), known)}: give a YAML file, or"
                    f" one of {', '.join(known)}"
                )
            path = shipped
        content = read_yaml(path)
        if not isinstance(content, dict):
            raise InputError(f"{path} must hold `key: value` lines")
        return cls.of({"name": path.stem, **content}, str(path))

    @classmethod
    def of(cls, content: dict[str, Any], where: str = "the grid", *, trained: bool = False) -> Grid:
        """Makes a grid from the content of a YAML file; every name and parameter is checked.

        Args:
            content: the mapping.
            where: named in errors.
            trained: it was trained already, so its data need not be here.

        Raises:
            InputError: as for `load`.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for key in content:
            if key not in known:
                raise InputError(
                    f"{where}: no key {key!r}{nearest(str(key), known)}: it takes {', '.join(sorted(known))}"
                )
        for key in ("data", "poisons", "attacks"):
            if not content.get(key):
                raise InputError(f"{where}: `{key}` is missing")
        with naming(where):
            return cls._of(content, where, trained)

    @classmethod
    def _of(cls, content: dict[str, Any], where: str, trained: bool) -> Grid:
        values = dict(content)
        values["poisons"] = _variants(content["poisons"], f"{where}: poisons")
        values["attacks"] = _variants(content["attacks"], f"{where}: attacks")
        for key, kind in (("models", str), ("seeds", int)):
            if key in content:
                items = content[key] if isinstance(content[key], list) else [content[key]]
                if not items or not all(isinstance(i, kind) and not isinstance(i, bool) for i in items):
                    raise InputError(f"{where}: {key} must be a list of {kind.__name__}")
                values[key] = tuple(items)
        for key in ("epochs", "limit", "resize", "evaluate_every"):
            value = values.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"{where}: {key} must be a whole number of at least 1, got {shown(value)}")
        for key in ("name", "data", "recipe", "published"):
            if values.get(key) is not None and not isinstance(values[key], (str, int, float)):
                raise InputError(f"{where}: {key} must be a word, got {shown(values[key])}")
            if values.get(key) is not None:
                values[key] = str(values[key])
        values["data"] = str(content["data"])
        grid = cls(**values)
        grid._check(where)
        if not trained and resolve(grid.data, NAMES) is None and not expand(grid.data).exists():
            raise InputError(f"{where}: there is no data set {grid.data!r}: give a path or one of {', '.join(NAMES)}")
        return grid

    def _check(self, where: str) -> None:
        for poison in self.poisons:
            if poison.method != CLEAN:
                name, plain = get_poison(poison.method)
                own = {key: value for key, value in poison.parameters.items() if key not in ("rate", "seed")}
                seed = poison.parameters.get("seed", 0)
                if not isinstance(seed, int) or isinstance(seed, bool):
                    raise InputError(f"{where}: a poison's seed must be a whole number, got {shown(seed)}")
                with_parameters(plain, name, own)
                rate = poison.parameters.get("rate", 1)
                if not isinstance(rate, (int, float)) or isinstance(rate, bool) or not 0 <= rate <= 1:
                    raise InputError(f"{where}: a poison's rate must be a number from 0 to 1, got {shown(rate)}")
            elif poison.parameters:
                raise InputError(f"{where}: clean data takes no parameters")
        for attack in self.attacks:
            configure(*get_attack(attack.method), attack.parameters)
        for model in self.models:
            get_recipe(self.recipe, model, self.limit or 50_000)
            build_model(model, num_classes=10, image_shape=(self.resize or 32, self.resize or 32, 3))
        if self.published is not None and self.published not in PUBLISHED:
            raise InputError(f"{where}: no published table {self.published!r}: known are {', '.join(PUBLISHED)}")


def _variants(items: Any, where: str) -> tuple[Variant, ...]:
    variants = []
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, str):
            item = {"method": item}
        if not isinstance(item, dict) or not isinstance(item.get("method"), str):
            raise InputError(f"{where}: an entry is a name, or a mapping with `method`, got {shown(item)}")
        parameters = {str(k).replace("-", "_"): v for k, v in item.items() if k not in ("name", "method")}
        label = str(item.get("name", item["method"]))
        wrong = not label.strip() or any(c in label for c in "/\\:") or label.startswith(".")
        if wrong or not label.isprintable() or len(label.encode()) > LONGEST_NAME:
            raise InputError(f"{where}: {shown(label)} cannot name a folder: choose another `name`")
        variants.append(Variant(label, item["method"], parameters))
    labels = [v.label for v in variants]
    for label in labels:
        if labels.count(label) > 1:
            raise InputError(f"{where}: {label!r} is given twice: give one of them another `name`")
    return tuple(variants)


def shipped_grids() -> list[str]:
    """Names of the grids in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))
