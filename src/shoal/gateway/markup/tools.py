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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.gateway.grammar.relax import SAYS_NOTHING
from shoal.gateway.schema.common import Function
from shoal.models.text.conversation import declared_function

OPENING, CLOSING = "<tool_call>", "</tool_call>"
NOTHING: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
"""The arguments of a function without parameters."""
_NO_PARAMETERS = SAYS_NOTHING | {"type", "properties", "required", "$schema", "$id", "$defs", "definitions"}
"""What a schema may have that describes no parameter, where ``properties`` and ``required`` are empty."""
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
    told_of: tuple[Function, ...] = ()
    """What the model is told of, where that is more than it may call."""

    @property
    def arguments(self) -> dict[str, dict[str, Any]]:
        """The schema of each function's arguments, by its name."""
        return {function.name: arguments_of(function) for function in self.functions}

    @property
    def barred(self) -> frozenset[str]:
        """What the model is told of and may not call."""
        return frozenset(function.name for function in self.told_of) - self.arguments.keys()

    def declared(self) -> list[dict[str, Any]]:
        """The functions as chat templates read them: each has parameters, if empty ones."""
        told_of = self.told_of or self.functions
        return [declared_function(f.name, f.description, f.parameters) for f in told_of]

    def only(self, names: Collection[str], *, must: bool) -> Calling:
        """The same where the functions of these names alone may be called; the model is told of all."""
        allowed = tuple(function for function in self.functions if function.name in names)
        return replace(self, functions=allowed, must=must, told_of=self.functions)

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
    content = message.get("content") or ""
    if isinstance(content, list):  # a user's words, with images among them
        return {"role": message["role"], "content": content}
    text = str(content)
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = [
        f"{OPENING}\n{json.dumps(call['function'])}\n{CLOSING}" for call in message.get("tool_calls") or ()
    ]
    return {
        "role": message["role"],
        "content": "\n".join([text, *calls] if text else calls) if calls else text,
    }
