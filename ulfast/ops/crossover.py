"""Up to which rank of the basis a fused kernel is quicker than the library's matrix products.

A fused kernel reads the images once, and the basis for every few rows; a library product reads the images twice more,
and the basis seldom. For the CPU these are the largest ranks measured by ``python benchmarks/crossover.py`` at which
the kernel won for images of 32 and of 224 px, by a fifth or more where it is not `ingest` (the table is in
docs/research/kernels.md); float16 was not measured and is taken to be like bfloat16. They are lower on a machine with a
quicker matrix product. Those for CUDA are where the kernels' registers end, and have not been measured: `project` uses
the tensor cores up to 128, where by the bounds in csrc/cuda/project_mma.cu it takes a half to two thirds of the
library's time in float32 (computed, not measured), and up to `CUDA_CORES_RANK` on rows that they do not take.
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

# The same of `project` for rows that the tensor cores do not take: few, unaligned, or of an odd width.
CUDA_CORES_RANK = 32


def fused(device: str, op: str, dtype: torch.dtype, rank: int) -> bool:
    """Whether `op` takes its fused kernel for images of `dtype` and a basis of `rank` rows (per class)."""
    return rank <= FUSED_RANK[device][op][dtype]
