"""Where poisons without a network are computed: on a named device, or on the CPU for "auto". A device that any machine
has, whose tensors do not mix with the CPU's, stands in for a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ulfast import ops, poison
from ulfast.grids.grid import Grid, Variant
from ulfast.grids.poisons import poisoned
from ulfast.poisons import POISONS
from ulfast.poisons.base import Workplace
from ulfast.poisons.run import Poisoning

THERE = torch.device("cpu", 0)  # not equal to torch.device("cpu")
METHODS = [name for name, one in POISONS.items() if not one.trains and name != "file"]
OPERATORS = {
    "ar": {"perturb_ar"},
    "cuda": {"perturb_convolution"},
    "lsp": {"perturb_lsp"},
    "ops": {"class_moments"},
    "pil": {"perturb_linear"},
    "swrandom": {"apply_perturbation", "philox_uniform"},
}


class There(torch.Tensor):
    """A tensor on the stand-in: it goes into functions with its like alone, and to NumPy by way of the CPU."""

    seen: ClassVar[set[str]] = set()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "") or str(func)
        cls.seen.add(name.partition(".")[0])
        with torch._C.DisableTorchFunctionSubclass():
            given = [v for v in (*args, *(kwargs or {}).values()) if isinstance(v, torch.Tensor) and v.dim()]
        assert all(isinstance(v, There) for v in given), f"{name}: tensors of two devices"
        assert name != "numpy", "a tensor of a device as an array"
        if name == "cpu":
            return args[0].as_subclass(torch.Tensor)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def there(monkeypatch):
    """A Workplace on the stand-in."""
    philox = ops.philox_uniform

    def draw(*given: Any, device: torch.device | str = "cpu") -> torch.Tensor:
        drawn = philox(*given, device=device)
        return drawn.as_subclass(There) if device == THERE else drawn

    def to(self: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        moved = plain(self, *given, **options)
        return moved.as_subclass(There) if THERE in given else moved

    plain = torch.Tensor.to
    monkeypatch.setattr(ops, "philox_uniform", draw)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(There, "device", THERE)
    There.seen.clear()
    return Workplace(device=THERE)


def images_of(dataset, method, work, **parameters):
    return np.concatenate([out for _, _, out in Poisoning(dataset, method, seed=3, work=work, **parameters)])


@pytest.mark.parametrize("method", [*METHODS, "pil published"])
def test_on_a_device_that_is_named(make_dataset, there, method):
    """Everything the operator takes is moved there, and the bytes are the same."""
    dataset, name = make_dataset(30), method.split()[0]
    more = {"preset": "published"} if " " in method else {}
    got = images_of(dataset, name, there, **more)
    wanted = OPERATORS.get(method, {"softmax"} if more else {"apply_perturbation"})
    assert wanted - {"philox_uniform"} <= There.seen
    There.seen.clear()
    assert np.array_equal(got, images_of(dataset, name, Workplace(device="cpu"), **more))
    assert not There.seen


def test_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Workplace().device.type == "cuda"
    assert Workplace().noise_device.type == "cpu"
    assert Workplace(device="cuda").noise_device.type == "cuda"
    assert Workplace(device=torch.device("cuda", 1)).noise_device.index == 1
    assert Workplace(device="cpu").noise_device.type == "cpu"


def test_the_cpu_by_name_is_the_same_path(make_dataset):
    dataset = make_dataset(30)
    named, auto = (poison(dataset, "lsp", seed=3, device=device) for device in ("cpu", "auto"))
    assert named.checksum() == auto.checksum()
    assert named.manifest == auto.manifest
    tensor = torch.zeros(3)
    assert Workplace(device="cpu").place(tensor) is tensor


def test_a_grid_makes_them_on_the_cpu(make_dataset, monkeypatch, tmp_path):
    """Wherever it trains, or a cell's images would depend on the machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    dataset = make_dataset(30)
    (cell,) = Grid("g", "sample", (Variant("lsp", "lsp"),), (Variant("none", "none"),)).cells()
    assert (
        poisoned(cell, dataset, tmp_path, "cuda").checksum() == poison(dataset, "lsp", seed=cell.poison_seed).checksum()
    )
