"""The filters and `count_changes` on the CPU: the calls, and the weights of `patch_filter`, laid out as vectors.

`patch_filter` is the operator to copy: an implementation checks its arguments, leaves to the twin what the kernel does
not take, makes its tensors contiguous and passes their addresses under the names of the struct's fields
(csrc/ulfast.h).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from . import _extension, reference
from .arguments import (
    DTYPES,
    address,
    check_count_changes,
    check_filter_images,
    check_patch_filter,
    check_shift_pixels,
    signed,
)
from .buffers import CPU, result, scratch
from .schemas import kernel

CHANNELS = (1, 2, 3, 4)  # each divides a block of the kernel
PIXELS = (torch.uint8, torch.float32)  # dtypes that the whole-image kernels read


@kernel("CPU")
def patch_filter(x: Tensor, filters: Tensor) -> Tensor:
    check_patch_filter(x, filters)
    n, h, w, c = x.shape
    library, threads = _extension.load(), torch.get_num_threads()
    lanes = library.patch_filter_lanes  # constants come from the extension, so that each is defined once
    if x.dtype != torch.float32 or c not in CHANNELS or w * c < lanes:
        return reference.patch_filter(x, filters)
    taps = filters.shape[0]
    starts, ids, places, there = _layout(taps, w, c, lanes)
    table = filters.float().reshape(taps, -1)[:, places].mul_(there).view(taps, len(places), -1).transpose(0, 1)
    x, table = x.contiguous(), table.contiguous()  # bound to names: an address must outlive the call
    sizes = {"n": n, "h": h, "w": w, "c": c, "taps": taps, "blocks": len(starts)}
    room, out = scratch(threads, library.patch_filter_scratch(**sizes)), result(x.shape, torch.float32)
    library.patch_filter(
        x=x.data_ptr(),
        table=table.data_ptr(),
        starts=starts.data_ptr(),
        ids=ids.data_ptr(),
        scratch=address(room),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    return out


@kernel("CPU")
def filter_images(x: Tensor, kernels: Tensor, clamp: bool = False) -> Tensor:
    check_filter_images(x, kernels, clamp)
    if x.dtype not in PIXELS or not x.numel():
        return reference.filter_images(x, kernels, clamp)
    n, h, w, c = x.shape
    library, threads = _extension.load(), torch.get_num_threads()
    x, kernels = x.contiguous(), kernels.float().contiguous()
    sizes = {"n": n, "h": h, "w": w, "c": c, "side": kernels.shape[1], "dtype": DTYPES[x.dtype], "clamp": clamp}
    room, out = scratch(threads, library.filter_images_scratch(**sizes)), result(x.shape, torch.float32)
    library.filter_images(
        x=x.data_ptr(),
        kernels=kernels.data_ptr(),
        scratch=address(room),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    return out


@kernel("CPU")
def shift_pixels(x: Tensor, seed: int, stream: int, first: int, reach: float) -> Tensor:
    check_shift_pixels(x, seed, stream, first, reach)
    if x.dtype not in PIXELS or not x.numel():
        return reference.shift_pixels(x, seed, stream, first, reach)
    n, h, w, c = x.shape
    library, threads = _extension.load(), torch.get_num_threads()
    x = x.contiguous()
    draws = {"seed": signed(seed), "stream": stream, "first": first, "reach": reach}
    sizes = {"n": n, "h": h, "w": w, "c": c, "dtype": DTYPES[x.dtype], **draws}
    room, out = scratch(threads, library.shift_pixels_scratch(**sizes)), result(x.shape, torch.float32)
    library.shift_pixels(
        x=x.data_ptr(),
        scratch=address(room),
        out=out.data_ptr(),
        **sizes,
        threads=threads,
    )
    return out


@kernel("CPU")
def count_changes(clean: Tensor, poisoned: Tensor) -> Tensor:
    sizes = check_count_changes(clean, poisoned)
    library = _extension.load()
    if not sizes["c"] or library.count_changes_block % sizes["c"]:
        return reference.count_changes(clean, poisoned)
    clean, poisoned = clean.contiguous(), poisoned.contiguous()
    out = result((len(clean), 5), torch.int64)
    library.count_changes(
        clean=clean.data_ptr(),
        poisoned=poisoned.data_ptr(),
        out=out.data_ptr(),
        **sizes,
        threads=torch.get_num_threads(),
    )
    return out


@functools.lru_cache(maxsize=8)
def _layout(taps: int, w: int, c: int, lanes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How an image row is cut into blocks of `lanes` values, and the weight by which each lane multiplies a shift.

    Returns:
        starts (blocks,) and ids (blocks,) of the blocks: blocks away from the border share one id; places (ids, taps,
        shifts, lanes) in the filters (taps, taps, taps, c, c) of a row kind, and whether a tap exists there.
    """
    r, line = taps // 2, w * c
    starts = list(range(0, line - lanes + 1, lanes))
    if starts[-1] + lanes < line:
        starts.append(line - lanes)
    integers = functools.partial(torch.arange, dtype=torch.int64, device=CPU)
    kinds: list[Tensor] = []
    ids: list[int] = []
    for start in starts:
        x = (start + integers(lanes)) // c
        # The filter of a column: by its distance to the nearer border, or the interior's.
        kind = torch.where(x < r, x, torch.where(x >= w - r, taps - (w - x), torch.full_like(x, r)))
        known = [i for i, other in enumerate(kinds) if torch.equal(other, kind)]
        ids.append(known[0] if known else len(kinds))
        if not known:
            kinds.append(kind)
    lane = integers(lanes) % c
    reach = r * c + c - 1
    shift = integers(-reach, reach + 1)[:, None] + lane  # (shifts, lanes): dx * c + input channel
    dx, channel = shift.div(c, rounding_mode="floor"), shift.remainder(c)
    there = (dx.abs() <= r).float()
    dx = (dx + r).clamp(0, taps - 1)
    rows = integers(taps)[:, None, None]
    places = torch.stack([(((kind * taps + rows) * taps + dx) * c + channel) * c + lane for kind in kinds])
    first, kind_of = (torch.tensor(values, dtype=torch.int64, device=CPU) for values in (starts, ids))
    return first, kind_of, places, there
