"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.api.images import content_for_template
from shoal.gateway.api.logprobs import chat_logprobs
from shoal.gateway.api.request import GenerationRequest, conversation, encoded, limited
from shoal.gateway.errors import body_of
from shoal.gateway.grammar.fit import AnswerSchema, fit
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.events import AnswerEvent, ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reader import AnswerReader, AnswerSyntax
from shoal.gateway.markup.reasoning import reasoning_options
from shoal.gateway.markup.tools import Calling
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.chat import AllowedTools, ChatRequest, NamedTool, RequestMessage
from shoal.gateway.schema.common import TextFormat
from shoal.gateway.sse import DONE, event

PREFIX = "chatcmpl-"
ROLES = {"developer": "system", "function": "tool"}
"""Roles by other names, for templates that do not know them."""


async def chat_request(body: ChatRequest, model: Servable, grammars: Grammars) -> GenerationRequest:
    """What a chat request asks for.

    Raises:
        ShoalError: the conversation cannot be rendered, is too long, or its schemas cannot be used.
    """
    calling = _calling(body)
    options = reasoning_options(body.reasoning_effort) | (body.chat_template_kwargs or {})
    prompt = await encoded(model, conversation(model, for_templates(body.messages), calling, options))
    limit = limited(model, prompt.token_ids, body.limit)
    found = await fit(grammars, model, prompt.own_end, calling, _format(body.response_format))
    return GenerationRequest(
        model,
        prompt.token_ids,
        limit,
        body.sampling(body.scores, model.local.sampling),
        choices=body.n,
        stop=tuple(body.stop),
        open_ended=body.limit is None,
        grammar=found.grammar,
        syntax=found.syntax,
        relaxed=found.relaxed,
        why=found.why,
        turns=True,
        images=prompt.images,
        placed=prompt.placed,
        salt=body.cache_salt,
        speculate=body.speculate,
        receipts=bool(body.receipts),
        draft=body.draft,
        protect=body.protect,
    )


def _calling(body: ChatRequest) -> Calling | None:
    """The functions that the model may call; ``None`` where it may call none."""
    if not body.tools or body.tool_choice == "none":
        return None
    functions = tuple(tool.function for tool in body.tools)
    params = {f.name: f"tools.{place}.function.parameters" for place, f in enumerate(functions)}
    several = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        return Calling(tuple(f for f in functions if f.name == name), True, False, params)
    calling = Calling(functions, body.tool_choice == "required", several, params)
    if isinstance(body.tool_choice, AllowedTools):
        return calling.only(body.tool_choice.names, must=body.tool_choice.allowed_tools.mode == "required")
    return calling


def _format(format: TextFormat | None) -> AnswerSchema | None:
    if format is None or format.type == "text":
        return None
    if format.json_schema is None or format.type == "json_object":
        return AnswerSchema({"type": "object"}, "response_format")
    return AnswerSchema(
        format.json_schema.body, "response_format.json_schema.schema", strict=bool(format.json_schema.strict)
    )


def for_templates(messages: Sequence[RequestMessage]) -> list[dict[str, Any]]:
    """Messages as chat templates read them, with the images that they show."""
    return [_for_template(message, f"messages.{place}") for place, message in enumerate(messages)]


def _for_template(message: RequestMessage, where: str) -> dict[str, Any]:
    said = content_for_template(message.content, f"{where}.content") or message.refusal or ""
    made: dict[str, Any] = {"role": ROLES.get(message.role, message.role), "content": said}
    if message.name is not None:
        made["name"] = message.name
    if message.role == "assistant" and message.calls:
        made["tool_calls"] = [call.for_template() for call in message.calls]
    if message.role == "assistant" and message.reasoning_content:
        made["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    return made


@dataclass(slots=True)
class _Choice:
    """What one choice has come to so far."""

    reader: AnswerReader
    begun: bool = False
    reasoning: str = ""
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    finish_reason: str | None = None

    def push(self, delta: Delta) -> list[AnswerEvent]:
        return read_delta(self.reader, delta)

    def add(self, said: AnswerEvent) -> dict[str, Any]:
        """Take something in; returns it as a chunk's ``delta``."""
        match said:
            case CallStart(index, id, name):
                self.calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": ""}})
                opened = {"id": id, "type": "function", "function": {"name": name, "arguments": ""}}
                return {"tool_calls": [{"index": index, **opened}]}
            case ArgumentsDelta(index, text):
                self.calls[index]["function"]["arguments"] += text
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case Reasoning(text):
                self.reasoning += text
                return {"reasoning_content": text}
            case text:
                self.text += text
                return {"content": text}

    def message(self) -> dict[str, Any]:
        made: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.calls and not self.text else self.text,
            "refusal": None,
            "annotations": [],
        }
        if self.reasoning:
            made["reasoning_content"] = self.reasoning
        return made | {"tool_calls": self.calls} if self.calls else made


