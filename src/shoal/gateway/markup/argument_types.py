"""Which type of JSON an argument has that a model wrote as plain text: the function's schema tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn, cast

TEXT = frozenset({"string"})
"""The types of what is a text and nothing else."""
_REFERENCES = 8
"""``$ref``s and alternatives within each other that are followed to find a type."""


def types_of(schema: object, root: Mapping[str, Any], depth: int = 0) -> frozenset[str] | None:
    """The types of JSON that a schema permits; ``None`` where it does not say.

    Args:
        root: the schema around it, which has its definitions.
    """
    if not isinstance(schema, dict) or depth > _REFERENCES:
        return None
    field = cast("dict[str, Any]", schema)
    if isinstance(reference := field.get("$ref"), str):
        return types_of(_referred(reference, root), root, depth + 1)
    if (kinds := field.get("type")) is not None:
        listed = cast("list[object]", kinds) if isinstance(kinds, list) else [kinds]
        return frozenset(kind for kind in listed if isinstance(kind, str))
    values = [field["const"]] if "const" in field else field.get("enum")
    if isinstance(values, list) and values:
        return frozenset(map(_type_of, cast("list[object]", values)))
    several = field.get("anyOf", field.get("oneOf"))
    found = (
        [types_of(one, root, depth + 1) for one in cast("list[object]", several)]
        if isinstance(several, list)
        else []
    )
    known = [one for one in found if one is not None]
    return frozenset[str]().union(*known) if known and len(known) == len(found) else None


def _referred(reference: str, root: Mapping[str, Any]) -> object:
    here: object = root
    for part in reference.removeprefix("#/").split("/") if reference.startswith("#/") else ():
        here = here.get(part) if isinstance(here, dict) else None
    return None if here is root else here


def _type_of(value: object) -> str:
    names: dict[type, str] = {
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
        dict: "object",
    }
    return names.get(type(value), "null")


def typed(text: str, types: frozenset[str] | None) -> object:
    """The value that a text in tags stands for, where it may be one of ``types``; else the text."""
    if types == TEXT:
        return text
    word = text.strip()
    try:
        value: object = json.loads(
            {"True": "true", "False": "false", "None": "null"}.get(word, word), parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        return text
    kind = _type_of(value)
    if types is None or kind in types or (kind == "integer" and "number" in types):
        return value
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return int(value)
    return text if "string" in types else value


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")
