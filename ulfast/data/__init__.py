"""Data sets: reading, writing, downloading and feeding them to a network."""

from .dataset import Dataset
from .load import load_dataset
from .loader import Augment, MemoryLoader, channel_statistics
from .names import NAMES, fetch
from .readers import READERS
from .writer import DatasetWriter, write_dataset

__all__ = [
    "NAMES",
    "READERS",
    "Augment",
    "Dataset",
    "DatasetWriter",
    "MemoryLoader",
    "channel_statistics",
    "fetch",
    "load_dataset",
    "write_dataset",
]
