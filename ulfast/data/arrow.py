"""The import of pyarrow, which only Parquet files need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError

HF = b"huggingface"  # key in the schema's metadata where `datasets` keeps the column types
OURS = b"ulfast"


def parquet(path: Path) -> Any:
    """The module pyarrow.parquet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import pyarrow.parquet as module
    except ImportError:
        raise InputError(f"{path}: Parquet files need pyarrow: pip install 'ulfast[parquet]'") from None
    return module
