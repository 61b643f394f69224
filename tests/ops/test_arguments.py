"""A wrong argument gives the same error from the CPU's implementation, CUDA's, and the twin that serves other devices.

The wrong arguments are made from each operator's small call in the registry (ulfast/profiling), so that a new operator
is tested without a line here. CUDA's implementations run on CPU tensors: their checks come before anything of CUDA.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from ulfast.ops import arguments, cpu, cpu_filters, cpu_generators, cuda, cuda_generators, random, reference, schemas
from ulfast.profiling.check import samples

SAMPLES = samples()
FACTORIES = ("philox_uniform", "philox_normal")  # which choose their device themselves


def implementations(name):
    """{where: function} of an operator."""
    if name in FACTORIES:
        return {"everywhere": getattr(random, name)}
    found = {"twin": schemas.checked_twin(name)}
    for where, modules in (("CPU", (cpu, cpu_filters, cpu_generators)), ("CUDA", (cuda, cuda_generators))):
        for module in modules:
            if name in vars(module):
                found[where] = vars(module)[name]
    assert "CPU" in found
    return found


def outcome(run, given):
    """The type and the text of the error, or None."""
    given = [value.clone() if isinstance(value, torch.Tensor) else value for value in given]
    try:
        run(*given)
    except Exception as error:  # any error is compared
        return type(error), str(error)
    return None


def wrong(value):
    """What could stand in the place of an argument: {name: value}."""
    if isinstance(value, torch.Tensor):
        return {
            "elsewhere": value.to("meta"),
            "int16": value.to(torch.int16),
            "float64": value.to(torch.float64),
            "bool": value.bool(),
            "no dimension": value.flatten()[0],
            "flat": value.flatten(),
            "one more dimension": value[..., None],
            "a row less": value[:-1],
            "a column less": value[..., :-1],
            "with gaps": torch.stack([value, value], -1)[..., 0],
        }
    if isinstance(value, str):
        return {"another word": "l3"}
    if isinstance(value, torch.dtype):
        return {"int32": torch.int32, "float64": torch.float64}
    return {"negative": -value} if type(value) in (int, float) else {}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_every_wrong_argument_is_refused_identically(name):
    given = SAMPLES[name]
    for i, value in enumerate(given):
        for change, instead in wrong(value).items():
            if change == "elsewhere" and sum(isinstance(other, torch.Tensor) for other in given) == 1:
                continue  # its only tensor says where an operator runs
            said = {
                where: outcome(run, (*given[:i], instead, *given[i + 1 :]))
                for where, run in implementations(name).items()
            }
            # Values out of range are an error only on the CPU: a GPU is not synchronised.
            if name not in FACTORIES and said["CPU"] is not None and said["CPU"][0] is IndexError:
                continue
            assert len(set(said.values())) == 1, (name, i, change, said)
            if change == "elsewhere":
                kind, text = next(iter(said.values()))
                assert kind is ValueError
                assert " must be on " in text


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in FACTORIES])
def test_a_check_takes_what_its_operator_takes(name):
    check, twin = getattr(arguments, f"check_{name}"), getattr(reference, name)
    mine = {key: p.default for key, p in inspect.signature(check).parameters.items() if key != "op"}
    assert mine == {key: p.default for key, p in inspect.signature(twin).parameters.items()}
    schema = getattr(torch.ops.ulfast, name).default._schema
    assert list(mine) == [argument.name for argument in schema.arguments]


def test_the_dispatcher_says_the_same():
    x, bases, labels = torch.rand(6), torch.rand(2, 1, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"project_classwise: x must be .* at least two dimensions"):
        torch.ops.ulfast.project_classwise(x, bases, labels)
    with pytest.raises(TypeError, match=r"apply_perturbation: images must be .* uint8, got .* torch.float32"):
        torch.ops.ulfast.apply_perturbation(torch.rand(2, 3), torch.rand(2, 3))


def test_backends_do_not_import_each_other():
    for mine, other in (((cpu, cpu_filters, cpu_generators), "cuda"), ((cuda, cuda_generators), "cpu")):
        for module in mine:
            imported = {getattr(value, "__module__", "") or "" for value in vars(module).values()}
            imported |= {value.__name__ for value in vars(module).values() if inspect.ismodule(value)}
            assert not any(name.startswith(f"ulfast.ops.{other}") for name in imported), (module, imported)
