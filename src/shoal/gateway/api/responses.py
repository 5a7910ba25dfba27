"""``POST /v1/responses``: the same answers in the words of OpenAI's newer API."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from shoal.client.generate import Delta
from shoal.client.sampling import Sampling
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.api.chat import ROLES, read_delta, reader_of
from shoal.gateway.api.images import content_for_template
from shoal.gateway.api.logprobs import chat_logprobs
from shoal.gateway.api.request import GenerationRequest, conversation, encoded, limited
from shoal.gateway.api.response_items import AnyItem, items_of
from shoal.gateway.api.text_scores import TextScores
from shoal.gateway.errors import BadRequest, body_of
from shoal.gateway.grammar.fit import AnswerSchema, fit
from shoal.gateway.grammar.grammar import Grammars
from shoal.gateway.markup.events import ArgumentsDelta, CallStart, Reasoning
from shoal.gateway.markup.reasoning import reasoning_options
from shoal.gateway.markup.tools import Calling
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.chat import CalledFunction, ToolCall
from shoal.gateway.schema.common import text_of
from shoal.gateway.schema.responses import (
    AllowedToolsByName,
    InputCall,
    InputMessage,
    InputReasoning,
    InputResult,
    PlainFormat,
    ResponsesRequest,
    SchemaFormat,
    ToolByName,
)
from shoal.gateway.sse import event

PREFIX = "resp_"


async def responses_request(
    body: ResponsesRequest, model: Servable, grammars: Grammars, history: Sequence[AnyItem] = ()
) -> GenerationRequest:
    """What a request asks for, after what was said before it. Raises as ``chat.chat_request``."""
    calling = _calling(body)
    options = reasoning_options(body.reasoning.effort)
    prompt = await encoded(model, conversation(model, _messages(body, history), calling, options))
    limit = limited(model, prompt.token_ids, body.max_output_tokens)
    found = await fit(grammars, model, prompt.own_end, calling, _format(body))
    return GenerationRequest(
        model,
        prompt.token_ids,
        limit,
        body.sampling(body.scores, model.local.sampling),
        open_ended=body.max_output_tokens is None,
        grammar=found.grammar,
        syntax=found.syntax,
        relaxed=found.relaxed,
        why=found.why,
        turns=True,
        images=prompt.images,
        placed=prompt.placed,
        salt=body.cache_salt,
        speculate=body.speculate,
        draft=body.draft,
        protect=body.protect,
    )


def _calling(body: ResponsesRequest) -> Calling | None:
    """The functions that the model may call; ``None`` where it may call none.

    Raises:
        BadRequest: a call is demanded that cannot be made.
    """
    choice = body.tool_choice
    functions = tuple(body.tools)
    params = {function.name: f"tools.{place}.parameters" for place, function in enumerate(functions)}
    if isinstance(choice, ToolByName):
        named = tuple(function for function in functions if function.name == choice.name)
        if not named:
            raise BadRequest(
                f"tool_choice demands {choice.name[:64]!r}, and no such function is among the tools",
                param="tool_choice",
            )
        return Calling(named, must=True, several=False, params=params)
    if isinstance(choice, AllowedToolsByName):
        strange = {tool.name for tool in choice.tools} - params.keys()
        if strange:
            raise BadRequest(
                f"tool_choice allows {min(strange)[:64]!r}, and no such function is among the tools",
                param="tool_choice",
            )
    if choice == "required" and not functions:
        raise BadRequest("tool_choice is required, and there are no tools", param="tool_choice")
    if not functions or choice == "none":
        return None
    calling = Calling(functions, choice == "required", body.parallel_tool_calls, params)
    if isinstance(choice, AllowedToolsByName):
        return calling.only([tool.name for tool in choice.tools], must=choice.mode == "required")
    return calling


def _format(body: ResponsesRequest) -> AnswerSchema | None:
    format = body.text.format or PlainFormat()
    if isinstance(format, SchemaFormat):
        return AnswerSchema(format.body, "text.format.schema", strict=bool(format.strict))
    return AnswerSchema({"type": "object"}, "text.format") if format.type == "json_object" else None


def _messages(body: ResponsesRequest, history: Sequence[AnyItem]) -> list[dict[str, Any]]:
    """The conversation as chat templates read it. Earlier instructions are not carried over."""
    found: list[dict[str, Any]] = []
    if body.instructions:
        found.append({"role": "system", "content": body.instructions})
    thoughts: list[str] = []
    for place, item in enumerate((*history, *items_of(body.input)), -len(history)):
        if isinstance(item, InputReasoning):
            thoughts.append(item.text)
            continue
        _add(found, item, f"input.{place}" if place >= 0 else "previous_response_id")
        if found[-1]["role"] == "assistant":
            _think(found[-1], thoughts)
        thoughts = []
    if not found:
        raise BadRequest("input has nothing that a model could answer", param="input")
    return found


def _add(found: list[dict[str, Any]], item: InputMessage | InputCall | InputResult, where: str) -> None:
    """What a model said and called in one turn are several items here, and one message for a template."""
    match item:
        case InputMessage():
            said = content_for_template(item.content, f"{where}.content")
            found.append({"role": ROLES.get(item.role, item.role), "content": said})
        case InputCall():
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            called = CalledFunction(name=item.name, arguments=item.arguments)
            call = ToolCall(id=item.call_id, function=called)
            found[-1].setdefault("tool_calls", []).append(call.for_template())
        case InputResult():
            found.append({"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)})


def _think(message: dict[str, Any], thoughts: list[str]) -> None:
    """Give a message what was thought before it. A thought that nothing came of is left out."""
    if texts := [text for text in (message.get("reasoning_content"), *thoughts) if text]:
        message["reasoning_content"] = "\n\n".join(texts)


class ResponsesForm:
    """A response, as typed events or as one object."""

    def __init__(
        self, record: Record, asked: GenerationRequest, body: ResponsesRequest, *, stored: bool = False
    ) -> None:
        self._record = record
        self.stored = stored
        """Whether the response is kept, or will be when it is whole."""
        self._model = asked.model
        self._sampling = asked.sampling
        self._body = body
        self._reader = reader_of(asked)
        self._created = int(time.time())
        self._completed: int | None = None
        self._output: list[dict[str, Any]] = []
        self._text_scores = TextScores()
        self._error: dict[str, Any] | None = None
        self._number = 0
        self._status = "in_progress"

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        events = [] if self._number else self._open()
        said = read_delta(self._reader, delta)
        scores = self._text_scores.take(delta, said, self._reader.undecided)
        for one in said:
            if isinstance(one, str):
                events += self._write(one, scores)
                scores = []
            else:
                events += self._say(one)
        if delta.finish_reason is not None:
            rest, kinds = self._text_scores.rest(), [item["type"] for item in self._output]
            if set(kinds) <= {"reasoning"} or (rest and kinds[-1] == "message"):
                events += self._write("", rest)
            if delta.finish_reason == "length":
                self._status = "incomplete"
            else:
                self._status, self._completed = "completed", int(time.time())
            events += self._close_item()
        return events

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        return []

    def close(self) -> list[bytes]:
        return [self._event(f"response.{self._status}", response=self.whole())]

    def fail(self, error: ShoalError) -> list[bytes]:
        told = body_of(error)["error"]
        said = self._event("error", code=told["code"], message=told["message"], param=None, error=told)
        self._status = "failed"
        self._error = {"code": told["code"], "message": told["message"]}
        if self._output and self._output[-1]["status"] == "in_progress":
            self._output[-1]["status"] = "incomplete"
        return [said, self._event("response.failed", response=self.whole())]

    def whole(self) -> dict[str, Any]:
        cut = self._status == "incomplete"
        return {
            "id": self._record.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._completed,
            "status": self._status,
            "error": self._error,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self._model.id,
            "output": self._output,
            "usage": None if self._status in ("in_progress", "failed") else self._usage(),
            **_told_back(self._body, self._sampling),
            "store": self.stored,
            "shoal": self._record.told(),
        }

    def _open(self) -> list[bytes]:
        return [self._event(f"response.{name}", response=self.whole()) for name in ("created", "in_progress")]

    def _say(self, said: Reasoning | CallStart | ArgumentsDelta) -> list[bytes]:
        match said:
            case CallStart(_, id, name):
                fields = {"call_id": id, "name": name, "arguments": ""}
                return [*self._close_item(), *self._open_item("fc_", "function_call", **fields)]
            case ArgumentsDelta(_, text):
                item = self._output[-1]
                item["arguments"] += text
                return [self._about("response.function_call_arguments.delta", delta=text)]
            case Reasoning(text):
                events = self._into("rs_", "reasoning", {"type": "reasoning_text", "text": ""}, summary=[])
                self._output[-1]["content"][0]["text"] += text
                return [*events, self._about("response.reasoning_text.delta", content_index=0, delta=text)]

    def _write(self, text: str, scores: Sequence[TokenScore]) -> list[bytes]:
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        events = self._into("msg_", "message", part, role="assistant")
        codec, written = self._model.codec, self._output[-1]["content"][0]
        logprobs = chat_logprobs(codec, scores)["content"] if codec is not None else []
        written["text"] += text
        written["logprobs"] += logprobs
        return [
            *events,
            self._about("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs),
        ]

    def _into(self, prefix: str, type: str, part: dict[str, Any], **fields: Any) -> list[bytes]:
        """Go on with an item of one part, or close the one before it and begin it."""
        if self._output and self._output[-1]["type"] == type:
            return []
        events = [*self._close_item(), *self._open_item(prefix, type, **fields, content=[])]
        events.append(self._about("response.content_part.added", content_index=0, part=dict(part)))
        self._output[-1]["content"].append(part)
        return events

    def _open_item(self, prefix: str, type: str, **fields: Any) -> list[bytes]:
        item = {"id": f"{prefix}{secrets.token_hex(12)}", "type": type, "status": "in_progress", **fields}
        self._output.append(item)
        index = len(self._output) - 1
        return [self._event("response.output_item.added", output_index=index, item=dict(item))]

    def _close_item(self) -> list[bytes]:
        """End the item that is being written."""
        if not self._output:
            return []
        item = self._output[-1]
        item["status"] = "incomplete" if self._status == "incomplete" else "completed"
        events: list[bytes] = []
        if item["type"] == "function_call":
            events.append(
                self._about(
                    "response.function_call_arguments.done", arguments=item["arguments"], name=item["name"]
                )
            )
        elif item["type"] == "reasoning":
            part = item["content"][0]
            events.append(self._about("response.reasoning_text.done", content_index=0, text=part["text"]))
            events.append(self._about("response.content_part.done", content_index=0, part=part))
        else:
            part = item["content"][0]
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            events.append(self._about("response.output_text.done", content_index=0, **done))
            events.append(self._about("response.content_part.done", content_index=0, part=part))
        index = len(self._output) - 1
        return [*events, self._event("response.output_item.done", output_index=index, item=item)]

    def _about(self, type: str, **fields: Any) -> bytes:
        """An event about the item that is being written."""
        return self._event(type, item_id=self._output[-1]["id"], output_index=len(self._output) - 1, **fields)

    def _event(self, type: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": type, "sequence_number": self._number - 1, **fields}, type)

    def _usage(self) -> dict[str, Any]:
        record = self._record
        return {
            "input_tokens": record.prompt_tokens,
            "input_tokens_details": {"cached_tokens": record.cached_tokens},
            "output_tokens": record.tokens,
            "output_tokens_details": {"reasoning_tokens": self._reader.reasoning_tokens},
            "total_tokens": record.prompt_tokens + record.tokens,
        }


def _told_back(body: ResponsesRequest, sampling: Sampling) -> dict[str, Any]:
    """The request as an answer repeats it, with what was taken where it did not say."""
    choice = body.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning.model_dump(),
        "background": False,
        "service_tier": "default",
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if body.top_p is None else body.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": body.top_logprobs or 0,
        "text": {"format": _format_told(body.text.format or PlainFormat())},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools],
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }


def _format_told(format: PlainFormat | SchemaFormat) -> dict[str, Any]:
    told = format.model_dump(by_alias=True)
    return told | {"strict": bool(format.strict)} if isinstance(format, SchemaFormat) else told
