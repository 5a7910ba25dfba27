"""Reads an answer as it comes: reasoning, text and calls, in the markup that the model learned.

What may be markup is held back, and given out as text as soon as it cannot be any more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from shoal.gateway.markup.arguments import (
    KEYED,
    NAME,
    ArgumentsReader,
    JsonArguments,
    Nesting,
    PythonArguments,
    TaggedArguments,
    as_json,
)
from shoal.gateway.markup.dialects import GPT_OSS, Dialect, Markup
from shoal.gateway.markup.events import AnswerEvent, ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.harmony import HarmonyReader
from shoal.gateway.markup.reasoning import ReasoningReader, overlap

MAX_HELD = 64 << 10
"""Characters of what may be a call that are held back until it is one."""
_JSON_HEAD = re.compile(
    r'\s*\[?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?(?:"id"\s*:\s*"[^"]{0,64}"\s*,\s*)?'
    rf'"name"\s*:\s*"({NAME})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'
)
_PYTHON_HEAD = re.compile(rf"\[?\s*({NAME})\(")
_BLANKS = re.compile(r'"(?:[^"\\]|\\.)*"?|\s+')
"""Texts, which are kept, and the blanks between."""


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """How one request's answers are read."""

    markup: Markup
    functions: Mapping[str, Mapping[str, Any]] | None = None
    """What may be called, and the schema of its arguments; ``None`` where nothing is a call."""
    barred: frozenset[str] = frozenset()
    """Functions that the model was told of and may not call: what would be a call of one stays text."""
    reasons: bool = True
    """Whether the answer may begin with reasoning; one that keeps to a format may not."""
    reasoning: bool = False
    """Whether the prompt has opened the reasoning already."""
    calls_first: bool = False
    """Whether what does not begin with a call has none, as an answer that else keeps to a format."""

    def reader(self) -> AnswerReader:
        """For one answer."""
        return (
            HarmonyReader(self.functions, self.barred)
            if self.markup.dialect == GPT_OSS
            else MarkupReader(self)
        )


class AnswerReader(Protocol):
    """Parts an answer into reasoning, text and calls."""

    reasoning_tokens: int
    """How many tokens of the answer were reasoning, where each was pushed by itself."""

    @property
    def undecided(self) -> int:
        """Characters at the end of what was pushed of which it is not known yet what they are."""
        ...

    def push(self, text: str) -> list[AnswerEvent]:
        """What is certain now."""
        ...

    def finish(self) -> list[AnswerEvent]:
        """The rest, at the end of the answer."""
        ...


class MarkupReader:
    """Reads an answer that begins with reasoning, if there is any, and has its calls in markers."""

    def __init__(self, syntax: AnswerSyntax) -> None:
        markers = syntax.markup.reasoning if syntax.reasons or syntax.reasoning else None
        self._reasoning = ReasoningReader(markers, inside=syntax.reasoning)
        self._calls = CallReader(
            syntax.markup.dialect, syntax.functions, first=syntax.calls_first, barred=syntax.barred
        )
        self.reasoning_tokens = 0

    @property
    def undecided(self) -> int:
        return self._reasoning.undecided + self._calls.undecided

    def push(self, text: str) -> list[AnswerEvent]:
        reasoning, answer = self._reasoning.push(text)
        self.reasoning_tokens += self._reasoning.inside
        said: list[AnswerEvent] = [Reasoning(reasoning)] if reasoning else []
        return said + self._calls.push(answer)

    def finish(self) -> list[AnswerEvent]:
        reasoning, answer = self._reasoning.finish()
        said: list[AnswerEvent] = [Reasoning(reasoning)] if reasoning else []
        return said + self._calls.push(answer) + self._calls.finish()


