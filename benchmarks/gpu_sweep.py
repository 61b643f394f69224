"""A few small calls of every CUDA kernel, compared with its twin on the CPU: the load for compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu_sweep.py [--kernels project,ingest] [--large]
    python benchmarks/gpu_sweep.py --dry      the kernels of the CPU, to test this file

Nothing but the kernels runs on the GPU. Every deviation is printed; the exit code is 1 if one is too large, and 3 if
the GPU answers no more, with the name of the call before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ulfast import ops
from ulfast.ops import crossover, cuda, reference

# Name of the kernel, what sets the call apart, what runs on the device (gets a function that brings a tensor there),
# what runs on the CPU, and how far apart they may be.
Put = Callable[[Tensor], Tensor]
Check = tuple[str, str, Callable[[Put], Any], Callable[[], Any], float]
U8, F16, BF16, F32, F64 = torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64
LIMITS = {U8: 1e-4, F32: 1e-4, F64: 1e-9, F16: 5e-3, BF16: 2e-2}


def rows_of(k: int, d: int) -> Tensor:
    """(k, d) short rows: nothing here needs orthonormal ones."""
    return torch.nn.functional.normalize(torch.randn(k, d), dim=1) / max(1, k) ** 0.5


def pixels(n: int, d: int, dtype: torch.dtype) -> Tensor:
    x = torch.randint(0, 256, (n, d), dtype=U8)
    return x if dtype == U8 else (x / 255).to(dtype)


def projections(large: bool) -> Iterator[Check]:
    # On the tensor cores of an H100, in one launch and in three.
    for n, d, k in ((1100, 1024, 24), (400, 3080, 40)):
        basis = rows_of(k, d)
        for dtype in (U8, F16, BF16, F32):
            x = pixels(n, d, dtype)
            yield (
                "project",
                f"{n} x {d}, k {k}, {dtype}",
                lambda put, x=x, b=basis: ops.project(put(x), put(b)),
                lambda x=x, b=basis: reference.project(x, b),
                LIMITS[dtype],
            )
    few = ((1, 1, 1), (9, 17, 3), (30, 3072, 10), (17, 100, 32), (3, 150528, 2))
    # From 1,056 rows on a block of an H100 takes more rows; from 7,200 values on these come in pieces.
    many = [(1100, 52, 9), (1100, 7300, 2)] + ([(1100, 3072, 16)] if large else [])
    for n, d, k in (*few, *many):
        basis = rows_of(k, d)
        labels = torch.arange(n) * 7 % 3
        bases = torch.stack([basis, basis.flip(1), basis.roll(1, 1)])
        for dtype in (F32,) if n * d > 1_000_000 else (U8, F16, BF16, F32, F64):
            x = pixels(n, d, dtype)
            b, bs = (t.double() if dtype == F64 else t for t in (basis, bases))
            note = f"{n} x {d}, k {k}, {dtype}"
            yield (
                "project",
                note,
                lambda put, x=x, b=b: ops.project(put(x), put(b)),
                lambda x=x, b=b: reference.project(x, b),
                LIMITS[dtype],
            )
            yield (
                "project_classwise",
                note,
                lambda put, x=x, b=bs, y=labels: ops.project_classwise(put(x), put(b), put(y)),
                lambda x=x, b=bs, y=labels: reference.project_classwise(x, b, y),
                LIMITS[dtype],
            )
    x, basis = pixels(40, 65, F32), rows_of(3, 64)
    yield (
        "project",
        "in place, misaligned",
        lambda put: ops.project_(put(x.flatten().clone())[1 : 1 + 40 * 64].view(40, 64), put(basis)),
        lambda: reference.project(x.flatten()[1 : 1 + 40 * 64].view(40, 64), basis),
        LIMITS[F32],
    )
    yield (
        "project",
        "rows with a stride",
        lambda put: ops.project(put(x)[:, 1:], put(basis)),
        lambda: reference.project(x[:, 1:], basis),
        LIMITS[F32],
    )


def ingests(large: bool) -> Iterator[Check]:
    shapes = [(1, 1, 1, 1, 0), (9, 5, 7, 3, 3), (20, 32, 32, 3, 9), (20, 32, 32, 3, 0), (2, 224, 224, 3, 2)]
    shapes += [(7, 9, 6, 4, 32), (1100, 8, 8, 3, 9)] + ([(1100, 32, 32, 3, 16)] if large else [])
    for n, h, w, c, k in shapes:
        images = torch.randint(0, 256, (n, h, w, c), dtype=U8)
        basis = rows_of(k, h * w * c) if k else None
        mean, std = torch.rand(c), torch.rand(c) + 0.2
        shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32)
        flip, index, labels = torch.arange(n) % 2 == 0, torch.arange(n).flip(0), torch.arange(n) % 2
        for dtype in (BF16, F32):
            for y in (None, labels) if basis is not None else (None,):
                b = basis if y is None else torch.stack([basis, basis.flip(1)])
                given = (images, b, mean, std, dtype, index, shift, flip, y)

                def ours(put: Put, given: tuple[Any, ...] = given) -> Tensor:
                    return torch.ops.ulfast.ingest(*(put(t) if isinstance(t, Tensor) else t for t in given))

                note = f"{n} x {h} x {w} x {c}, k {k}, {dtype}{', class-wise' if y is not None else ''}"
                yield (
                    "ingest",
                    note,
                    ours,
                    lambda given=given: reference.ingest(*given),
                    5e-2 if dtype == BF16 else 1e-3,
                )


def softmax() -> Iterator[Check]:
    for n, d, classes in ((1, 1, 2), (30, 17, 3), (100, 3072, 10), (300, 130, 17)):
        x, labels = pixels(n, d, U8), torch.arange(n) % classes
        start, index = torch.randn(classes, d) * 0.1, torch.arange(n).flip(0)

        def step(put: Put, of: Any, given: tuple[Tensor, ...] = (x, labels, start, index)) -> list[Tensor]:
            x, y, weight, index = (put(t) for t in given)
            weight = weight.clone()
            return [of.softmax_regression_step(x, y, weight, 0.1, index), weight]

        yield (
            "softmax_regression_step",
            f"{n} x {d}, {classes} classes",
            lambda put, step=step: step(put, torch.ops.ulfast),
            lambda step=step: step(lambda t: t, reference),
            1e-4,
        )


def others() -> Iterator[Check]:
    """The operators on images of any kind: apply_perturbation, pgd_step, philox."""
    images = torch.randint(0, 256, (7, 8, 9, 3), dtype=U8)
    delta, index = torch.rand(3, 8, 9, 3) - 0.5, torch.arange(7) % 3
    for truncate in (False, True):
        yield (
            "apply_perturbation",
            f"truncate {truncate}",
            lambda put, t=truncate: ops.apply_perturbation(put(images), put(delta), index=put(index), truncate=t),
            lambda t=truncate: reference.apply_perturbation(images, delta, index, t),
            1e-9,
        )
    for n, d in ((7, 192), (2, 30001)):
        start, grad = torch.rand(n, d), torch.randn(n, d)
        for norm in ("linf", "l2"):

            def stepped(start: Tensor = start, grad: Tensor = grad, norm: str = norm) -> Tensor:
                x = start.clone()
                reference.pgd_step(x, grad, start, 0.1, 0.05, norm)
                return x

            yield (
                "pgd_step",
                f"{n} x {d}, {norm}",
                lambda put, s=start, g=grad, norm=norm: ops.pgd_step(
                    put(s.clone()), put(g), put(s), alpha=0.1, eps=0.05, norm=norm
                ),
                stepped,
                1e-5,
            )
    for name in ("philox_uniform", "philox_normal"):
        for d in (13, 16):

            def drawn(put: Put, name: str = name, d: int = d) -> Tensor:
                return getattr(ops, name)(1, 2, 3, 7, d, device=put(torch.zeros(1)).device)

            yield "philox", f"{name}, {d} values", drawn, lambda drawn=drawn: drawn(lambda t: t), 1e-9


def generators(large: bool) -> Iterator[Check]:
    for side, channels, classes in ((8, 1, 2), (9, 3, 3), (32, 3, 10)):
        n = 64 if large else 7
        images = torch.randint(0, 256, (n, side, side, channels), dtype=U8)
        labels = torch.arange(n) % classes
        patch = -(-side // 4)
        m = channels * (-(-side // patch)) ** 2
        windows, filters = torch.rand(classes, channels, 3, 3) / 9, torch.rand(classes, 3, 3)
        centroids, mixing = torch.randn(classes, m), torch.rand(classes, m, m)
        given = {
            "perturb_ar": (labels, windows, 1, 5, side, side, 1.0, "l2", images),
            "perturb_lsp": (labels, centroids, mixing, 1, 5, side, side, channels, patch, 1.0, images),
            "perturb_convolution": (images, labels, filters),
            "class_moments": (images, labels, classes),
        }
        for name, values in given.items():

            def ours(put: Put, name: str = name, values: tuple[Any, ...] = values) -> Any:
                return getattr(torch.ops.ulfast, name)(*(put(v) if isinstance(v, Tensor) else v for v in values))

            tolerance = 1e-9 if name == "class_moments" else 1.0
            twin = getattr(reference, name)
            yield name, f"{side} px, {channels} channels", ours, lambda twin=twin, v=values: twin(*v), tolerance
    for n, d, classes in ((1, 12, 2), (9, 3072, 10)):
        images, labels = pixels(n, d, U8), torch.arange(n) % classes
        weight = torch.randn(classes, d) / 50
        rest = (5, 2 / 255, 8 / 255, 0.9)
        # A slope that is zero up to rounding may send a value the other way, so only the budget is checked.
        yield (
            "perturb_linear",
            f"{n} x {d}, {classes} classes",
            lambda put, given=(images, labels, weight), rest=rest: torch.ops.ulfast.perturb_linear(
                *(put(t) for t in given), *rest
            ),
            lambda given=(images, labels, weight), rest=rest: reference.perturb_linear(*given, *rest),
            16.0,
        )


def checks(large: bool) -> Iterator[Check]:
    yield from others()
    yield from projections(large)
    yield from ingests(large)
    yield from softmax()
    yield from generators(large)


def gap(got: Any, want: Any) -> float:
    """A NaN anywhere makes it infinite."""
    pairs = zip(*(t if isinstance(t, (list, tuple)) else [t] for t in (got, want)), strict=True)
    each = [(a.cpu().double() - b.double()).abs().nan_to_num(torch.inf) for a, b in pairs if b.numel()]
    return max((float(t.max()) for t in each), default=0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default="", metavar="A,B", help="only those whose name begins with one of these")
    parser.add_argument("--large", action="store_true", help="more work: not for racecheck")
    parser.add_argument("--dry", action="store_true", help="on the CPU")
    options = parser.parse_args()
    if not options.dry and not (torch.cuda.is_available() and cuda.enabled("project", torch.device("cuda"))):
        sys.exit("gpu_sweep.py: needs a GPU, a build with nvcc and ULFAST_CUDA_KERNELS=1.")
    wanted = tuple(name for name in options.kernels.split(",") if name)
    crossover.fused = lambda *_: True  # always the kernels, even where slower
    torch.manual_seed(0)
    worst, count, bad, before = 0.0, 0, [], "the start"
    for name, note, ours, twin, tolerance in checks(options.large):
        if wanted and not name.startswith(wanted):
            continue
        begun = time.monotonic()
        try:
            got = ours((lambda t: t) if options.dry else (lambda t: t.cuda()))
            if not options.dry:
                torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"gpu_sweep.py: {name} ({note}) failed, after {before}: {str(error).splitlines()[0]}", flush=True)
            return 3
        off, before, count = gap(got, twin()), f"{name} ({note})", count + 1
        worst = max(worst, off / tolerance)
        if not off <= tolerance:
            bad.append(f"{name} ({note}) is {off:g} from its twin, more than {tolerance:g}")
        print(f"{name} ({note}): {off:.2g}, {time.monotonic() - begun:.1f} s", flush=True)
    print(*bad, sep="\n", end="\n" if bad else "")
    if not count:
        sys.exit(f"gpu_sweep.py: no kernel is called {options.kernels}")
    print(f"{count} calls; the largest deviation is {worst:.2g} of its tolerance")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
