"""A config's ``quantization_config``, each value checked when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, UnsupportedModel

CONV1D = ("gpt2", "openai-gpt")
"""Families whose blocks' linear layers are ``[cols, rows]`` (transformers' Conv1D); their heads are not."""


@dataclass(frozen=True, slots=True)
class SchemeSettings:
    """What a checkpoint says of its quantisation."""

    folder: Path
    method: str
    """The scheme's name, as the config has it."""
    values: Mapping[str, Any]
    model_type: str

    def text(self, name: str, default: str) -> str:
        """A text, in small letters."""
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, value)
        return value.lower()

    def flag(self, name: str) -> bool:
        """Whether something is so; it is not where nothing is said."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, value)
        return bool(value)

    def size(self, name: str) -> int:
        """A whole number above 0."""
        return self.whole_number(name, self.values.get(name))

    def group_size(self) -> int:
        """How many weights of a row share a scale; -1: all of them."""
        value = self.values.get("group_size", 128)
        return -1 if value == -1 else self.whole_number("group_size", value)

    def pair(self, name: str, value: object) -> tuple[int, int]:
        """Two whole numbers above 0."""
        items = cast("list[object]", value) if isinstance(value, list) else []
        if len(items) != 2:
            raise self.wrong(name, value)
        return self.whole_number(name, items[0]), self.whole_number(name, items[1])

    def whole_number(self, name: str, value: object) -> int:
        """``value``, if it is a whole number above 0 as sizes are."""
        if type(value) is not int or not 0 < value < 2**31:
            raise self.wrong(name, value)
        return value

    def objects(self, name: str) -> dict[str, Mapping[str, Any]]:
        """An object of objects; empty where there is none."""
        value = self.values.get(name)
        found = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if (value is not None and not isinstance(value, dict)) or not all(
            isinstance(item, dict) for item in found.values()
        ):
            raise self.wrong(name, value)
        return found

    def turns(self, module: str) -> bool:
        """Whether a linear layer is stored as ``[rows, cols]`` that the model has turned."""
        return self.model_type in CONV1D and any(word.isdecimal() for word in module.split("."))

    def wrong(self, name: str, value: object) -> BadWeights:
        """The error about a value that cannot be."""
        return BadWeights(
            f"{self.folder / 'config.json'}: {name} of its quantization_config is {str(value)[:40]!r}",
            check="check that config.json is the one that came with the weights",
        )

    def unsupported(self, what: str, read: str) -> UnsupportedModel:
        """The error about a variant of a scheme that is not read, and which are."""
        return UnsupportedModel(
            f"{self.folder}: its weights are quantised by {self.method} {what}, which is not read",
            check=f"take another version of the model: of {self.method}, {read}",
        )
