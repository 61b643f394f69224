"""patch_filter: equal to its twin on every CPU level, size and thread count; what it refuses."""

from __future__ import annotations

import pytest
import torch

from ulfast import ops
from ulfast.ops import reference


def make(n, h, w, c, taps, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + h + w + c)
    x = torch.rand(n, h, w, c, generator=g).to(dtype)
    return x, torch.randn(taps, taps, taps, taps, c, c, generator=g) / taps


@pytest.mark.parametrize(
    ("size", "taps"),
    [
        ((5, 32, 32, 3), 5),
        ((1, 7, 16, 3), 7),
        ((4, 9, 17, 3), 3),
        ((2, 13, 50, 1), 13),
        ((3, 5, 24, 2), 5),
        ((2, 5, 13, 4), 3),
        ((2, 40, 70, 3), 9),
        ((1, 5, 5, 3), 5),
        ((2, 6, 6, 5), 3),
        ((0, 8, 32, 3), 3),
    ],
)
def test_matches_its_twin(level, size, taps):
    x, filters = make(*size, taps)
    want = reference.patch_filter(x.double(), filters)
    got = ops.patch_filter(x, filters)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)


def test_any_thread_count_and_strides(threads):
    x, filters = make(11, 12, 20, 3, 5)
    want = ops.patch_filter(x, filters)
    strided = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    for count in (1, 2, 5):
        threads(count)
        assert torch.equal(ops.patch_filter(strided, filters), want)
        # Images do not depend on those that come with them, but for the order of no sum.
        assert torch.equal(ops.patch_filter(x[3:10], filters), want[3:10])


def test_nothing_leaks_in_from_outside_an_image():
    x, filters = make(4, 8, 16, 3, 3)
    x[1] = torch.nan
    got = ops.patch_filter(x, filters)
    assert torch.isfinite(got[[0, 2, 3]]).all()
    assert torch.isnan(got[1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_go_to_the_twin(dtype):
    x, filters = make(2, 8, 20, 3, 3, dtype)
    torch.testing.assert_close(ops.patch_filter(x, filters), reference.patch_filter(x, filters))


def test_registration():
    x, filters = make(2, 8, 16, 3, 3)
    torch.library.opcheck(torch.ops.ulfast.patch_filter.default, (x, filters))
    compiled = torch.compile(ops.patch_filter, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, filters), ops.patch_filter(x, filters))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8, 16, 3, dtype=torch.uint8)}, "floating format"),
        ({"x": torch.zeros(2, 8, 16)}, "must be"),
        ({"x": torch.zeros(2, 2, 16, 3)}, "sides of 3 or more"),
        ({"filters": torch.zeros(3, 3, 3, 3, 3, 1)}, "filters must be"),
        ({"filters": torch.zeros(4, 4, 4, 4, 3, 3)}, "T odd"),
    ],
)
def test_errors(change, message):
    x, filters = make(2, 8, 16, 3, 3)
    with pytest.raises(ValueError, match=message):
        ops.patch_filter(**{"x": x, "filters": filters, **change})