class ChatForm:
    """A chat completion, as chunks or as one object."""

    def __init__(self, record: Record, asked: GenerationRequest, *, include_usage: bool) -> None:
        self._record = record
        self._model = asked.model
        self._scored = asked.sampling.top_logprobs is not None
        self._include_usage = include_usage
        self._created = int(time.time())
        self._choices = [_Choice(reader_of(asked)) for _ in range(asked.choices)]
        self._first = True

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        state = self._choices[choice]
        chunks: list[dict[str, Any]] = []
        if not state.begun:
            state.begun = True
            chunks.append({"delta": {"role": "assistant", "content": ""}})
        said = [state.add(one) for one in state.push(delta)]
        if delta.score is not None:
            state.scores.append(delta.score)
            said = said or [{"content": ""}]
        chunks += [{"delta": one} for one in said]
        if delta.score is not None:
            chunks[-1]["logprobs"] = self._logprobs([delta.score])
        if delta.finish_reason is not None:
            reason = delta.finish_reason
            state.finish_reason = "tool_calls" if state.calls and reason == "stop" else reason
            chunks.append({"delta": {}, "finish_reason": state.finish_reason})
        return [self._chunk(choice, chunk) for chunk in chunks]

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        return []

    def close(self) -> list[bytes]:
        if not self._include_usage:
            return [DONE]
        return [event(self._head([]) | {"usage": self._usage(), "shoal": self._record.told(last=True)}), DONE]

    def fail(self, error: ShoalError) -> list[bytes]:
        return [event(body_of(error))]

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": self._logprobs(choice.scores) if self._scored else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return {
            "id": self._record.id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model.id,
            "choices": choices,
            "usage": self._usage(),
            "system_fingerprint": system_fingerprint(self._model),
            "shoal": self._record.told(last=True),
        }

    def _chunk(self, choice: int, fields: dict[str, Any]) -> bytes:
        whole = {"index": choice, "logprobs": None, "finish_reason": None} | fields
        head = self._head([whole])
        if self._include_usage:
            head["usage"] = None
        ends = whole["finish_reason"] is not None and choice == len(self._choices) - 1
        if self._first or (ends and not self._include_usage):
            self._first = False
            head["shoal"] = self._record.told(last=ends and not self._include_usage)
        return event(head)

    def _head(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._record.id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": system_fingerprint(self._model),
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        reasoning = sum(choice.reader.reasoning_tokens for choice in self._choices)
        return usage_of(self._record) | {"completion_tokens_details": {"reasoning_tokens": reasoning}}

    def _logprobs(self, scores: list[TokenScore]) -> dict[str, Any] | None:
        return chat_logprobs(self._model.codec, scores) if self._model.codec else None


def reader_of(asked: GenerationRequest) -> AnswerReader:
    """What parts one answer of a conversation."""
    return (asked.syntax or AnswerSyntax(Markup())).reader()


def read_delta(reader: AnswerReader, delta: Delta) -> list[AnswerEvent]:
    """What is certain with more of an answer: all of it, once its last text is there."""
    if not delta.token_ids:
        return []  # the end of an answer of which all was read
    said = reader.push(delta.text)
    return said + reader.finish() if delta.last_text or delta.finish_reason is not None else said


def usage_of(record: Record) -> dict[str, Any]:
    """Tokens as completions count them."""
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.tokens,
        "total_tokens": record.prompt_tokens + record.tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
    }


def system_fingerprint(model: Servable) -> str:
    """Changes when the model does: the beginning of its digest."""
    return f"fp_{model.local.digest.removeprefix('sha256:')[:12]}"
