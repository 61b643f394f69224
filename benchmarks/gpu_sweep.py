"""A few small calls of every CUDA kernel, compared with its twin: the load for compute-sanitizer.

compute-sanitizer python benchmarks/gpu_sweep.py      --dry: on the CPU, to test this file
"""

from __future__ import annotations

import sys

import torch

from ulfast import ops
from ulfast.ops import cuda, reference


def main() -> int:
    dry = "--dry" in sys.argv[1:]
    if not dry and not (torch.cuda.is_available() and cuda.enabled("project", torch.device("cuda"))):
        sys.exit("gpu_sweep.py: needs a GPU, a build with nvcc and ULFAST_CUDA_KERNELS=1.")
    device = torch.device("cpu" if dry else "cuda")
    worst = 0.0
    torch.manual_seed(0)

    def check(name: str, got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
        nonlocal worst
        off = float((got.double() - want.double()).abs().max()) if got.numel() else 0.0
        worst = max(worst, off / tolerance)
        if not off <= tolerance:
            sys.exit(f"gpu_sweep.py: {name} is {off:g} from its twin, more than {tolerance:g}")

    for n, d, k in ((1, 1, 1), (9, 17, 3), (30, 3072, 10), (3, 150528, 2)):
        basis = torch.linalg.qr(torch.randn(d, k))[0].T.contiguous().to(device)
        labels = torch.arange(n, device=device) % 2
        for dtype in (torch.uint8, torch.float32, torch.bfloat16):
            x = (torch.rand(n, d, device=device) * 255).to(torch.uint8)
            x = x if dtype == torch.uint8 else (x / 255).to(dtype)
            limit = 2e-2 if dtype == torch.bfloat16 else 1e-4
            check("project", ops.project(x, basis), reference.project(x, basis), limit)
            both = torch.stack([basis, basis.flip(1)])
            want = reference.project_classwise(x, both, labels)
            check("project_classwise", ops.project_classwise(x, both, labels), want, limit)
    for n, h, w, c, k in ((1, 1, 1, 1, 0), (9, 5, 7, 3, 3), (20, 32, 32, 3, 9), (2, 224, 224, 3, 2)):
        images = torch.randint(0, 256, (n, h, w, c), dtype=torch.uint8, device=device)
        basis = torch.linalg.qr(torch.randn(h * w * c, max(1, k)))[0].T.contiguous().to(device)
        mean, std = torch.rand(c, device=device), torch.rand(c, device=device) + 0.2
        shift = torch.randint(-4, 5, (n, 2), dtype=torch.int32, device=device)
        flip, index = torch.arange(n, device=device) % 2 == 0, torch.arange(n, device=device).flip(0)
        arguments = (images, basis if k else None, mean, std, torch.bfloat16, index, shift, flip)
        check("ingest", torch.ops.ulfast.ingest(*arguments), reference.ingest(*arguments), 0.1)
    for n, d, classes in ((1, 1, 2), (30, 17, 3), (100, 3072, 10)):
        x = torch.randint(0, 256, (n, d), dtype=torch.uint8, device=device)
        labels = torch.arange(n, device=device) % classes
        ours = torch.randn(classes, d, device=device) * 0.1
        twin = ours.clone()
        got = ops.softmax_regression_step(x, labels, ours, 0.1)
        check("loss", got, reference.softmax_regression_step(x, labels, twin, 0.1), 1e-4)
        check("weight", ours, twin, 1e-4)
    images = torch.randint(0, 256, (7, 8, 8, 3), dtype=torch.uint8, device=device)
    delta, index = torch.rand(3, 8, 8, 3, device=device) - 0.5, torch.arange(7, device=device) % 3
    want = reference.apply_perturbation(images, delta, index)
    check("apply_perturbation", ops.apply_perturbation(images, delta, index=index), want, 1e-9)
    for norm in ("linf", "l2"):
        start, grad = torch.rand(7, 192, device=device), torch.randn(7, 192, device=device)
        ours, twin = start.clone(), start.clone()
        ops.pgd_step(ours, grad, start, alpha=0.1, eps=0.05, norm=norm)
        reference.pgd_step(twin, grad, start, 0.1, 0.05, norm)
        check("pgd_step", ours, twin, 1e-5)
    for name in ("philox_uniform", "philox_normal"):
        got, want = getattr(ops, name)(1, 2, 3, 7, 13, device=device), getattr(ops, name)(1, 2, 3, 7, 13)
        check(name, got.cpu(), want, 1e-9)
    for side, channels, classes in ((8, 1, 2), (9, 3, 3), (32, 3, 10)):
        images = torch.randint(0, 256, (7, side, side, channels), dtype=torch.uint8, device=device)
        labels, size = torch.arange(7, device=device) % classes, (side, side)
        windows = torch.rand(classes, channels, 3, 3, device=device) / 9
        filters = torch.rand(classes, 3, 3, device=device)
        patch = -(-side // 4)
        m = channels * (-(-side // patch)) ** 2
        centroids, mixing = torch.randn(classes, m, device=device), torch.rand(classes, m, m, device=device)
        for name, got, want, tolerance in (
            (
                "perturb_ar",
                ops.perturb_ar(labels, windows, seed=1, first=5, size=size, images=images),
                reference.perturb_ar(labels, windows, 1, 5, side, side, 1.0, "l2", images),
                1.0,
            ),
            (
                "perturb_lsp",
                ops.perturb_lsp(
                    labels,
                    centroids,
                    mixing,
                    seed=1,
                    first=5,
                    size=(*size, channels),
                    patch=patch,
                    norm=1.0,
                    images=images,
                ),
                reference.perturb_lsp(labels, centroids, mixing, 1, 5, side, side, channels, patch, 1.0, images),
                1.0,
            ),
            (
                "perturb_convolution",
                ops.perturb_convolution(images, labels, filters),
                reference.perturb_convolution(images, labels, filters),
                1.0,
            ),
        ):
            check(name, got, want, tolerance)
        sums, squares = ops.class_moments(images, labels, classes)
        for got, want in zip((sums, squares), reference.class_moments(images, labels, classes), strict=True):
            check("class_moments", got, want, 1e-9)
    for n, d, classes in ((1, 12, 2), (9, 3072, 10)):
        images = torch.randint(0, 256, (n, d), dtype=torch.uint8, device=device)
        labels, weight = torch.arange(n, device=device) % classes, torch.randn(classes, d, device=device) / 50
        arguments = (images, labels, weight, 5, 2 / 255, 8 / 255, 0.9)
        # A slope that is zero but for rounding sends a value the other way: all that is sure is the budget.
        check("perturb_linear", torch.ops.ulfast.perturb_linear(*arguments), reference.perturb_linear(*arguments), 16)
    if not dry:
        torch.cuda.synchronize()
    print(f"every kernel is within {worst:.2f} of its tolerance")
    return 0


if __name__ == "__main__":
    sys.exit(main())
