"""From a picture to the pixels that a tower looks at, as the model's makers did it."""

from __future__ import annotations

from typing import Any

import numpy as np

from shoal.errors import BadWeights, UsageError
from shoal.models.build.loader import REFUSED, first_line
from shoal.models.seam.vision import picture_processor
from shoal.models.vision.settings import VisionArray, VisionSettings

MAX_SCALED = 20_000_000
"""Pixels of a picture that is scaled before it is cut: one a pixel high would have millions."""


def picture_pixels(picture: Any, settings: VisionSettings) -> VisionArray:
    """float32 ``[3, side, side]`` of a picture of Pillow's.

    Raises:
        UsageError: it is so narrow that it cannot be scaled.
        BadWeights: the model's files make something else of it.
    """
    width, height = picture.size
    if settings.shortest is not None:
        longest = settings.shortest * max(width, height) / min(width, height)
        if settings.shortest * longest > MAX_SCALED:
            raise UsageError(
                f"a picture of {width}×{height} pixels is too narrow to be scaled", check="cut it first"
            )
    try:
        processor = picture_processor(settings.processor, settings.processing)
        made = processor(picture.convert("RGB"), return_tensors="np")["pixel_values"]
        pixels = np.ascontiguousarray(made[0], np.float32)
    except REFUSED as error:
        raise BadWeights(
            f"{settings.processor} cannot make numbers of a picture: {first_line(error)}",
            check="check that the model's preprocessor_config.json is whole",
        ) from error
    if pixels.shape != (3, settings.side, settings.side) or not np.isfinite(pixels).all():
        raise BadWeights(
            f"{settings.processor} makes {list(pixels.shape)} of a picture, and the tower looks at "
            f"{[3, settings.side, settings.side]}",
            check="check that preprocessor_config.json and config.json are of the same model",
        )
    return pixels
