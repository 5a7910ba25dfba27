"""How a picture, or a sound, becomes the numbers that a graph takes: what is written as
``size=224x224,scale=1/255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225``. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from shoal.errors import UsageError

PixelOrder = Literal["channels-first", "channels-last"]
Channels = Literal["rgb", "bgr", "gray"]
Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]

MAX_SIDE = 1 << 14
"""Pixels."""
MAX_TEXT = 512
"""Characters of a preprocessing that comes with a graph."""
MAX_RATE = 1 << 20


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What is done to a picture, in this order; ``None`` where the graph's input decides, or nothing is
    done. Of a sound only ``rate`` is used."""

    shortest: int | None = None
    """Pixels that the shorter side is scaled to; then ``size`` is cut out of the middle."""
    size: tuple[int, int] | None = None
    """Height and width. Without ``shortest`` the picture is stretched to it."""
    crop: tuple[int, int] | None = None
    """Height and width of what is cut out of the middle after that."""
    resample: Resample | None = None
    """By default bilinear."""
    channels: Channels | None = None
    """By default rgb, or gray for an input of one channel."""
    scale: float | None = None
    """What 0 to 255 is multiplied by: by default 1/255, and 1 for an input of integers."""
    mean: tuple[float, ...] | None = None
    """Taken off after that, one number for all channels or one for each."""
    std: tuple[float, ...] | None = None
    """Divided by after that."""
    layout: PixelOrder | None = None
    rate: int | None = None
    """Samples a second that a sound must have."""

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read what is written as ``NAME=VALUE,NAME=VALUE``.

        Raises:
            UsageError: a name or a value is none.
        """
        found: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            name = name.strip()
            if name not in READ:
                raise UsageError(
                    f"preprocessing has no {name[:40]!r}", check=f"it has {', '.join(READ)}, as NAME=VALUE"
                )
            try:
                found[name] = READ[name](value.strip())
            except (ValueError, OverflowError, ZeroDivisionError) as error:
                raise UsageError(
                    f"preprocessing: {name} cannot be {value[:40]!r}", check=f"write {name}={EXAMPLES[name]}"
                ) from error
        return cls(**found)

    def over(self, other: Preprocess) -> Preprocess:
        """This, and where it says nothing, what the other says."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(other, **{name: value for name, value in said.items() if value is not None})

    def __str__(self) -> str:
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return ",".join(f"{name}={_written(value)}" for name, value in said.items() if value is not None)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        numbers = cast("tuple[float, ...]", value)
        return ("x" if all(isinstance(number, int) for number in numbers) else ":").join(map(str, numbers))
    return str(value)


def _side(text: str) -> int:
    side = int(text)
    if not 0 < side <= MAX_SIDE:
        raise ValueError
    return side


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    return _side(height), _side(width if x else height)


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    number = float(above) / float(below) if slash else float(above)
    if not math.isfinite(number):
        raise ValueError
    return number


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(_number(number) for number in text.split(":"))
    if len(numbers) > 4:
        raise ValueError
    return numbers


def _divisors(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if not all(numbers):
        raise ValueError
    return numbers


def _rate(text: str) -> int:
    rate = int(text)
    if not 0 < rate <= MAX_RATE:
        raise ValueError
    return rate


def _one_of(kind: Any) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in get_args(kind):
            raise ValueError
        return text

    return read


READ: Mapping[str, Callable[[str], Any]] = {
    "shortest": _side,
    "size": _size,
    "crop": _size,
    "resample": _one_of(Resample),
    "channels": _one_of(Channels),
    "scale": _number,
    "mean": _numbers,
    "std": _divisors,
    "layout": _one_of(PixelOrder),
    "rate": _rate,
}
EXAMPLES: Mapping[str, str] = {
    "shortest": "256",
    "size": "224x224 (height, width)",
    "crop": "224x224 (height, width)",
    "resample": "|".join(get_args(Resample)),
    "channels": "|".join(get_args(Channels)),
    "scale": "1/255",
    "mean": "0.485:0.456:0.406",
    "std": "0.229:0.224:0.225",
    "layout": "|".join(get_args(PixelOrder)),
    "rate": "16000",
}
