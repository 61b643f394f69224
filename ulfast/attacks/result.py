"""The result of an attack."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..projection.basis import Basis
from ..runtime.files import atomic_file, write_json
from ..runtime.reading import reading, regular

# The JSON type of each field type.
KINDS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "dict": dict, "list": list}


@dataclass
class AttackResult:
    """Accuracies are shares from 0 to 1, on clean test images unless `config` says otherwise.

    Attributes:
        method, poison, model, recipe, seed: what was run; poison is "" if the data does not name it.
        train_accuracy: accuracy on the last epoch's batches as used in training (augmented, projected).
        test_accuracy: accuracy of the network trained by the attack.
        baselines: test accuracy of the same network trained on the `clean` and the `poisoned` images, if run.
        history: one row per epoch; `baseline_history` holds the same for the baselines.
        seconds: durations of `fit`, `project`, `train`, `evaluate`.
        images_per_second: speed of the training.
        notes: what the attack found (rank of the basis, accuracy of the linear fit).
        basis: the basis that was projected out, or None.
    """

    method: str
    poison: str
    model: str
    recipe: str
    seed: int
    train_accuracy: float
    test_accuracy: float
    baselines: dict[str, float]
    history: list[dict[str, float]]
    seconds: dict[str, float]
    images_per_second: float
    config: dict[str, Any]
    environment: dict[str, Any]
    baseline_history: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    basis: Basis | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the basis, JSON-serialisable."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "basis"}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `basis.safetensors`, `history.csv` (all trainings) and, last, `result.json`."""
        folder = Path(folder)
        if self.basis is not None:
            self.basis.save(folder / "basis.safetensors")
        trainings = {**self.baseline_history, "attack": self.history}
        with atomic_file(folder / "history.csv") as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["training", *self.history[-1]])
            writer.writeheader()
            for name, rows in trainings.items():
                writer.writerows({"training": name, **row} for row in rows)
        write_json(folder / "result.json", self.to_dict())

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> AttackResult:
        """Reads what `save` wrote, without the basis.

        Raises:
            InputError: the folder holds no finished result.
        """
        import json

        path = Path(folder) / "result.json"
        if not path.exists():
            raise InputError(f"{folder} holds no result: run `ulfast attack --out {folder}`")
        with reading(path, "run it again with --overwrite", "as a result of ulfast"):
            content = json.loads(regular(path).read_text(encoding="utf-8"))
            for f in fields(cls):
                kind = KINDS.get(str(f.type).partition("[")[0])
                if f.name in content and kind and not isinstance(content[f.name], kind):
                    raise ValueError(f"{f.name} is a {type(content[f.name]).__name__}")
            if not isinstance(content["config"]["data"], dict):
                raise ValueError("config says nothing of the data")
            if other := sorted(set(content["baselines"]) - {"clean", "poisoned"}):
                raise ValueError(f"a baseline {other[0]}")
            return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})
