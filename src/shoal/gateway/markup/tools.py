"""Tool calls: how the model is told of functions, and what it may write.

Models write a call in the form that they learned (:mod:`shoal.gateway.markup.dialects`). Who learned none
is told of that of Hermes, Qwen and SmolLM::

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Rome"}}
    </tool_call>

The grammar sees to the form, so that also a model that has never seen it makes valid calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.gateway.grammar.grammar import json_rule
from shoal.gateway.grammar.relax import SAYS_NOTHING
from shoal.gateway.markup.dialects import HERMES, LLAMA, MISTRAL, UNKNOWN, Dialect, Markup
from shoal.gateway.schema.common import Function

OPENING, CLOSING = "<tool_call>", "</tool_call>"
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The arguments of a function without parameters."""
_NO_PARAMETERS = SAYS_NOTHING | {"type", "properties", "required", "$schema", "$id", "$defs", "definitions"}
"""What a schema may have that describes no parameter, where ``properties`` and ``required`` are empty."""
_TEXT = "TEXT: /(.|\\n)+/"
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
    params: Mapping[str, str] = field(default_factory=dict[str, str])
    """Where in the request each function has its schema, by the function's name."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    def declared(self) -> list[dict[str, Any]]:
        """The functions as chat templates read them: each has parameters, if empty ones."""
        return [
            {
                "type": "function",
                "function": function.model_dump(exclude_none=True, exclude={"strict", "type"})
                | {"parameters": function.parameters or {"type": "object", "properties": {}}},
            }
            for function in self.functions
        ]

    def instructions(self) -> str:
        """What a model is told whose template knows no tools."""
        return _INSTRUCTIONS.format(tools="\n".join(json.dumps(tool) for tool in self.declared()))

    def schemas(self) -> list[dict[str, Any]]:
        """What each function's arguments must be."""
        return [arguments_of(function) for function in self.functions]


def arguments_of(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments. A function without parameters takes none: a model that may invent
    some does."""
    schema = function.parameters or {}
    named = schema.get("properties") or schema.get("required")
    return dict(NOTHING) if not named and schema.keys() <= _NO_PARAMETERS else {**schema, "type": "object"}


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


def calls_grammar(
    calling: Calling, schemas: Sequence[Mapping[str, Any]], markup: Markup, *, reasoning: bool
) -> tuple[str | None, Dialect]:
    """What the answer may be: calls, or where none is demanded also text with calls at its end; and in which
    dialect it is to be read.

    Args:
        schemas: of each function's arguments.
        reasoning: whether the prompt has opened reasoning, which comes before the calls.

    Returns: ``None`` for a dialect in which only demanded calls have a grammar.
    """
    names = [function.name for function in calling.functions]
    dialect = markup.dialect
    if dialect not in _WRITERS:
        if not calling.must:
            return None, dialect
        dialect = HERMES
    calls, rules, free = _WRITERS[dialect](names, markup, calling.several)
    begins = _reasoning(markup, reasoning)
    before = "reasoning " if reasoning and calling.must else "reasoning? " if begins else ""
    start = calls if calling.must else free
    rules = [f"start: {before}({start})", *begins, *rules, _TEXT]
    rules += [f"args_{i}: {json_rule(schema)}" for i, schema in enumerate(schemas)]
    return "\n".join(rules), dialect


def answer_grammar(schema: Mapping[str, Any], markup: Markup, *, reasoning: bool) -> str:
    """An answer in JSON, behind the reasoning that the prompt has opened."""
    rules = [f"answer: {json_rule(schema)}"]
    if not reasoning:
        return "\n".join(["start: answer", *rules])
    return "\n".join(["start: reasoning answer", *_reasoning(markup, reasoning), _TEXT, *rules])


def _marker(markup: Markup, word: str) -> str:
    """A marker in a grammar: a token of its own, or text."""
    return f"<[{markup.tokens[word]}]>" if word in markup.tokens else json.dumps(word)


def _regex(text: str) -> str:
    """A text within a regular expression of a grammar."""
    return re.escape(text).replace("/", "\\/")


def _reasoning(markup: Markup, reasoning: bool) -> list[str]:
    """The rules of reasoning before an answer; none where it is text like any other."""
    opening, closing = markup.reasoning
    if closing in markup.tokens:
        begin = "" if reasoning or opening not in markup.tokens else f"{_marker(markup, opening)} "
        return [f"reasoning: {begin}TEXT? {_marker(markup, closing)} BLANKS?", "BLANKS: /[ \\n]+/"]
    if not reasoning:
        return []
    return [f"reasoning: thinks BLANKS?\nthinks[lazy]: /(.|\\n)*{_regex(closing)}/", "BLANKS: /[ \\n]+/"]


Written = tuple[str, list[str], str]
"""What calls are; the rules of which they are made; and what an answer is that may be text too."""


def _free(markup: Markup, opening: str, calls: str, rest: str) -> tuple[list[str], str]:
    """Text, or text with calls behind: after the marker the calls are held to their grammar."""
    if opening in markup.tokens:
        return [], f"TEXT? {calls} | TEXT"
    return [f"opening[lazy]: /(.|\\n)*{_regex(opening)}/"], f"opening {rest} | TEXT?"


def _bodies(names: Sequence[str], arguments: str) -> list[str]:
    heads = (json.dumps(f'{{"name": "{name}", "{arguments}": ') for name in names)
    return [
        f"body: {' | '.join(f'body_{i}' for i in range(len(names)))}",
        *(f'body_{i}: {head} args_{i} "}}"' for i, head in enumerate(heads)),
    ]


def _hermes(names: Sequence[str], markup: Markup, several: bool) -> Written:
    opening = _marker(markup, OPENING)
    rest = f'"\\n" body "\\n" {_marker(markup, CLOSING)}'
    more = f' ("\\n" {opening} {rest})*' if several else ""
    rules, free = _free(markup, OPENING, f"{opening} {rest}{more}", f"{rest}{more}")
    return f"{opening} {rest}{more}", [*_bodies(names, "arguments"), *rules], free


def _mistral(names: Sequence[str], markup: Markup, several: bool) -> Written:
    word = MISTRAL.openings[0]
    opening = _marker(markup, word)
    if "[ARGS]" in markup.tokens:
        named = [f"{json.dumps(name)} {_marker(markup, '[ARGS]')} args_{i}" for i, name in enumerate(names)]
        bodies = [f"body: {' | '.join(named)}"]
        rest = f"body ({opening} body)*" if several else "body"
    else:
        bodies = _bodies(names, "arguments")
        rest = '" "? "[" body ' + ('(", " body)* ' if several else "") + '"]"'
    rules, free = _free(markup, word, f"{opening} {rest}", rest)
    return f"{opening} {rest}", [*bodies, *rules], free


def _llama(names: Sequence[str], markup: Markup, several: bool) -> Written:
    tag = f"{_marker(markup, LLAMA.openings[0])}? " if LLAMA.openings[0] in markup.tokens else ""
    calls = f"{tag}body" + (' ("; " body)*' if several else "")
    known = "|".join(_regex(name) for name in names)
    # Whatever begins as a call of a function that there is, must be one.
    free = f'FREE: /(.|\\n)*/ & ~/[ \\n]*\\{{"name": "({known})"(.|\\n)*/'
    return calls, [*_bodies(names, LLAMA.arguments), free], f"{calls} | FREE"


_WRITERS = {HERMES: _hermes, UNKNOWN: _hermes, MISTRAL: _mistral, LLAMA: _llama}
