"""``POST /api/chat`` and ``POST /api/generate``: the same answers in the words of Ollama's API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import trio

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.api.chat import read_delta, reader_of
from shoal.gateway.api.images import GivenImage, shown_first
from shoal.gateway.api.logprobs import chat_logprobs
from shoal.gateway.api.ollama_models import THINKING, capabilities
from shoal.gateway.api.request import GenerationRequest, RequestPrompt, conversation, encoded, limited
from shoal.gateway.error_forms import ollama_error
from shoal.gateway.errors import BadRequest
from shoal.gateway.grammar.fit import AnswerSchema, fit
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.markup.arguments import arguments_object
from shoal.gateway.markup.dialects import Markup
from shoal.gateway.markup.events import ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reader import AnswerSyntax
from shoal.gateway.markup.reasoning import NO_EFFORT, reasoning_options
from shoal.gateway.markup.tools import Calling
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaMessage,
    OllamaRequest,
)
from shoal.gateway.sse import line

PREFIX = "ollama-"
EFFORT = "medium"
"""What ``think: true`` says."""


async def ollama_chat_request(
    body: OllamaChatRequest, model: Servable, grammars: Grammars
) -> GenerationRequest:
    """What a conversation asks for.

    Raises:
        BadRequest: the model is to think and cannot, or a schema is wrong.
        ShoalError: as ``chat.chat_request``.
    """
    functions = tuple(tool.function for tool in body.tools or ())
    params = {f.name: f"tools.{place}.function.parameters" for place, f in enumerate(functions)}
    calling = Calling(functions, params=params) if functions else None
    messages = [_for_template(m, f"messages.{place}") for place, m in enumerate(body.messages or ())]
    prompt = await encoded(model, conversation(model, messages, calling, _thinking(body, model)))
    return await _asked(body, model, grammars, prompt, calling)


async def ollama_generate_request(
    body: OllamaGenerateRequest, model: Servable, grammars: Grammars
) -> GenerationRequest:
    """What a single prompt asks for. Raises as :func:`ollama_chat_request`."""
    text = body.prompt or ""
    images = _images(body.images, "images")
    if body.raw:
        asked = await _asked(body, model, grammars, await encoded(model, text, images=images), None)
        return asked if body.format else replace(asked, syntax=AnswerSyntax(Markup(), reasons=False))
    said = [("system", body.system), ("user", text)]
    messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in said if content]
    if images:
        messages[-1]["content"] = shown_first(text, images)
    prompt = await encoded(model, conversation(model, messages, None, _thinking(body, model)))
    return await _asked(body, model, grammars, prompt, None)


async def _asked(
    body: OllamaRequest, model: Servable, grammars: Grammars, prompt: RequestPrompt, calling: Calling | None
) -> GenerationRequest:
    limit = limited(model, prompt.token_ids, body.options.limit)
    found = await fit(grammars, model, prompt.own_end, calling, _format(body))
    return GenerationRequest(
        model,
        prompt.token_ids,
        limit,
        body.options.sampling(body.scores, model.local.sampling),
        stop=tuple(body.options.stop or ()),
        open_ended=body.options.limit is None,
        grammar=found.grammar,
        syntax=found.syntax,
        relaxed=found.relaxed,
        why=found.why,
        turns=isinstance(body, OllamaChatRequest),
        images=prompt.images,
        placed=prompt.placed,
        protect=body.protect,
    )


def _format(body: OllamaRequest) -> AnswerSchema | None:
    if not body.format:
        return None
    return AnswerSchema({"type": "object"} if body.format == "json" else body.format, "format")


def _thinking(body: OllamaRequest, model: Servable) -> dict[str, Any]:
    if body.think is None:
        return {}
    if body.think is not False and THINKING not in capabilities(model):
        raise BadRequest(f"{body.model[:200]!r} does not support thinking", param="think")
    words = {True: EFFORT, False: NO_EFFORT}
    return reasoning_options(words[body.think] if isinstance(body.think, bool) else body.think)


def _images(images: Sequence[str] | None, where: str) -> list[GivenImage]:
    return [GivenImage(f"{where}.{place}", data) for place, data in enumerate(images or ())]


def _for_template(message: OllamaMessage, where: str) -> dict[str, Any]:
    said = shown_first(message.content or "", _images(message.images, f"{where}.images"))
    made: dict[str, Any] = {"role": message.role, "content": said}
    if message.role == "assistant" and message.thinking:
        made["reasoning_content"] = message.thinking
    if message.role == "assistant" and message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id or "", "type": "function", "function": call.function.model_dump()}
            for call in message.tool_calls
        ]
    if message.role == "tool" and message.tool_name:
        made["name"] = message.tool_name
    if message.role == "tool" and message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


@dataclass(slots=True)
class OllamaPiece:
    """Some of an answer, or all of it."""

    text: str = ""
    thinking: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    scores: list[TokenScore] = field(default_factory=list[TokenScore])

    def add(self, more: OllamaPiece) -> None:
        self.text += more.text
        self.thinking += more.thinking
        self.calls += more.calls
        self.scores += more.scores

    def as_message(self) -> dict[str, Any]:
        """As ``/api/chat`` tells it."""
        made: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.thinking:
            made["thinking"] = self.thinking
        return {"message": made | {"tool_calls": self.calls} if self.calls else made}

    def as_response(self) -> dict[str, Any]:
        """As ``/api/generate`` tells it."""
        made = {"response": self.text}
        return made | {"thinking": self.thinking} if self.thinking else made


Wording = Callable[[OllamaPiece], dict[str, Any]]


class OllamaForm:
    """An answer, as lines of JSON or as one object.

    Args:
        name: how the client called the model.
        wording: :meth:`OllamaPiece.as_message` or :meth:`OllamaPiece.as_response`.
    """

    def __init__(self, record: Record, asked: GenerationRequest, name: str, wording: Wording) -> None:
        self._record = record
        self._model = asked.model
        self._name = name
        self._wording = wording
        self._reader = reader_of(asked)
        self._whole = OllamaPiece()
        self._call: CallStart | None = None
        """The call that is being written: Ollama tells of calls once they are whole."""
        self._arguments = ""
        self._reason = ""

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        piece = OllamaPiece(scores=[delta.score] if delta.score is not None else [])
        ended = delta.finish_reason is not None
        for said in read_delta(self._reader, delta):
            if not isinstance(said, ArgumentsDelta):
                self._end_call(piece)
            match said:
                case CallStart():
                    self._call = said
                case ArgumentsDelta(_, text):
                    self._arguments += text
                case Reasoning(text):
                    piece.thinking += text
                case text:
                    piece.text += text
        if ended:
            self._end_call(piece)
            self._reason = delta.finish_reason or ""
        self._whole.add(piece)
        return [line(self._head(piece) | {"done": False})] if piece != OllamaPiece() else []

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        return []

    def close(self) -> list[bytes]:
        return [line(self._head(OllamaPiece()) | self._end())]

    def fail(self, error: ShoalError) -> list[bytes]:
        return [line(ollama_error(error))]

    def whole(self) -> dict[str, Any]:
        return self._head(self._whole) | self._end()

    def _end_call(self, piece: OllamaPiece) -> None:
        if self._call is None:
            return
        arguments, called = arguments_object(self._arguments), self._call
        function = {"index": called.index, "name": called.name, "arguments": arguments}
        piece.calls.append({"id": called.id, "function": function})
        self._call, self._arguments = None, ""

    def _head(self, piece: OllamaPiece) -> dict[str, Any]:
        made = {"model": self._name, "created_at": now()} | self._wording(piece)
        if piece.scores and self._model.codec:
            made["logprobs"] = chat_logprobs(self._model.codec, piece.scores)["content"]
        return made

    def _end(self) -> dict[str, Any]:
        """Times in nanoseconds. To the first token counts as the prompt's, with all waiting before it."""
        record = self._record
        total = trio.current_time() - record.arrived
        first = total if record.ttft_s is None else record.ttft_s
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": _nanoseconds(total),
            "load_duration": 0,
            "prompt_eval_count": record.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first),
            "eval_count": record.tokens,
            "eval_duration": max(_nanoseconds(total - first), 1),  # clients divide by it
        }


def loaded(body: OllamaRequest, wording: Wording) -> dict[str, Any]:
    """The answer to a request without a prompt, by which Ollama's clients load a model or let it go."""
    head = {"model": body.model, "created_at": now()} | wording(OllamaPiece())
    return head | {"done": True, "done_reason": "unload" if body.unloads else "load"}


def now() -> str:
    """The time as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
