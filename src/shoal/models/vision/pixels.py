"""From a picture to the pixels that a tower looks at, as the model's makers did it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.errors import BadWeights, UsageError
from shoal.models.build.loader import REFUSED, first_line
from shoal.models.seam.vision import picture_processor
from shoal.models.vision.settings import MAX_ROWS, PatchSettings, VisionArray, VisionSettings

MAX_SCALED = 20_000_000
"""Pixels of a picture that is scaled before it is cut: one a pixel high would have millions."""
MAX_RATIO = 200
"""Of the sides of a picture that is cut into patches: Qwen-VL's processor takes no more."""


@dataclass(frozen=True, slots=True)
class PicturePixels:
    """What a tower looks at."""

    values: VisionArray
    """``[3, side, side]``; or patches ``[n, values]``, square by square."""
    rows: int
    """How many rows the tower makes of it."""
    grid: tuple[int, int] | None = None
    """How many rows it is high and wide, where that depends on its shape."""

    def digest(self) -> bytes:
        """Tells it from all others."""
        return hashlib.sha256(f"{self.grid}".encode() + self.values.tobytes()).digest()


def picture_pixels(picture: Any, settings: VisionSettings) -> PicturePixels:
    """What the tower looks at, of a picture of Pillow's.

    Raises:
        UsageError: it is so narrow that it cannot be scaled.
        BadWeights: the model's files make something else of it.
    """
    width, height = picture.size
    longest = max(width, height) / min(width, height)
    too_long = settings.shortest is not None and settings.shortest**2 * longest > MAX_SCALED
    if too_long or (settings.patches is not None and longest >= MAX_RATIO):
        raise UsageError(
            f"a picture of {width}×{height} pixels is too narrow to be scaled", check="cut it first"
        )
    try:
        processor = picture_processor(settings.processor, settings.processing)
        made = processor(picture.convert("RGB"), return_tensors="np")
        if settings.patches is not None:
            return _patches(made, settings.patches, settings.processor)
        pixels = np.ascontiguousarray(made["pixel_values"][0], np.float32)
    except REFUSED as error:
        raise BadWeights(
            f"{settings.processor} cannot make numbers of a picture: {first_line(error)}",
            check="check that the model's preprocessor_config.json is whole",
        ) from error
    if pixels.shape != (3, settings.side, settings.side) or not np.isfinite(pixels).all():
        raise _others(settings.processor, pixels, [3, settings.side, settings.side])
    return PicturePixels(pixels, settings.rows)


def empty_pixels(settings: VisionSettings) -> PicturePixels:
    """The smallest picture that a tower looks at."""
    patches = settings.patches
    if patches is None:
        return PicturePixels(np.zeros((3, settings.side, settings.side), np.float32), settings.rows)
    return PicturePixels(np.zeros((patches.merged**2, patches.values), np.float32), 1, (1, 1))


def _patches(made: Mapping[str, Any], patches: PatchSettings, processor: str) -> PicturePixels:
    pixels = np.ascontiguousarray(made["pixel_values"], np.float32)
    frames, high, wide = (int(number) for number in made["image_grid_thw"][0])
    grid = high // patches.merged, wide // patches.merged
    rows = grid[0] * grid[1]
    wanted = [rows * patches.merged**2, patches.values]
    if (
        frames != 1
        or not 0 < rows <= MAX_ROWS
        or list(pixels.shape) != wanted
        or not np.isfinite(pixels).all()
    ):
        raise _others(processor, pixels, wanted)
    return PicturePixels(pixels, rows, grid)


def _others(processor: str, pixels: VisionArray, wanted: list[int]) -> BadWeights:
    return BadWeights(
        f"{processor} makes {list(pixels.shape)} of a picture, and the tower looks at {wanted}",
        check="check that preprocessor_config.json and config.json are of the same model",
    )
