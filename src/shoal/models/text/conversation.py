"""Conversations as files have them: messages with calls of functions, and the functions that may be called.

A line's ``tools`` and ``chat_template_kwargs`` are those of a request of ``/v1/chat/completions``, and a
template is shown the same of them. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

from shoal.errors import UsageError
from shoal.models.text.codec import TextCodec
from shoal.models.text.prompt import ChatPrompt

NOT_OPTIONS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What the template is told in another way."""
MISPLACED = ("enable_thinking", "thinking", "reasoning_effort", "documents", "functions", "function_call")
"""What a line might have beside its messages, expecting that the template sees it."""


def read_conversation(line: Mapping[str, Any], codec: TextCodec) -> ChatPrompt:
    """The conversation of a line whose ``messages`` are a list, as the template reads it.

    Raises:
        UsageError: something of it cannot be read, or the template has no place for it; says what.
    """
    messages = [_for_template(message) for message in cast("list[Any]", line["messages"])]
    for name in MISPLACED:
        if line.get(name) is not None:
            raise UsageError(
                f"{name} beside the messages is not read",
                check="give tools in tools, and other words for the chat template in chat_template_kwargs",
            )
    words: object = line.get("chat_template_kwargs") or {}
    if not isinstance(words, dict) or NOT_OPTIONS & cast("dict[str, Any]", words).keys():
        raise UsageError(f"chat_template_kwargs may be an object without {', '.join(sorted(NOT_OPTIONS))}")
    options = dict(cast("dict[str, Any]", words))
    if tools := line.get("tools"):
        options["tools"] = _tools(tools)
    called = any(message.get("tool_calls") for message in messages)
    if (tools or called) and not codec.takes_tools:
        raise UsageError(
            "it has tools or calls of them, and the model's chat template knows none",
            check="write in plain words what may be called and what is",
        )
    return ChatPrompt(messages, options)


def declared_function(name: str, description: str | None, parameters: object) -> dict[str, Any]:
    """A function as chat templates read it: it has parameters, if empty ones."""
    said = {} if description is None else {"description": description}
    parameters = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, **said, "parameters": parameters}}


def called_function(name: str, arguments: object) -> dict[str, Any]:
    """What was called, as chat templates read it: the arguments as an object where a text is one as JSON."""
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments or "{}")
    return {"name": name, "arguments": {} if arguments is None else arguments}


def _tools(tools: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for tool in cast("list[Any]", tools) if isinstance(tools, list) else [tools]:
        match tool:
            case {"function": {"name": str(name), **said}}:
                found.append(declared_function(name, said.get("description"), said.get("parameters")))
            case _:
                raise UsageError(f'a tool that is no {{"type": "function", "function": {{…}}}}: {tool!r:.80}')
    return found


def _for_template(message: object) -> dict[str, Any]:
    """A message as templates read it."""
    if not isinstance(message, dict) or not isinstance(cast("dict[str, Any]", message).get("role"), str):
        raise UsageError(f"a message without a role: {message!r:.80}")
    made = dict(cast("dict[str, Any]", message))
    if made.get("function_call"):
        raise UsageError("a message has function_call", check="write the call in tool_calls")
    calls = made.pop("tool_calls", None)
    if not calls:
        return made
    if made["role"] != "assistant" or not isinstance(calls, list):
        raise UsageError(f"tool_calls that are no list of an assistant's: {calls!r:.80}")
    made["tool_calls"] = [_call(call) for call in cast("list[Any]", calls)]
    return made | {"content": made.get("content") or ""}


def _call(call: object) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), **said}, **rest}:
            id = rest.get("id")
            function = called_function(name, said.get("arguments"))
            return {"id": id if isinstance(id, str) else "", "type": "function", "function": function}
        case _:
            raise UsageError(f'a call that is no {{"function": {{"name": "…", …}}}}: {call!r:.80}')
