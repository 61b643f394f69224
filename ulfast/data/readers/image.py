"""One image file as uint8 pixels, or an error that names the file and the reason."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runtime.reading import reading, regular
from ..resize import centre_square, check_size

_QUIET = threading.Lock()  # all threads share Python's warning filters
# libjpeg's warnings after which all pixels are present; after any other, some are missing or made up. A few extra bytes
# are padding; more of them mean that the decoder lost its position.
HARMLESS = re.compile(r"\b[1-4] extraneous bytes|Invalid SOS parameters|Unknown Adobe color transform")
DEEP = 1 << 12  # a 16-bit image with a maximum below this has 16 grey levels or fewer left


def decode(
    file: Path | str,
    resize: int | None = None,
    *,
    channels: int = 3,
    notes: Counter[str] | None = None,
    read: Callable[[], bytes] | None = None,
) -> np.ndarray:
    """One image as (H, W, channels) uint8; with `resize`, the shorter side is scaled to it and the centre square taken.

    `read` returns the encoded bytes where `file` is only their name, such as a member of an archive.

    An alpha channel is dropped and the EXIF orientation is not applied, as in torchvision. 16-bit values are divided by
    256, and floats in [0, 1] are multiplied by 255. `notes` counts each of these cases.

    Raises:
        InputError: the file is not an image, is damaged or declared too large (`check_size`), or its range is unknown.
    """
    notes = Counter() if notes is None else notes
    with reading(file, "repair or remove it", "as an image"):
        data = read() if read is not None else regular(Path(file)).read_bytes()
        if not data:
            raise ValueError("it is empty")
        image = _jpeg(file, data, channels) if data[:3] == b"\xff\xd8\xff" else None
        if image is None:
            image = _pillow(file, data, channels, notes)
        elif _turned(data):
            notes["images with an EXIF orientation, which is not applied"] += 1
    return image if resize is None else centre_square(image, resize)


def _jpeg(file: Path | str, data: bytes, channels: int) -> np.ndarray | None:
    """Decodes a JPEG; None for the kinds that Pillow has to read."""
    try:
        import simplejpeg
    except ImportError:  # Pillow reads the same pixels, more slowly, and accepts damaged files
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    check_size(file, width, height)
    if space in ("CMYK", "YCCK"):
        return None
    try:
        image: np.ndarray = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "Gray")
    except ValueError as error:
        if HARMLESS.search(str(error)):
            return None
        raise InputError(f"{file} is a damaged JPEG ({error}): get it again, or say --skip-damaged") from None
    return image


def _pillow(file: Path | str, data: bytes, channels: int, notes: Counter[str]) -> np.ndarray:
    from PIL import Image

    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such sizes are refused below
            picture = Image.open(io.BytesIO(data))
        with picture:
            check_size(file, *picture.size)
            picture.load()
            if _turned_by_exif(picture):
                notes["images with an EXIF orientation, which is not applied"] += 1
            if picture.mode.startswith("I") or picture.mode == "F":
                return _deep(file, picture, channels, notes)
            if "A" in picture.mode or "transparency" in picture.info:
                notes["images with transparency, which is dropped"] += 1
            deep = _bits(picture, data) > 8
            image = np.asarray(picture.convert("RGB" if channels == 3 else "L"))
            if deep and 0 < image.max() < DEEP >> 8:
                raise InputError(
                    f"{file} has 16-bit pixels that reach {image.max()} of 255 once they are divided by 256: scale it"
                    " to 8 bits, as they are meant, and save it again"
                )
            if deep:
                notes["16-bit images, divided by 256"] += 1
    except Image.DecompressionBombError as error:
        raise InputError(f"{file} is declared too large ({error}): make it smaller") from None
    return image.reshape(*image.shape[:2], channels)


def _bits(picture: Any, data: bytes) -> int:
    """Bits per value, for files that Pillow reads as 8-bit colours whatever their depth."""
    if picture.format == "PNG":
        return data[24] if len(data) > 24 else 8
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (8,)))
    return 8


def _deep(file: Path | str, picture: Any, channels: int, notes: Counter[str]) -> np.ndarray:
    """16-bit and float images as 8 bits."""
    values = np.asarray(picture)
    wrong = ""
    if picture.mode == "F":
        if not np.isfinite(values).all():
            wrong = "has NaN or infinite pixels"
        elif values.min() < 0 or values.max() > 1:
            wrong = f"has float pixels from {values.min():.4g} to {values.max():.4g}, not in [0, 1]"
        else:
            notes["float images, multiplied by 255"] += 1
            values = np.rint(values * 255)
    elif values.min() < 0 or values.max() > 65535:
        wrong = f"has whole pixels from {values.min()} to {values.max()}, not of 16 bits"
    elif 0 < values.max() < DEEP:
        wrong = f"has 16-bit pixels that reach {values.max()} of 65,535 only"
    else:
        notes["16-bit images, divided by 256"] += 1
        values = values.astype(np.int64) >> 8
    if wrong:
        raise InputError(f"{file} {wrong}: scale it to 8 bits, as they are meant, and save it again")
    return np.ascontiguousarray(values.astype(np.uint8)[..., None].repeat(channels, 2))


def _turned_by_exif(picture: Any) -> bool:
    """Whether EXIF asks to rotate or mirror an image; it must be loaded, as PNGs may have EXIF at the end."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about damaged EXIF, on which no pixel depends
        return picture.getexif().get(0x0112, 1) not in (0, 1)


def _turned(data: bytes) -> bool:
    """Whether a JPEG's EXIF asks to rotate or mirror it."""
    at = data.find(b"Exif\0\0", 0, 1 << 16)
    if at < 0:
        return False
    from PIL import Image

    exif = Image.Exif()
    try:
        exif.load(data[at : at + (1 << 16)])
        return exif.get(0x0112, 1) not in (0, 1)
    except Exception:  # damaged EXIF, on which no pixel depends
        return False
