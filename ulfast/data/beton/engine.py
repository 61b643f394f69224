"""Importing FFCV without its side effects."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from pathlib import Path
from typing import Any

from ...errors import InputError

CHECKOUT = Path(__file__).resolve().parents[3]
# FFCV's own package asks for all of OpenCV and its headers; the script needs only part of them.
INSTALL = (
    "tools/ffcv.sh (or make setup) installs it"
    if (CHECKOUT / "tools" / "ffcv.sh").exists()
    else "pip install ffcv 'ulfast[ffcv]' installs it where OpenCV's and libturbojpeg's headers and pkg-config are; "
    "ulfast reads and writes .beton files without it"
)
_lock = threading.Lock()


def load() -> Any:
    """The module ffcv.

    Importing ffcv sets torch to one thread for the whole process, so the number is restored. Two of its loaders at once
    abort numba's default threading layer, so the OpenMP layer is chosen instead unless numba runs already.

    Raises:
        InputError: it is not installed, or does not load.
    """
    import torch

    with _lock:
        threads = torch.get_num_threads()
        try:
            os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
            import numba

            settings: Any = numba.config
            if settings.THREADING_LAYER in ("default", "workqueue"):
                settings.THREADING_LAYER = "omp"
            import ffcv
        except (ImportError, OSError) as error:
            raise InputError(f"FFCV is not usable ({error}): {INSTALL}") from None
        finally:
            torch.set_num_threads(threads)
    return ffcv


def version() -> str:
    """The installed version of FFCV; the one that the module states is wrong."""
    return importlib.metadata.version("ffcv")
