"""Pictures as files or bytes, opened within bounds."""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.errors import IncompatibleLibrary, ShoalError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
MAX_FILE = 64 << 20
"""Bytes of a file with a picture."""
MOST_SCANS = 100
"""Of a JPEG: each goes over all of the picture, however few bytes it has."""


def open_picture(source: Path | bytes, name: str, most_pixels: int, extra: str) -> Image:
    """A picture, turned as its camera was held.

    Args:
        name: what errors call it.
        most_pixels: that it may have: no more are unpacked.
        extra: what brings Pillow.

    Raises:
        UsageError: it is none that is read here, or has more pixels.
        IncompatibleLibrary: Pillow is not installed.
    """
    if find_spec("PIL") is None:
        raise IncompatibleLibrary(
            "pictures need Pillow, which is not installed",
            check=f"install the extra: pip install 'shoal[{extra}]'",
            next_command="shoal version",
        )
    from PIL import Image, ImageOps  # noqa: PLC0415 - of an extra

    try:
        # Of a file, too: what is opened is then what was looked at.
        data = picture_bytes(source, name)
        if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:
            raise UsageError(f"{name} has too many scans", check="save it as a baseline JPEG")
        file = io.BytesIO(data)
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as opened:
            warnings.simplefilter("ignore")  # our own bound is below
            if opened.width * opened.height > most_pixels:
                raise UsageError(
                    f"{name} has {opened.width}×{opened.height} pixels, and {most_pixels} are the most",
                    check="make it smaller first",
                )
            return ImageOps.exif_transpose(opened)
    except Image.DecompressionBombError as error:
        raise UsageError(f"{name} has too many pixels", check="make it smaller first") from error
    except ShoalError:
        raise
    except Exception as error:
        # What Pillow raises of broken files, and of what they say of a camera, is listed nowhere.
        raise UsageError(f"{name} cannot be read as a picture: {error}", check="give PNG or JPEG") from error


def picture_bytes(source: Path | bytes, name: str) -> bytes:
    """What a file holds. Raises UsageError: it cannot be read, or is too large."""
    if isinstance(source, bytes):
        return source
    try:
        if source.stat().st_size > MAX_FILE:
            raise UsageError(f"{name} has more than {MAX_FILE} bytes", check="make it smaller first")
        return source.read_bytes()
    except OSError as error:
        raise UsageError(f"{name} cannot be read as a picture: {error}", check="give PNG or JPEG") from error
