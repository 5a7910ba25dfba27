"""Arguments of a call as they come, in the form that the model's family writes them, and read into JSON."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from pydantic_core import from_json

from shoal.gateway.markup.argument_types import TEXT, typed, types_of
from shoal.gateway.markup.reasoning import overlap
from shoal.gateway.schema.common import LONGEST_NAME

NAME = rf"[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}"
_ESCAPES = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
"""What a backslash begins in JSON; ``half`` is one of the two escapes of a character without the other."""
DEEPEST = 64
"""Brackets within each other in a call that is written in Python."""
MAX_BETWEEN = 256
"""Characters of what may begin one more argument."""


class ArgumentsReader(Protocol):
    """Reads the arguments of one call."""

    closed: bool
    """Whether they have come to their end."""

    def push(self, text: str) -> tuple[str, str]:
        """More of the JSON, as far as it is certain; and once it is closed, the text behind it."""
        ...

    def finish(self) -> str:
        """The rest of the JSON at the end of the answer. A value that was cut off stays so: half a path is
        another path."""
        ...


class JsonArguments:
    """Arguments that are JSON already: they end with the brace that closes the first."""

    def __init__(self) -> None:
        self._nesting = Nesting()
        self.closed = False

    def push(self, text: str) -> tuple[str, str]:
        end = self._nesting.end(text)
        self.closed = self._nesting.closed
        return text[:end], text[end:]

    def finish(self) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Tags:
    """How arguments are written in tags."""

    head: re.Pattern[str]
    """What stands before them; its group is the function's name."""
    argument: re.Pattern[str]
    """What stands before the value of one; its group is the argument's name."""
    begins: tuple[str, ...]
    """How what may stand between two arguments begins."""
    closing: str
    """What ends a value."""
    margin: str = ""
    """What the value has behind it that is not its own."""


XML = Tags(
    re.compile(rf"<function=({NAME})>"),
    re.compile(r"\s*<parameter=([^>\n]{1,64})>(?:\n|(?=[^\n]))"),
    ("<parameter=",),
    "</parameter>",
    "\n",
)
"""Qwen3-Coder: ``<function=f><parameter=a>1</parameter></function>``."""
KEYED = Tags(
    re.compile(rf"({NAME})\s*(?=<arg_key>|</tool_call>)"),
    re.compile(r"\s*<arg_key>\s*(\S.{0,63}?)\s*</arg_key>\s*<arg_value>"),
    ("<arg_key>",),
    "</arg_value>",
)
"""GLM: ``f<arg_key>a</arg_key><arg_value>1</arg_value>``."""


class TaggedArguments:
    """Arguments in tags. A text is given out as it comes; what may be another type, at its end.

    Args:
        schema: of the function's arguments: ``1`` is a number, or a text, by its type there.
    """

    def __init__(self, tags: Tags, schema: Mapping[str, Any]) -> None:
        self._tags = tags
        self._schema = schema
        self._held = ""
        self._names: set[str] = set()
        self._types: frozenset[str] | None = None
        self._in_value = self._again = False
        self.closed = False

    def push(self, text: str) -> tuple[str, str]:
        self._held += text
        made: list[str] = []
        while (more := self._value() if self._in_value else self._between()) is not None:
            made.append(more)
        return "".join(made), self._held if self.closed else ""

    def finish(self) -> str:
        return "" if self._in_value or self.closed else self._close()

    def _close(self) -> str:
        self.closed = True
        return "}" if self._names else "{}"

    def _between(self) -> str | None:
        """What comes behind a value, or behind the function's name; None until more text comes."""
        if self.closed:
            return None
        if (match := self._tags.argument.match(self._held)) is None:
            rest = self._held.lstrip()
            may_be = any(one.startswith(rest) or rest.startswith(one) for one in self._tags.begins)
            return None if may_be and len(rest) < MAX_BETWEEN else self._close()
        name, first = match[1].strip(), not self._names
        self._held, self._in_value = self._held[match.end() :], True
        self._again = name in self._names
        if self._again:  # JSON would have it twice
            return ""
        self._names.add(name)
        properties: object = self._schema.get("properties")
        field = cast("dict[str, Any]", properties).get(name) if isinstance(properties, dict) else None
        self._types = types_of(field, self._schema)
        begun = f"{'{' if first else ', '}{json.dumps(name, ensure_ascii=False)}: "
        return begun + '"' if self._is_text else begun

    @property
    def _is_text(self) -> bool:
        return self._types == TEXT

    def _value(self) -> str | None:
        place = self._held.find(self._tags.closing)
        if place < 0:
            return self._part() if self._is_text and not self._again else None
        value, self._held = self._held[:place], self._held[place + len(self._tags.closing) :]
        self._in_value = False
        value = value.removesuffix(self._tags.margin)
        if self._again:
            return ""
        return _escaped(value) + '"' if self._is_text else _written(typed(value, self._types), value)

    def _part(self) -> str | None:
        """What of a text is certain: not what may be the tag that ends it, nor the line's end before that."""
        end = len(self._held) - overlap(
            self._held, (self._tags.margin + self._tags.closing, self._tags.closing)
        )
        part, self._held = self._held[:end], self._held[end:]
        return _escaped(part) if part else None


