"""filter_images and shift_pixels: equal to their twins on every CPU level, size, dtype and thread count; what they
refuse."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops
from ulfast.ops import reference

SIZES = [
    (5, 32, 32, 3),
    (1, 7, 16, 3),
    (4, 9, 17, 1),
    (3, 1, 5, 3),
    (2, 40, 70, 3),
    (2, 6, 6, 5),
    (3, 1, 1, 3),
    (0, 8, 8, 3),
]


def pixels(size, dtype):
    g = torch.Generator().manual_seed(sum(size))
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=g)
    return images if dtype == torch.uint8 else (images / 255).to(dtype)


def kernels(n, side, seed=0):
    return torch.randn(n, side, side, generator=torch.Generator().manual_seed(seed)) / side


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_filters_match_their_twin(level, size, side, dtype):
    x, own = pixels(size, dtype), kernels(size[0], side)
    for clamp in (False, True):
        got = ops.filter_images(x, own, clamp=clamp)
        assert got.dtype == torch.float32
        want = reference.filter_images(x if dtype == torch.uint8 else x.double(), own.double(), clamp)
        torch.testing.assert_close(got.double(), want.double(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("side", [3, 7])
def test_a_filter_is_torchs_convolution_of_the_image_with_its_border_repeated(side):
    x, own = pixels((3, 11, 13, 3), torch.float64), kernels(3, side).double()
    padded = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (side // 2,) * 4, mode="replicate")
    for i in range(3):
        want = torch.nn.functional.conv2d(padded[i][:, None], own[i].view(1, 1, side, side))[:, 0].permute(1, 2, 0)
        torch.testing.assert_close(reference.filter_images(x, own)[i], want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("reach", [0.0, 0.8, 2.0])
@pytest.mark.parametrize("size", SIZES)
def test_shifts_match_their_twin(level, size, reach, dtype):
    reach = min(reach, *size[1:3])
    x = pixels(size, dtype)
    got = ops.shift_pixels(x, seed=3, stream=99, first=7, reach=reach)
    torch.testing.assert_close(got, reference.shift_pixels(x, 3, 99, 7, reach), atol=1e-6, rtol=0)


def test_without_reach_pixels_stay():
    x = pixels((2, 8, 8, 3), torch.uint8)
    assert torch.equal(ops.shift_pixels(x, seed=0, stream=1, first=0, reach=0.0), x / 255)


def test_a_pixel_is_read_as_far_away_as_its_own_numbers_say():
    """One bright column: a pixel's value is its distance to the column, across the border too."""
    x = torch.zeros(1, 16, 16, 3)
    x[:, :, 0] = 1
    got = ops.shift_pixels(x, seed=1, stream=2, first=5, reach=3.0)[0, ..., 0]
    steps = (ops.philox_uniform(1, 2, 5, 1, 512).view(16, 16, 2) * 2 - 1) * 3
    at = (torch.arange(16) + steps[..., 0]) % 16
    distance = torch.minimum(at, 16 - at)
    torch.testing.assert_close(got, (1 - distance).clamp_min(0), atol=1e-5, rtol=0)


def test_an_image_depends_on_its_number_alone(threads):
    x, own = pixels((9, 12, 20, 3), torch.uint8), kernels(9, 3)
    want, moved = ops.filter_images(x, own), ops.shift_pixels(x, seed=1, stream=2, first=4, reach=2.0)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(ops.filter_images(strided, own), want)
        assert torch.equal(ops.filter_images(x[3:7], own[3:7]), want[3:7])
        assert torch.equal(ops.shift_pixels(strided, seed=1, stream=2, first=4, reach=2.0), moved)
        assert torch.equal(ops.shift_pixels(x[3:7], seed=1, stream=2, first=7, reach=2.0), moved[3:7])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_formats_are_kept(dtype):
    x = pixels((2, 8, 8, 3), dtype)
    assert ops.filter_images(x, kernels(2, 3)).dtype == dtype
    assert ops.shift_pixels(x, seed=0, stream=1, first=0, reach=1.0).dtype == dtype


@pytest.mark.parametrize(
    ("x", "own", "error", "message"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2, 3, 3), ValueError, r"\(n, H, W, C\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.int32), torch.zeros(2, 3, 3), TypeError, "uint8 or floating"),
        (torch.zeros(2, 8, 8, 3), torch.zeros(2, 4, 4), ValueError, "K odd"),
        (torch.zeros(2, 8, 8, 3), torch.zeros(3, 3, 3), ValueError, r"\(2, K, K\)"),
        (torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 3, dtype=torch.int32), TypeError, "floating point"),
    ],
)
def test_what_a_filter_refuses(x, own, error, message):
    with pytest.raises(error, match=message):
        ops.filter_images(x, own)


@pytest.mark.parametrize("reach", [-0.1, 8.5, float("nan")])
def test_a_reach_is_at_most_the_image(reach):
    with pytest.raises(ValueError, match="reach must lie"):
        ops.shift_pixels(torch.zeros(1, 8, 9, 3), seed=0, stream=1, first=0, reach=reach)
