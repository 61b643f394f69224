"""pyarrow, which only Parquet needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError

HF = b"huggingface"  # key of the schema's metadata under which `datasets` keeps the types of columns
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
