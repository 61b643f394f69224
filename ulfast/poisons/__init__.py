"""Poisons: methods that make images unlearnable."""

from .arrays import poison_arrays
from .base import Poison, Workplace
from .registry import POISONS, get_poison
from .run import Poisoning, perturbation, poison, write_poisoned, write_rows, write_shards

__all__ = [
    "POISONS",
    "Poison",
    "Poisoning",
    "Workplace",
    "get_poison",
    "perturbation",
    "poison",
    "poison_arrays",
    "write_poisoned",
    "write_rows",
    "write_shards",
]
