"""Pictures as the numbers that a graph takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shoal.client.vision.picture_files import open_picture
from shoal.errors import UsageError
from shoal.executor.arrays import Array
from shoal.models.graph.manifest import GraphValue, sizes_text
from shoal.models.graph.preprocess import PixelOrder, Preprocess

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Of a picture that is opened, or scaled before it is cut."""
MAX_MADE = 20_000_000
"""Pixels of what a graph is given: in three colours and float32 nearly what goes in one message. Who serves
the graph may be who says its size."""
SEVERAL = (1, 3)
"""How many channels a picture's input has."""


def picture_array(file: Path, how: Preprocess, value: GraphValue) -> Array:
    """A picture as one of a graph's inputs: with a first size of 1 where that has four.

    Raises:
        UsageError: it cannot be read, or ``how`` does not say enough, or what the input does not take.
        IncompatibleLibrary: Pillow is not installed.
    """
    sides = _Sides.of(value, how.layout)
    picture = open_picture(file, str(file), MAX_PIXELS, "graph")
    count = sides.channels or (1 if how.channels == "gray" else 3)
    wanted = how.size or (sides.size if min(sides.size) > 0 and how.crop is None else None)
    if wanted is not None:
        _check_pixels(*wanted)
    if how.channels == "gray":
        picture = picture.convert("L")  # an input of three channels has it three times
    picture = _resized(picture.convert("L" if count == 1 else "RGB"), how, wanted)
    if how.crop is not None:
        _check_pixels(*how.crop)
        picture = _cut(picture, how.crop)
    _check_pixels(picture.height, picture.width)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, count)
    if how.channels == "bgr":
        pixels = pixels[..., ::-1]
    numbers = _scaled(pixels, how, value)
    if sides.layout == "channels-first":
        numbers = numbers.transpose(2, 0, 1)
    return np.ascontiguousarray(numbers[None] if sides.batch else numbers)


class _Sides:
    """Where an input has its channels, and how large it wants pictures to be."""

    def __init__(
        self, layout: PixelOrder, channels: int | None, size: tuple[int, int], *, batch: bool
    ) -> None:
        self.layout = layout
        self.channels = channels
        self.size = size
        """Height and width; -1 where any will do."""
        self.batch = batch

    @classmethod
    def of(cls, value: GraphValue, layout: PixelOrder | None) -> _Sides:
        shape = value.shape if value.shape is not None else (-1,) * 4
        if len(shape) not in (3, 4):
            raise UsageError(
                f"the input {value.name[:80]!r} takes no picture: it is {sizes_text(shape)}",
                check="give it an array, as .npy, .npz or .json",
            )
        first, last = shape[-3], shape[-1]
        if layout is None:
            if (first in SEVERAL) == (last in SEVERAL):
                raise UsageError(
                    f"the input {value.name[:80]!r} is {sizes_text(shape)}, and where are its channels?",
                    check="say --preprocess layout=channels-first, or channels-last",
                )
            layout = "channels-first" if first in SEVERAL else "channels-last"
        channels, height, width = shape[-3:] if layout == "channels-first" else (last, *shape[-3:-1])
        if channels > 0 and channels not in SEVERAL:
            raise UsageError(
                f"the input {value.name[:80]!r} is {sizes_text(shape)}: by the layout {layout} it has "
                f"{channels} channels, and pictures have 1 or 3",
                check="say another --preprocess layout, or give it an array, as .npy, .npz or .json",
            )
        return cls(layout, channels if channels > 0 else None, (height, width), batch=len(shape) == 4)


def _check_pixels(height: int, width: int) -> None:
    if height * width > MAX_MADE:
        raise UsageError(
            f"the graph would be given {width}×{height} pixels, and {MAX_MADE} are the most",
            check="say a smaller one: --preprocess size=HEIGHTxWIDTH",
        )


def _resized(picture: Image, how: Preprocess, wanted: tuple[int, int] | None) -> Image:
    from PIL import Image  # noqa: PLC0415 - of an extra

    resampling = Image.Resampling[(how.resample or "bilinear").upper()]
    if how.shortest:
        ratio = how.shortest / min(picture.size)
        width, height = (max(how.shortest, round(side * ratio)) for side in picture.size)
        if width * height > MAX_PIXELS:
            raise UsageError(f"scaled to {how.shortest} the picture has {width}×{height} pixels")
        picture = picture.resize((width, height), resampling)
        if wanted is None:
            return picture
        return _cut(picture, wanted)
    if wanted is None or wanted == (picture.height, picture.width):
        return picture
    return picture.resize((wanted[1], wanted[0]), resampling)


def _cut(picture: Image, size: tuple[int, int]) -> Image:
    """Height and width out of the middle."""
    height, width = size
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _scaled(pixels: Array, how: Preprocess, value: GraphValue) -> Array:
    whole = np.dtype(value.dtype).kind in "iu"
    scale = how.scale if how.scale is not None else 1.0 if whole else 1 / 255
    mean, std = (_each(numbers, pixels.shape[-1]) for numbers in (how.mean, how.std))
    if whole and scale == 1.0 and mean is None and std is None:
        return pixels.astype(value.dtype)
    numbers = pixels * np.float64(scale)  # in float32, 255 / 255 would not be 1
    numbers = numbers if mean is None else numbers - mean
    numbers = numbers if std is None else numbers / std
    return numbers.astype(np.float32)


def _each(numbers: tuple[float, ...] | None, channels: int) -> Array | None:
    if numbers is None:
        return None
    if len(numbers) not in (1, channels):
        raise UsageError(
            f"preprocessing has {len(numbers)} numbers for {channels} channels",
            check="give one number, or one for each channel in their order",
        )
    return np.array(numbers, np.float64)
