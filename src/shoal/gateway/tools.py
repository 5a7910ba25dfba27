"""Tool calls: how the model is told of functions, what it may write, and how that is read back.

Every model writes a call in the form that Hermes, Qwen and SmolLM learned::

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Rome"}}
    </tool_call>

The grammar sees to the form, so that also a model that has never seen it makes valid calls.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.errors import UsageError
from shoal.gateway.constrain import COMPACT, MAX_GRAMMAR
from shoal.gateway.schema.common import Function

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{"name": "([A-Za-z0-9_.-]{1,64})", "arguments": ')
_INSTRUCTIONS = """You may call functions to help with the user's question. They are, one a line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments as JSON between <tool_call> tags:
<tool_call>
{{"name": "function name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Calling:
    """The functions of one request, and whether they must be called."""

    functions: tuple[Function, ...]
    must: bool = False
    """Whether the answer is to be a call."""
    several: bool = True
    """Whether it may be more than one."""

    def declared(self) -> list[dict[str, Any]]:
        """The functions as chat templates read them."""
        return [
            {
                "type": "function",
                "function": function.model_dump(exclude_none=True, exclude={"strict", "type"}),
            }
            for function in self.functions
        ]

    def instructions(self) -> str:
        """What a model is told whose template knows no tools."""
        return _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool) for tool in self.declared()))

    def grammar(self) -> str:
        """What the answer may be: calls, or where none is demanded also text with calls at its end.

        Raises:
            UsageError: the schemas are larger than is taken.
        """
        bodies = " | ".join(f"body_{i}" for i in range(len(self.functions)))
        again = f' ("\\n{OPENING}" rest)*' if self.several else ""
        rules = [
            f'start: "{OPENING}" rest{again}' if self.must else f"start: opening rest{again} | TEXT",
            f'rest: "\\n" ({bodies}) "\\n{CLOSING}"',
            *(_call_rules(i, function) for i, function in enumerate(self.functions)),
        ]
        if not self.must:
            rules += [f"opening[lazy]: /(.|\\n)*{OPENING}/", "TEXT: /(.|\\n)*/"]
        grammar = "\n".join(rules)
        if len(grammar) > MAX_GRAMMAR:
            raise UsageError(
                f"the tools' schemas have {len(grammar)} characters; at most {MAX_GRAMMAR} are taken"
            )
        return grammar


def _call_rules(index: int, function: Function) -> str:
    schema = {"type": "object", **(function.parameters or {}), "x-guidance": dict(COMPACT)}
    head = json.dumps(f'{{"name": "{function.name}", "arguments": ')
    return f'body_{index}: {head} args_{index} "}}"\nargs_{index}: %json {json.dumps(schema)}'


def as_text(messages: Sequence[Mapping[str, Any]], calling: Calling | None) -> list[dict[str, Any]]:
    """A conversation with tools in plain words, for a template that knows none."""
    plain = [_plain(message) for message in messages]
    if calling is None:
        return plain
    first = plain[0]["content"] + "\n\n" if plain[0]["role"] == "system" else ""
    rest = plain[1:] if plain[0]["role"] == "system" else plain
    return [{"role": "system", "content": first + calling.instructions()}, *rest]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    text = str(message.get("content") or "")
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = [
        f"{OPENING}\n{json.dumps(call['function'])}\n{CLOSING}" for call in message.get("tool_calls") or ()
    ]
    return {
        "role": message["role"],
        "content": "\n".join([text, *calls] if text else calls) if calls else text,
    }


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model has begun to call a function."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsWent:
    """More of the arguments, as JSON text."""

    index: int
    text: str


Said = str | CallBegun | ArgumentsWent


@dataclass(slots=True)
class _Nesting:
    """Finds where a JSON object ends, as its text comes."""

    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    closed: bool = False

    def end(self, text: str) -> int:
        """The place behind the object's last brace, or the length of ``text`` when it goes on."""
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


@dataclass(slots=True)
class CallReader:
    """Reads text and calls from an answer as it comes. Text behind a call, blanks between, is dropped."""

    calls: int = 0
    _held: str = ""
    _in_call: bool = False
    _in_arguments: bool = False
    _nesting: _Nesting = field(default_factory=_Nesting)

    def push(self, text: str) -> list[Said]:
        """What is certain now."""
        self._held += text
        said: list[Said] = []
        while (found := self._next()) is not None:
            said += [found] if found != "" else []
        return said

    def finish(self) -> list[Said]:
        """The rest, at the end of the answer."""
        rest, self._held = self._held, ""
        return [rest] if rest and not self.calls and not self._in_call else []

    def _next(self) -> Said | None:
        """One thing that was said, ``""`` for nothing to tell, or ``None`` until more text comes."""
        if self._in_arguments:
            return self._arguments()
        if self._in_call:
            return self._head()
        place = self._held.find(OPENING)
        if place >= 0:
            text, self._held = self._held[:place], self._held[place + len(OPENING) :]
            self._in_call = True
            return "" if self.calls else text.rstrip("\n")
        keep = next((n for n in range(len(OPENING) - 1, 0, -1) if self._held.endswith(OPENING[:n])), 0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return (text or None) if not self.calls else None

    def _head(self) -> Said | None:
        match = _HEAD.match(self._held)
        if match is None:
            return None
        self._held = self._held[match.end() :]
        self._in_arguments, self._nesting = True, _Nesting()
        self.calls += 1
        return CallBegun(self.calls - 1, f"call_{secrets.token_hex(12)}", match[1])

    def _arguments(self) -> Said | None:
        if not self._held:
            return None
        end = self._nesting.end(self._held)
        text, self._held = self._held[:end], self._held[end:]
        if self._nesting.closed:
            self._in_call = self._in_arguments = False
            place = self._held.find(CLOSING)
            self._held = self._held[place + len(CLOSING) :] if place >= 0 else ""
        return ArgumentsWent(self.calls - 1, text)