class CallReader:
    """Reads text and calls from an answer as it comes.

    Args:
        functions: what may be called, and the schema of its arguments; ``None`` where nothing is a call.
        first: whether what does not begin with a call has none.
        barred: functions whose calls stay text.
    """

    def __init__(
        self,
        dialect: Dialect,
        functions: Mapping[str, Mapping[str, Any]] | None,
        *,
        first: bool = False,
        barred: Collection[str] = (),
    ) -> None:
        self.count = 0
        self._dialect = dialect
        self._functions = functions
        self._barred = barred
        self._openings = dialect.openings if functions is not None else ()
        self._heads = _bare_heads(dialect, functions) if dialect.bare and functions else ()
        self._held = ""
        self._opening = ""
        """The marker before what may be a call, and the blanks around it."""
        self._marked = False
        """Whether a marker has told that it is one."""
        self._value = Nesting()
        self._looked_at = 0
        """How much of what is held ``_value`` has seen."""
        self._first = first and functions is not None
        self._state = self._begin if self._heads or self._first else self._text
        self._reading: ArgumentsReader = JsonArguments()

    @property
    def undecided(self) -> int:
        """As of an :class:`AnswerReader`: a marker may be text still, until there is a call behind it."""
        return len(self._held) + (len(self._opening) if self._state == self._call else 0)

    def push(self, text: str) -> list[AnswerEvent]:
        """What is certain now."""
        self._held += text
        said: list[AnswerEvent] = []
        while (found := self._state()) is not None:
            said += found
        return said

    def finish(self) -> list[AnswerEvent]:
        """The rest, at the end of the answer."""
        said = self.push("")
        if self._state == self._call:
            said += self._whole(self._held) or [self._opening + self._held]
        elif self._state == self._arguments:
            rest = self._reading.finish()
            said += [ArgumentsDelta(self.count - 1, rest)] if rest else []
        elif self._state != self._after and self._held:
            said.append(self._held)
        self._held = self._opening = ""
        return said

    # Each state takes what it can from what is held, and returns what was said; None until more text comes.

    def _begin(self) -> list[AnswerEvent] | None:
        """An answer's first letters, which may be a call without a marker."""
        squeezed, body = _squeezed(self._held), self._held.lstrip()
        if self._first and any(marker.startswith(body) and marker != body for marker in self._openings):
            return None
        if not any(head.startswith(squeezed) for head in self._heads):
            if any(squeezed.startswith(head) for head in self._heads):
                self._enter_call("", marked=False)
            else:
                if self._first and not body.startswith(self._openings):
                    self._openings = ()
                self._state = self._text
            return []
        return None

    def _text(self) -> list[AnswerEvent] | None:
        markers = self._openings
        found = [(place, -len(m), m) for m in markers if (place := self._held.find(m)) >= 0]
        if not found:
            text = self._held[: len(self._held) - overlap(self._held, markers)]
            if self._openings:
                text = text.rstrip("\n")  # those before a call are part of it
            self._held = self._held[len(text) :]
            return [text] if text else None
        place, _, marker = min(found)
        before, self._held = self._held[:place], self._held[place + len(marker) :]
        text = before.rstrip("\n")
        # `<function=` is how people write of it, too.
        self._enter_call(before[len(text) :] + marker, marked=marker != "<function=")
        return [text] if text else []

    def _enter_call(self, opening: str, *, marked: bool) -> None:
        self._opening, self._marked = opening, marked
        self._value, self._looked_at = Nesting(), 0
        self._state = self._call

    def _call(self) -> list[AnswerEvent] | None:
        """What stands before the arguments, or a whole call where that is written in another order."""
        body = self._held.lstrip()
        self._opening += self._held[: len(self._held) - len(body)]
        self._held = body
        if (found := self._head(body)) is not None:
            name, end, self._reading = found
            self._held, self._state = body[end:], self._arguments
            return [self._begun(name)]
        end = self._end(body)
        if end is None and len(body) < MAX_HELD:
            return None
        calls = self._whole(body[:end])
        if not calls:
            self._state = self._text
            return [self._opening] if self._opening else []
        self._held, self._state = body[end:], self._after
        return calls

    def _arguments(self) -> list[AnswerEvent] | None:
        if not self._held:
            return None
        text, self._held = self._reading.push(self._held)
        if self._reading.closed:
            self._state = self._after
        return [ArgumentsDelta(self.count - 1, text)] if text else []

    def _after(self) -> list[AnswerEvent] | None:
        """Behind a call: markup that closes it, another call, or text."""
        rest = self._held.lstrip()
        while ending := next((e for e in self._dialect.endings if rest.startswith(e)), None):
            rest = rest[len(ending) :].lstrip()
        self._held = rest
        markers = (*self._dialect.endings, *self._openings)
        if not rest or any(marker.startswith(rest) for marker in markers):
            return None
        marker = self._dialect.inside[0] if self._dialect.head is not None else ""
        if rest.startswith("{") or (marker and rest.startswith(marker)):
            self._enter_call("", marked=self._marked)
        elif marker and marker.startswith(rest):
            return None
        elif self._dialect.python and self._begins_python(rest):
            if "(" not in rest:
                return None
            self._enter_call("", marked=self._marked)
        else:
            self._state = self._text
        return []

    def _ending(self) -> str | None:
        """What closes the call that is being read, where its markup has such a thing."""
        return "</tool_call>" if "<tool_call>" in self._opening or "<function=" in self._opening else None

    def _head(self, body: str) -> tuple[str, int, ArgumentsReader] | None:
        """The beginning of a call: its function, where its arguments begin, and what reads them."""
        functions = self._functions or {}
        heads = (_JSON_HEAD, self._dialect.head) if self._dialect.head else (_JSON_HEAD,)
        for head in heads:
            if (match := head.match(body)) is not None and self._may_call(match[1]):
                return match[1], match.end(), JsonArguments()
        lead = "<function=" if self._opening.rstrip().endswith("<function=") else ""
        for tags in self._dialect.tags:
            match = tags.head.match(lead + body)
            if match is not None and self._may_call(match[1], sure=tags is not KEYED):
                reader = TaggedArguments(tags, functions.get(match[1], {}))
                return match[1], match.end() - len(lead), reader
        match = _PYTHON_HEAD.match(body) if self._dialect.python else None
        if match is not None and self._may_call(match[1]):
            return match[1], match.end(), PythonArguments()
        return None

    def _may_call(self, name: str, *, sure: bool = True) -> bool:
        """Whether a call of ``name`` is one: behind a marker of the model's own it is, unless that is barred.

        Args:
            sure: whether what is there has the form of a call; else it may be any word.
        """
        if name in self._barred:
            return False
        return name in (self._functions or ()) or (sure and self._marked and self._dialect.name != "unknown")

    def _end(self, body: str) -> int | None:
        """Where what may be a call ends; ``None`` where it goes on, 0 where it cannot be one."""
        if body.startswith(("{", "[")):
            if self._value.closed:
                return self._looked_at
            self._looked_at += self._value.end(body[self._looked_at :])
            return self._looked_at if self._value.closed else None
        begins_head, ending = self._dialect.begins_head, self._ending()
        if body == "" or (begins_head is not None and begins_head.fullmatch(body)):
            return None
        if ending is None:
            return 0
        if ending in body:
            return body.index(ending)
        lead = "<function=" if self._opening.rstrip().endswith("<function=") else ""
        return None if self._begins_tags(lead + body) else 0

    def _begins_python(self, rest: str) -> bool:
        """Whether what stands behind a call may become one more."""
        return any(
            f"{name}(".startswith(rest) or rest.startswith(f"{name}(") for name in self._functions or ()
        )

    def _begins_tags(self, body: str) -> bool:
        """Whether a body may become a call in tags: ``<function=name>``, or a name and ``<arg_key>``."""
        xml, key = "<function=", "<arg_key>"
        if xml.startswith(body) or (body.startswith(xml) and ">" not in body):
            return True
        for name in self._functions or ():
            if name.startswith(body):
                return True
            rest = body.removeprefix(name).lstrip()
            if body.startswith(name) and any(
                one.startswith(rest) or rest.startswith(one) for one in (key, "</tool_call>")
            ):
                return True
        return False

    def _whole(self, body: str) -> list[AnswerEvent]:
        """The calls that a body is, which was no call until its end; none where it is text."""
        said: list[AnswerEvent] = []
        for name, arguments in _parsed(body):
            if not self._may_call(name):
                return []
            said += [self._begun(name), ArgumentsDelta(self.count - 1, arguments)]
        return said

    def _begun(self, name: str) -> CallStart:
        self.count += 1
        return CallStart(self.count - 1, self._dialect.new_id(), name)


