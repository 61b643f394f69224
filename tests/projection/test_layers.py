"""The layers and transforms in other models: their position, their inputs, and their warnings."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

import ulfast
from ulfast import ops
from ulfast.data.dataset import Dataset

SHAPE = (8, 8, 3)
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def rows(k: int = 4, d: int = 192, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0].T.float().contiguous()


def images(n: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture
def patches() -> ulfast.PatchBasis:
    generator = np.random.default_rng(0)
    data = Dataset(generator.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3, ("a", "b", "c"))
    return ulfast.fit_patches(data, patch=3, rank=2)


def layers(patches: ulfast.PatchBasis, **options: object) -> list[torch.nn.Module]:
    return [
        ulfast.OrthogonalProjection(rows(), **options),
        ulfast.PatchProjection(patches, **options),
        ulfast.MeanNoise(rows(), **options),
    ]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_layer_after_normalize_equals_one_before_it(
    which: int, memory: torch.memory_format, patches: ulfast.PatchBasis
) -> None:
    before, behind = layers(patches)[which], layers(patches, mean=MEAN, std=STD)[which]
    x = images().contiguous(memory_format=memory)
    torch.manual_seed(0)
    want = normalised(before(x))
    torch.manual_seed(0)
    torch.testing.assert_close(behind(normalised(x)), want, atol=2e-5, rtol=1e-5)


def test_a_mean_and_std_for_all_channels_and_rows_are_taken_too() -> None:
    x = images().permute(0, 2, 3, 1).flatten(1)
    want = (ops.project(x, rows()) - 0.5) / 0.25
    torch.testing.assert_close(ulfast.OrthogonalProjection(rows(), 0.5, 0.25)((x - 0.5) / 0.25), want)
    wide = torch.tensor(MEAN).repeat(64), torch.tensor(STD).repeat(64)
    want = (ops.project(x, rows()) - wide[0]) / wide[1]
    got = ulfast.OrthogonalProjection(rows(), MEAN, STD)((x - wide[0]) / wide[1])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_the_gradient_goes_through_a_normalised_batch() -> None:
    layer = ulfast.OrthogonalProjection(rows().double(), MEAN, STD).double()
    x = normalised(images(2)).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_of_a_normalised_batch_is_projected_in_float32(dtype: torch.dtype) -> None:
    x = normalised(images()).to(dtype)
    got = ulfast.OrthogonalProjection(rows(), MEAN, STD)(x)
    assert got.dtype == dtype
    want = ulfast.OrthogonalProjection(rows(), MEAN, STD)(x.float())
    assert torch.equal(got, want.to(dtype))


def test_mean_and_std_are_buffers_that_move_and_are_kept() -> None:
    layer = ulfast.OrthogonalProjection(rows(), MEAN, STD)
    assert {"mean", "std", "basis"} == set(layer.state_dict())
    assert {"basis"} == set(ulfast.OrthogonalProjection(rows()).state_dict())
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(normalised(images())), layer(normalised(images())))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": 0.5}, "mean and std belong together"),
        ({"std": 0.5}, "mean and std belong together"),
        ({"mean": 0.5, "std": 0.0}, "std must be above zero"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "mean and std have 2 values"),
    ],
)
def test_an_invalid_normalisation_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ulfast.OrthogonalProjection(rows(), **options)(images())


def test_stored_pixels_are_not_normalised() -> None:
    with pytest.raises(ValueError, match="uint8 is not normalised"):
        ulfast.OrthogonalProjection(rows(), MEAN, STD)((images() * 255).byte())


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("wrong", [normalised(images()), images() * 255, images() * 2 - 1])
def test_a_batch_outside_of_0_to_1_is_named_once(which: int, wrong: Tensor, patches: ulfast.PatchBasis) -> None:
    layer = layers(patches)[which]
    with pytest.warns(UserWarning, match=r"pixels in \[0, 1\], and this batch reaches from .* mean=, std="):
        layer(wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(wrong)


def test_pixels_are_accepted_without_a_warning(patches: ulfast.PatchBasis) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layer in layers(patches):
            layer(images())
        ulfast.OrthogonalProjection(rows())((images() * 255).byte())
        ulfast.OrthogonalProjection(rows())(ulfast.OrthogonalProjection(rows(seed=5))(images()))
        for layer in layers(patches, mean=MEAN, std=STD):
            layer(normalised(images()))
        torch.func.vmap(lambda x: x.sum())(images())


def test_a_compiled_layer_is_one_graph() -> None:
    layer = ulfast.OrthogonalProjection(rows(), MEAN, STD)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    x = normalised(images())
    torch.testing.assert_close(torch.compile(layer, backend=backend, fullgraph=True)(x), layer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("which", range(3))
def test_an_nhwc_batch_is_refused(which: int, patches: ulfast.PatchBasis) -> None:
    with pytest.raises(ValueError, match="looks like NHWC: permute"):
        layers(patches)[which](images().permute(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 3, 8, 8), (192,)])
def test_a_tensor_that_is_not_a_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ulfast.OrthogonalProjection(rows())(torch.rand(shape))


@pytest.mark.parametrize("make", [ulfast.OrthogonalProjection, ulfast.transforms.Project])
@pytest.mark.parametrize(
    "wrong",
    [
        rows() * 1.1,
        torch.randn(4, 192, generator=torch.Generator().manual_seed(0)),
        torch.cat([rows(), rows()[:1]]),
        rows() * float("nan"),
    ],
)
def test_rows_that_are_not_orthonormal_are_refused(make: type, wrong: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be orthonormal.*from_weights"):
        make(wrong)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounded_and_partial_rows_are_orthogonal_enough(dtype: torch.dtype) -> None:
    ulfast.OrthogonalProjection(rows().to(dtype))
    ulfast.OrthogonalProjection(rows() * torch.tensor([1.0, 0.5, 0.0, 0.9])[:, None])
    ulfast.OrthogonalProjection(torch.empty(0, 192, dtype=dtype))


def test_the_operators_take_a_basis() -> None:
    basis = ulfast.Basis(rows(), SHAPE)
    x = images().permute(0, 2, 3, 1).contiguous()
    want = ops.project(x, basis.rows)
    assert torch.equal(ulfast.project(x, basis), want)
    assert torch.equal(ulfast.project(x.flatten(1), basis), want.flatten(1))
    assert torch.equal(ulfast.project(x, basis, out=torch.empty_like(x)), want)
    assert torch.equal(ulfast.project_(x.clone(), basis), want)
    assert torch.equal(ops.ingest(x, basis, MEAN, STD), ops.ingest(x, basis.rows, MEAN, STD))
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) \(H, W, C\), the batch has \(3, 8, 8\)"):
        ulfast.project(images(), basis)


def test_a_loader_takes_a_basis_and_says_what_it_is() -> None:
    data = Dataset(np.random.default_rng(0).integers(0, 256, (10, *SHAPE), np.uint8), np.arange(10) % 2, ("a", "b"))
    basis = ulfast.Basis(rows(), SHAPE)
    loader = ulfast.MemoryLoader(data, 4, basis=basis)
    for (x, _), (y, _) in zip(loader, ulfast.MemoryLoader(data, 4, basis=basis.rows), strict=True):
        assert torch.equal(x, y)
    assert repr(loader).startswith("MemoryLoader(10 images, batch_size=4, batches=3")
    with pytest.raises(ValueError, match="the basis is for images"):
        ulfast.MemoryLoader(data, 4, basis=ulfast.Basis(rows(d=108), (6, 6, 3)))


def test_bases_compare_by_what_they_remove() -> None:
    basis, same = ulfast.Basis(rows(), SHAPE), ulfast.Basis(rows(), SHAPE, metadata={"seconds": 3})
    assert basis == same
    assert hash(basis) == hash(same)
    assert len({basis, same}) == 1
    assert basis != ulfast.Basis(rows(seed=3), SHAPE)
    assert basis != ulfast.Basis(rows(), (3, 8, 8))
    assert basis != ulfast.Basis(rows(), SHAPE, weights=rows())
    assert basis != "basis"
    assert repr(basis) == "Basis(4 directions of 8 x 8 x 3 images, torch.float32, cpu)"


@pytest.mark.slow
def test_a_type_checker_sees_a_name_that_is_not_there(tmp_path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "user.py"
    script.write_text("import ulfast\nulfast.nothere\nulfast.fit_basis\nulfast.ops.project\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache"), str(script)],
        capture_output=True,
        text=True,
    )
    assert '"nothere"' in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("error:") == 1, done.stdout