class PythonArguments:
    """Arguments of a call in Python, ``a=1, b="x")``, which are given out when the call has ended."""

    def __init__(self) -> None:
        self._held = ""
        self._place = 0
        self._depth = 1
        self._quote = ""
        self._escaped = False
        self.closed = False

    def push(self, text: str) -> tuple[str, str]:
        self._held += text
        while self._place < len(self._held):
            letter = self._held[self._place]
            self._place += 1
            self._look(letter)
            if self._depth == 0:
                self.closed = True
                return self._read(self._held[: self._place - 1]), self._held[self._place :]
        return "", ""

    def finish(self) -> str:
        return ""

    def _look(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quote:
            self._escaped = letter == "\\"
            self._quote = "" if letter == self._quote else self._quote
        elif letter in "'\"":
            self._quote = letter
        else:
            self._depth += (letter in "([{") - (letter in ")]}")

    def _read(self, text: str) -> str:
        """The JSON of what stands between the parentheses; where that is no Python, as it was written."""
        try:
            call = cast("ast.Call", ast.parse(f"f({text})", mode="eval").body)
            values: dict[str, Any] = {}
            for one in call.keywords:
                value = _literal(one.value, 0)
                values |= {one.arg: value} if one.arg is not None else value
            return as_json(values)
        except (SyntaxError, ValueError, RecursionError, MemoryError, AttributeError, TypeError):
            return json.dumps({"arguments": text}, ensure_ascii=False)


def _literal(node: ast.expr, depth: int) -> Any:
    """The value that is written so, in Python's words or in JSON's."""
    if depth > DEEPEST:
        raise ValueError("too deep")
    match node:
        case ast.Constant(value) if isinstance(value, str | int | float | None):
            return value
        case ast.Name("true" | "false" | "null" as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.UnaryOp(ast.USub(), ast.Constant(value)) if isinstance(value, int | float):
            return -value
        case ast.List(items) | ast.Tuple(items):
            return [_literal(item, depth + 1) for item in items]
        case ast.Dict(keys, values):
            pairs = zip(keys, values, strict=True)
            return {
                str(_literal(key, depth + 1)): _literal(v, depth + 1) for key, v in pairs if key is not None
            }
        case _:
            raise ValueError("no literal")


@dataclass(slots=True)
class Nesting:
    """Finds where a JSON object or list ends, as its text comes."""

    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    closed: bool = False

    def end(self, text: str) -> int:
        """The place behind the last brace, or the length of ``text`` when it goes on."""
        for place, letter in enumerate(text):
            if self.in_text:
                if self.escaped:
                    self.escaped = False
                elif letter == "\\":
                    self.escaped = True
                elif letter == '"':
                    self.in_text = False
            elif letter == '"':
                self.in_text = True
            elif letter in "{[":
                self.depth += 1
            elif letter in "}]":
                self.depth -= 1
                if self.depth == 0:
                    self.closed = True
                    return place + 1
        return len(text)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _written(value: object, text: str) -> str:
    """A value as JSON; the text that it was read from, where JSON has no such numbers."""
    try:
        return as_json(value)
    except ValueError:
        return as_json(text)


def as_json(value: object) -> str:
    """A value as JSON that can be sent: halves of a character, which models write as escapes, are replaced.

    Raises:
        ValueError: it has a number that is not finite.
    """
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Its escapes come in pairs where Python's are one.
    return written.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def arguments_object(text: str) -> dict[str, Any]:
    """A call's arguments as an object that can be sent: of one that was cut off, what had come.

    Halves of a character are replaced, and numbers beyond all bounds are null, as in every event.
    """
    try:
        found: object = from_json(_ESCAPES.sub(_whole_character, text), allow_partial=True)
    except ValueError:
        return {}
    return cast(dict[str, Any], _bounded(found)) if isinstance(found, dict) else {}


def _whole_character(match: re.Match[str]) -> str:
    return r"\ufffd" if match["half"] else match[0]


def _bounded(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _bounded(inner) for name, inner in cast("dict[str, object]", value).items()}
    return [_bounded(inner) for inner in cast("list[object]", value)] if isinstance(value, list) else value
