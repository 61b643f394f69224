"""The operators of ulfast, for use in any training loop. Importing this module registers `torch.ops.ulfast`."""
# ruff: noqa: F401  (importing them registers the operators)

from . import (
    cpu,
    cpu_filters,
    cpu_generators,
    cuda,
    cuda_filters,
    cuda_generators,
    derivatives,
    philox,
    random,
    schemas,
)
from .schemas import *  # noqa: F403  (the public functions)

__all__ = ["philox"]
__all__ += schemas.__all__
