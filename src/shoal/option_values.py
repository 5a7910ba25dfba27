"""What an option's value may be written as: in a flag, a variable or ``config.toml``. Pure functions."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, cast

from shoal.errors import UsageError

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|TB|KiB|MiB|GiB|TiB)?\s*$", re.IGNORECASE)
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_size(text: str) -> int:
    """Bytes of ``"4GiB"``, ``"500 MB"`` or ``"1048576"``.

    Raises:
        UsageError: the text is not a size.
    """
    match = _SIZE.match(text)
    if not match:
        raise UsageError(f"{text!r} is not a size", check="write a number and a unit, for example 4GiB")
    return round(Fraction(match[1]) * _UNITS[(match[2] or "B").lower()])


def option_value(value: Any, kind: Any, *, size: bool = False) -> Any:
    """The value in the option's type. Text is read; a number or a list must be of the right type already.

    Args:
        kind: ``bool``, ``int``, ``float``, ``str`` or ``tuple[str, ...]``.
        size: whether text may be a size with a unit.

    Raises:
        ValueError: it is not of that type; says what is needed.
        UsageError: a text that is no size.
    """
    try:
        if size and isinstance(value, str):
            return parse_size(value)
        if kind == tuple[str, ...]:
            return _to_texts(value)
        if isinstance(value, str):
            return _to_bool(value) if kind is bool else kind(value.strip())
        # TOML's 1.0 is no port and its true no number of threads, though Python would take them.
        if type(value) is kind or (kind is float and type(value) is int):
            return kind(value)
        raise TypeError
    except (TypeError, ValueError) as error:
        raise ValueError(_spell(kind)) from error


def _to_texts(value: Any) -> tuple[str, ...]:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)):
        raise TypeError
    texts = cast("list[Any] | tuple[Any, ...]", items)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    return tuple(texts)


def _to_bool(value: str) -> bool:
    text = value.strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(value)


def _spell(kind: Any) -> str:
    names: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, "a list of texts")