def _squeezed(text: str) -> str:
    """JSON without the blanks between its words."""
    return _BLANKS.sub(lambda match: match[0] if match[0][0] == '"' else "", text)


def _bare_heads(dialect: Dialect, functions: Collection[str]) -> tuple[str, ...]:
    """How a call without a marker begins, without blanks."""
    python = tuple(f"[{name}(" for name in functions) if dialect.python else ()
    return python + tuple(
        f'{{{before}"name":"{name}","{word}":{{'
        for name in functions
        for word in ("arguments", "parameters")
        for before in ("", '"type":"function",')
    )


def _parsed(body: str) -> list[tuple[str, str]]:
    """Names and arguments of the calls that a whole body is as JSON, in any order; else none."""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return []
    found = [_one_call(one) for one in (cast(list[object], value) if isinstance(value, list) else [value])]
    return [call for call in found if call is not None] if all(found) else []


def _one_call(value: object) -> tuple[str, str] | None:
    if not isinstance(value, dict):
        return None
    call = cast(dict[str, Any], value)
    if isinstance(call.get("function"), dict):
        call = cast(dict[str, Any], call["function"])
    name = call.get("name")
    arguments = call.get("arguments", call.get("parameters"))
    if not isinstance(name, str) or re.fullmatch(NAME, name) is None:
        return None
    if isinstance(arguments, str):  # JSON within JSON
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return None
    try:
        return name, as_json(cast(dict[str, Any], arguments))
    except ValueError:  # a number that is not finite
        return None
