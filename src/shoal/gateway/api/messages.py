"""``POST /v1/messages`` and ``…/count_tokens``: the same answers in the words of Anthropic's API."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from starlette.datastructures import Headers

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.api.chat import read_delta, reader_of
from shoal.gateway.api.images import GivenImage
from shoal.gateway.api.request import GenerationRequest, RequestPrompt, conversation, encoded, joined, limited
from shoal.gateway.error_forms import anthropic_error
from shoal.gateway.errors import BadRequest
from shoal.gateway.grammar.fit import AnswerSchema, fit
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.markup.arguments import arguments_object
from shoal.gateway.markup.events import AnswerEvent, ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reasoning import NO_EFFORT, reasoning_options
from shoal.gateway.markup.tools import Calling
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.common import Choosing, Function
from shoal.gateway.schema.messages import (
    BlockMessage,
    CountTokensRequest,
    ImageBlock,
    MessageBlock,
    MessagesRequest,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    text_of_blocks,
)
from shoal.gateway.sse import event
from shoal.models.store.local_model import LocalModel

_Kind = TypeVar("_Kind", ToolResultBlock, ToolUseBlock, ThinkingBlock)

PREFIX = "msg_"
VERSION = "2023-06-01"
_DATE = re.compile(r"20\d\d-[01]\d-[0-3]\d", re.ASCII)
DEFAULT_EFFORT = "medium"
BILLING = "x-anthropic-billing-header:"
"""How Claude Code begins a system block that is meant for Anthropic's accounting. It differs from request to
request, and would keep every one of them from finding its prompt in the cache."""
PING = event({"type": "ping"}, "ping")


def takes_betas(headers: Headers) -> bool:
    """Whether a request may have fields that we do not know, as those of a beta.

    Clients have named several versions, in which what is taken here is the same.

    Raises:
        BadRequest: the headers name a version of the API that can be none.
    """
    version = headers.get("anthropic-version", VERSION)
    if not _DATE.fullmatch(version):
        raise BadRequest(f"anthropic-version {version[:32]!r} is not a version; {VERSION} is one")
    return bool(headers.get("anthropic-beta", "").strip())


async def messages_request(body: MessagesRequest, model: Servable, grammars: Grammars) -> GenerationRequest:
    """What a request asks for. Raises as ``chat.chat_request``."""
    calling = _calling(body)
    prompt = await _prompt(body, model, calling)
    limit = limited(model, prompt.token_ids, body.max_tokens)
    found = await fit(grammars, model, prompt.own_end, calling, _format(body))
    named = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
    return GenerationRequest(
        model,
        prompt.token_ids,
        limit,
        Choosing.model_validate(named).sampling(None, model.local.sampling),
        stop=tuple(body.stop_sequences),
        grammar=found.grammar,
        syntax=found.syntax,
        relaxed=found.relaxed,
        why=found.why,
        turns=True,
        images=prompt.images,
        placed=prompt.placed,
    )


async def count_tokens(body: CountTokensRequest, model: Servable) -> dict[str, Any]:
    """How long the prompt of a conversation is. Raises as :func:`messages_request`."""
    return {"input_tokens": len((await _prompt(body, model, _calling(body))).token_ids)}


async def _prompt(body: CountTokensRequest, model: Servable, calling: Calling | None) -> RequestPrompt:
    effort = body.output_config.effort if body.output_config else None
    options = reasoning_options((effort or DEFAULT_EFFORT) if body.thinks else NO_EFFORT)
    return await encoded(model, conversation(model, _messages(body), calling, options))


def _calling(body: CountTokensRequest) -> Calling | None:
    """The functions that the model may call; ``None`` where it may call none."""
    choice = body.tool_choice
    if not body.tools or (choice is not None and choice.type == "none"):
        return None
    functions = tuple(
        Function(name=t.name, description=t.description, parameters=t.input_schema, strict=t.strict)
        for t in body.tools
    )
    params = {tool.name: f"tools.{place}.input_schema" for place, tool in enumerate(body.tools)}
    if choice is None:
        return Calling(functions, params=params)
    if choice.type == "tool":
        named = tuple(function for function in functions if function.name == choice.name)
        return Calling(named, must=True, several=False, params=params)
    return Calling(functions, choice.type == "any", not choice.disable_parallel_tool_use, params)


def _format(body: CountTokensRequest) -> AnswerSchema | None:
    format = body.output_config.format if body.output_config else None
    return AnswerSchema(format.body, "output_config.format.schema", strict=True) if format else None


def _shown(message: BlockMessage, where: str) -> Any:
    """What a user says, as parts where images are shown among it."""
    if not any(isinstance(block, ImageBlock) for block in message.blocks):
        return text_of_blocks(message.blocks)
    parts: list[Any] = []
    for place, block in enumerate(message.blocks):
        if isinstance(block, TextBlock):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, ImageBlock):
            parts.append(_image(block, f"{where}.{place}"))
    return parts


def _image(block: ImageBlock, where: str) -> GivenImage:
    source = block.source
    if source.type != "base64" or source.data is None:
        return GivenImage(where, "", (source.url or source.file_id or "nothing")[:80])
    return GivenImage(where, source.data, kind=source.media_type or "")


def _messages(body: CountTokensRequest) -> list[dict[str, Any]]:
    """The conversation as chat templates read it, where roles take turns."""
    found: list[dict[str, Any]] = []
    system = body.system
    if not isinstance(system, str):
        system = text_of_blocks([block for block in system if not block.text.startswith(BILLING)])
    if system:
        found.append({"role": "system", "content": system})
    for place, message in enumerate(body.messages):
        if message.role == "assistant":
            found.append(_said(message))
            continue
        for result in _of(message.blocks, ToolResultBlock):
            found.append({"role": "tool", "tool_call_id": result.tool_use_id, "content": result.text})
        if said := _shown(message, f"messages.{place}.content"):
            found.append({"role": message.role, "content": said})
    return joined(found)


def _said(message: BlockMessage) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": text_of_blocks(message.blocks)}
    if thought := "\n\n".join(block.thinking for block in _of(message.blocks, ThinkingBlock)):
        made["reasoning_content"] = thought
    if calls := _of(message.blocks, ToolUseBlock):
        made["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.input}}
            for c in calls
        ]
    return made


def _of(blocks: Iterable[MessageBlock], kind: type[_Kind]) -> list[_Kind]:
    return [block for block in blocks if isinstance(block, kind)]


def model_list(models: Sequence[LocalModel]) -> dict[str, Any]:
    """The models as Anthropic's clients list them: all on one page."""
    data = [model_card(local) for local in models]
    ends = (
        {"first_id": data[0]["id"], "last_id": data[-1]["id"]}
        if data
        else {"first_id": None, "last_id": None}
    )
    return {"data": data, "has_more": False} | ends


