"""The largest rank of the basis at which a fused kernel is faster than the library's matrix products.

A fused kernel reads the images once, and the basis again for every few rows; library products read the images twice
more, and the basis rarely. For the CPU these are the largest ranks measured by ``python benchmarks/crossover.py`` at
which the kernel won for images of 32 and of 224 px, by a fifth or more except for `ingest` (the table is in
docs/research/kernels.md). float16 was not measured and is assumed to behave like bfloat16. The ranks are lower on a
machine with a faster matrix product. The ranks for CUDA are where the kernels run out of registers, and have not been
measured: `project` uses the tensor cores up to 128, where by the bounds in csrc/cuda/project_mma.cu it takes a half to
two thirds of the library's time in float32 (computed, not measured), and plain cores up to `CUDA_CORES_RANK` on rows
that the tensor cores do not take.
"""

from __future__ import annotations

import torch

_U8, _F16, _BF16, _F32, _F64 = torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64

# {device: {operator: {dtype of the images: largest rank of the fused kernel}}}
FUSED_RANK = {
    "cpu": {
        "project": {_U8: 256, _F16: 128, _BF16: 128, _F32: 128, _F64: 128},
        "project_classwise": {_U8: 256, _F16: 256, _BF16: 256, _F32: 128, _F64: 96},
        "ingest": {_U8: 64, _F16: 32, _BF16: 32, _F32: 24, _F64: 96},
    },
    "cuda": {
        "project": {_U8: 128, _F16: 128, _BF16: 128, _F32: 128, _F64: 32},
        "project_classwise": {_U8: 32, _F16: 32, _BF16: 32, _F32: 32, _F64: 32},
        "ingest": {_U8: 32, _F16: 32, _BF16: 32, _F32: 32, _F64: 32},
    },
}

# The same for `project` on rows that the tensor cores do not take: few, unaligned, or of odd width.
CUDA_CORES_RANK = 32


def fused(device: str, op: str, dtype: torch.dtype, rank: int) -> bool:
    """Whether `op` uses its fused kernel for images of `dtype` and a basis of `rank` rows (per class)."""
    return rank <= FUSED_RANK[device][op][dtype]
