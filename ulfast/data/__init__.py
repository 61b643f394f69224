"""Data sets: reading, writing, downloading and feeding them to a network."""

from .catalog import NAMES, fetch
from .dataset import Dataset
from .load import load_dataset
from .loaders.augment import Augment
from .loaders.memory import MemoryLoader
from .objects import from_hf
from .readers import READERS
from .tensors import channel_statistics
from .writers.folder import DatasetWriter, write_dataset

__all__ = [
    "NAMES",
    "READERS",
    "Augment",
    "Dataset",
    "DatasetWriter",
    "MemoryLoader",
    "channel_statistics",
    "fetch",
    "from_hf",
    "load_dataset",
    "write_dataset",
]
