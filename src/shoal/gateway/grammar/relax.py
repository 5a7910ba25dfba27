"""As much of a JSON schema as a grammar can keep to: what is refused is left out, and nothing else.

Whoever writes a tool does not know which keywords a grammar has no way to hold a model to: ``propertyNames``,
``not``, a pattern with a look-ahead, a reference to another document. What is left without them permits more,
never less. Which keyword it is, is found by trying: what compiles is taken, what does not is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

SchemaPath = tuple[str | int, ...]
SchemaChecker = Callable[[Mapping[str, Any]], str]
"""Why a schema cannot be enforced; empty where it can."""

TRIES = 96
"""Schemas that are tried for one that is refused. One bad keyword among a thousand takes twenty."""
UNKNOWN = "it was not found out in time whether it can be"
"""Why a keyword is left out of which nothing is known."""
SAYS_NOTHING = frozenset(
    {
        "title",
        "description",
        "default",
        "example",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
    }
)
"""Keywords that permit and forbid nothing."""
_DEFINITIONS = ("$defs", "definitions")
_MAPS = (*_DEFINITIONS, "properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems")
_NEEDS = {
    "additionalProperties": ("properties", "patternProperties"),
    "items": ("prefixItems",),
    "additionalItems": ("items",),
    "then": ("if",),
    "else": ("if",),
}
"""What a keyword is about the rest of: without those beside it, it would forbid more than it did."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A keyword that cannot be enforced."""

    path: str
    """Where it is, such as ``properties.email.pattern``; empty for the schema as a whole."""
    value: Any
    why: str

    @property
    def keyword(self) -> str:
        return self.path.rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Relaxed:
    """What is left of a schema, and what is not."""

    schema: dict[str, Any]
    left_out: tuple[LeftOut, ...]


def relax(schema: Mapping[str, Any], refused: SchemaChecker, *, least: Mapping[str, Any]) -> Relaxed:
    """What of ``schema``, which is refused, is not.

    Args:
        least: what is always kept, for example ``{"type": "object"}``.
    """
    # What a definition says comes last: only where something refers to it does it show what is refused.
    keywords = sorted(
        _keywords(schema, (), frozenset()),
        key=lambda keyword: keyword.path[0] in _DEFINITIONS and len(keyword.path) > 1,
    )
    fitting = _Fitting(schema, refused, least)
    kept = fitting.fit(keywords, frozenset())
    widened = [
        LeftOut(keyword.name, keyword.value, "more than one of its schemas may match")
        for keyword in keywords
        if keyword.path in kept and keyword.path[-1] == "oneOf"
    ]
    return Relaxed(fitting.built(kept), (*fitting.left_out, *widened))


@dataclass(frozen=True, slots=True)
class _Keyword:
    path: SchemaPath
    value: Any
    needs: frozenset[SchemaPath]
    """The keywords without which it is not kept: the one it is in, and those it is about the rest of."""

    @property
    def name(self) -> str:
        return ".".join(map(str, self.path))


class _Fitting:
    """Finds the keywords that can be kept, in few tries."""

    def __init__(self, schema: Mapping[str, Any], refused: SchemaChecker, least: Mapping[str, Any]) -> None:
        self._schema = schema
        self._refused = refused
        self._least = least
        self._tries = 0
        self.left_out: list[LeftOut] = []

    def built(self, kept: frozenset[SchemaPath]) -> dict[str, Any]:
        return {**_built(self._schema, (), kept), **self._least}

    def fit(self, keywords: Sequence[_Keyword], kept: frozenset[SchemaPath]) -> frozenset[SchemaPath]:
        """Add of ``keywords`` to ``kept`` what may be: all of them, or each half's."""
        there = kept.union(keyword.path for keyword in keywords)
        found = [keyword for keyword in keywords if keyword.needs <= there]
        if not found:
            return kept
        more = kept.union(keyword.path for keyword in found)
        why = self._try(more)
        if not why:
            return more
        if len(found) == 1 or why == UNKNOWN:  # of the halves no more would be found out
            self.left_out += [LeftOut(keyword.name, keyword.value, why) for keyword in found]
            return kept
        middle = len(found) // 2
        return self.fit(found[middle:], self.fit(found[:middle], kept))

    def _try(self, kept: frozenset[SchemaPath]) -> str:
        self._tries += 1
        if self._tries > TRIES:
            return UNKNOWN
        return self._refused(self.built(kept))


def _keywords(
    schema: Mapping[str, Any], path: SchemaPath, around: frozenset[SchemaPath]
) -> Iterator[_Keyword]:
    """Every keyword: outer ones before those inside, and each behind what it needs."""
    for name in sorted(schema, key=lambda name: (name not in _DEFINITIONS, name in _NEEDS)):
        if name in SAYS_NOTHING:
            continue
        here, value = (*path, name), schema[name]
        beside = {(*path, other) for other in _NEEDS.get(name, ()) if other in schema}
        yield _Keyword(here, value, around | beside)
        for inner, child in _children(name, value).items():
            yield from _keywords(child, (*here, *inner), frozenset({here}))


def _children(name: str, value: Any) -> dict[SchemaPath, Mapping[str, Any]]:
    """The schemas inside of a keyword that may be relaxed each by itself, by their way from it.

    What a schema must *not* match, or decides *if* another holds, is none: relaxed, it would forbid more.
    """
    if name in _MAPS and isinstance(value, dict):
        items = [((key,), child) for key, child in cast(dict[str, Any], value).items()]
    elif name in _LISTS and isinstance(value, list):
        items = [((place,), child) for place, child in enumerate(cast(list[Any], value))]
    else:
        items = [((), value)] if name in _ONES else []
    return {path: cast(dict[str, Any], child) for path, child in items if isinstance(child, dict)}


def _built(schema: Mapping[str, Any], path: SchemaPath, kept: frozenset[SchemaPath]) -> dict[str, Any]:
    """The schema with the keywords of ``kept`` alone. One of several becomes any of them, where it can."""
    made: dict[str, Any] = {}
    for keyword, value in schema.items():
        here = (*path, keyword)
        if here not in kept:
            continue
        children = _children(keyword, value).items()
        inner = {step: _built(child, (*here, *step), kept) for step, child in children}
        name = "anyOf" if keyword == "oneOf" and "anyOf" not in schema else keyword
        if () in inner:
            made[name] = inner[()]
        elif isinstance(value, list):
            made[name] = [inner.get((place,), child) for place, child in enumerate(cast(list[Any], value))]
        elif isinstance(value, dict):
            made[name] = {key: inner.get((key,), child) for key, child in cast(dict[str, Any], value).items()}
        else:
            made[name] = value
    return made