def model_card(local: LocalModel) -> dict[str, Any]:
    """One of them; when it came into the world is not known, and the epoch says so."""
    return {
        "type": "model",
        "id": local.name,
        "display_name": local.name,
        "created_at": "1970-01-01T00:00:00Z",
        "max_input_tokens": local.shape.context,
        "max_tokens": local.shape.context,
        "lifecycle": "active",
    }


class MessagesForm:
    """A message, as typed events or as one object."""

    def __init__(self, record: Record, asked: GenerationRequest, body: MessagesRequest) -> None:
        self._record = record
        self._model = asked.model
        self._reader = reader_of(asked)
        self._shows_thinking = body.thinking is None or body.thinking.display != "omitted"
        self._at_limit = (
            "max_tokens" if body.max_tokens <= asked.max_tokens else "model_context_window_exceeded"
        )
        self._content: list[dict[str, Any]] = []
        self._input = ""
        """The arguments of the call that is being written."""
        self._begun = False
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        events = [] if self._begun else self._begin()
        ended = delta.finish_reason is not None
        for said in read_delta(self._reader, delta):
            events += self._say(said)
        if ended:
            events += self._end_block()
            self._stop_sequence = delta.stop_string
            self._stop_reason = self._why(delta)
        return events

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        return []

    def close(self) -> list[bytes]:
        ended = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        delta = ended | {"stop_details": None, "container": None}
        return [self._event("message_delta", delta=delta, usage=self._usage()), self._event("message_stop")]

    def fail(self, error: ShoalError) -> list[bytes]:
        return [event(anthropic_error(error), "error")]

    def whole(self) -> dict[str, Any]:
        return {
            "id": self._record.id,
            "type": "message",
            "role": "assistant",
            "model": self._model.id,
            "content": self._content,
            "stop_reason": self._stop_reason,
            "stop_sequence": self._stop_sequence,
            "stop_details": None,
            "container": None,
            "usage": self._usage()
            | {"cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }

    def _begin(self) -> list[bytes]:
        self._begun = True
        return [self._event("message_start", message=self.whole()), PING]

    def _say(self, said: AnswerEvent) -> list[bytes]:
        match said:
            case CallStart(_, id, name):
                return self._begin_block(
                    {"type": "tool_use", "id": id, "name": name, "input": {}, "caller": {"type": "direct"}}
                )
            case ArgumentsDelta(_, text):
                self._input += text
                return [self._delta(type="input_json_delta", partial_json=text)]
            case Reasoning(text):
                events = self._into({"type": "thinking", "thinking": "", "signature": ""})
                if not self._shows_thinking:
                    return events
                self._content[-1]["thinking"] += text
                return [*events, self._delta(type="thinking_delta", thinking=text)]
            case text:
                events = self._into({"type": "text", "text": "", "citations": None})
                self._content[-1]["text"] += text
                return [*events, self._delta(type="text_delta", text=text)]

    def _into(self, block: dict[str, Any]) -> list[bytes]:
        """Go on with a block of this type, or end the one before it and begin it."""
        if self._content and self._content[-1]["type"] == block["type"]:
            return []
        return self._begin_block(block)

    def _begin_block(self, block: dict[str, Any]) -> list[bytes]:
        events = self._end_block()
        self._content.append(block)
        return [
            *events,
            self._event("content_block_start", index=len(self._content) - 1, content_block=dict(block)),
        ]

    def _end_block(self) -> list[bytes]:
        if not self._content:
            return []
        block = self._content[-1]
        events: list[bytes] = []
        if block["type"] == "tool_use":
            block["input"], self._input = arguments_object(self._input), ""
        elif block["type"] == "thinking":
            # Theirs proves that a thought is the model's own; ours names the answer, and is never asked for.
            block["signature"] = self._record.id
            events.append(self._delta(type="signature_delta", signature=block["signature"]))
        return [*events, self._event("content_block_stop", index=len(self._content) - 1)]

    def _why(self, delta: Delta) -> str:
        if delta.finish_reason == "length":
            return self._at_limit
        if delta.stop_string is not None:
            return "stop_sequence"
        called = any(block["type"] == "tool_use" for block in self._content)
        return "tool_use" if called else "end_turn"

    def _delta(self, **fields: Any) -> bytes:
        return self._event("content_block_delta", index=len(self._content) - 1, delta=fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        return event({"type": type, **fields}, type)

    def _usage(self) -> dict[str, Any]:
        """Tokens as Anthropic counts them: what was found in a cache is no part of the input."""
        record = self._record
        return {
            "input_tokens": record.prompt_tokens - record.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": record.cached_tokens,
            "output_tokens": record.tokens,
            "output_tokens_details": {"thinking_tokens": self._reader.reasoning_tokens},
            "server_tool_use": None,
        }
