"""`.beton`, FFCV's file format, read and written here without FFCV; `FFCVLoader` loads it with FFCV's threads."""

from .format import Beton, open_beton
from .loader import FFCVLoader
from .writer import BetonWriter, write_beton

__all__ = ["Beton", "BetonWriter", "FFCVLoader", "open_beton", "write_beton"]
