"""What a GGUF file's pairs say, as the type that it must have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from shoal.models.gguf.header import Scalar, Value, bad
from shoal.models.gguf.splits import Gguf


class NotCovered(Exception):
    """A file says something that is not converted here: it goes the way through transformers."""


class Fields:
    """The pairs of one model. Each method raises BadWeights where a value has another type, or cannot be."""

    def __init__(self, gguf: Gguf) -> None:
        self._gguf = gguf
        self.arch = self.text("general.architecture")

    def whole(self, key: str) -> int | None:
        """A whole number from 0; None where the file says nothing."""
        value = self._gguf.pairs.get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < 2**31:
            raise self._wrong(key, value)
        return value

    def size(self, key: str) -> int:
        """A whole number above 0 that must be there."""
        value = self.whole(key)
        if not value:
            raise bad(self._gguf.file, f"its header does not say {key}")
        return value

    def number(self, key: str) -> float | None:
        """A finite number; None where the file says nothing."""
        value = self._gguf.pairs.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value)
        return float(value)

    def text(self, key: str) -> str:
        """A text; empty where the file says nothing."""
        value = self._gguf.pairs.get(key, "")
        if not isinstance(value, str):
            raise self._wrong(key, value)
        return value

    def flag(self, key: str) -> bool | None:
        """Yes or no; None where the file says nothing."""
        value = self._gguf.pairs.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value)
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts; empty where the file says nothing."""
        value = self._list(key)
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value)
        return cast("list[str]", value)

    def numbers(self, key: str) -> list[float]:
        """A list of numbers; empty where the file says nothing."""
        value = self._list(key)
        if any(isinstance(item, str) for item in value):
            raise self._wrong(key, value)
        return cast("list[float]", value)

    def named(self, prefix: str) -> Iterable[str]:
        """The keys that begin with ``prefix``."""
        return (key for key in self._gguf.pairs if key.startswith(prefix))

    def is_list(self, key: str) -> bool:
        """Whether a value is a list, as where blocks differ."""
        return isinstance(self._gguf.pairs.get(key), list)

    def says(self, key: str) -> bool:
        """Whether the file says anything under ``key`` but 0."""
        return bool(self._gguf.pairs.get(key))

    def _list(self, key: str) -> list[Scalar]:
        value = self._gguf.pairs.get(key, [])
        if not isinstance(value, list):
            raise self._wrong(key, value)
        return value

    def _wrong(self, key: str, value: Value) -> Exception:
        return bad(self._gguf.file, f"{key} is {str(value)[:40]}, which cannot be")
