"""``POST /v1/completions``: plain continuation, with scores of the prompt too, as evaluations want them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.errors import ShoalError
from shoal.gateway.api.chat import system_fingerprint, usage_of
from shoal.gateway.api.logprobs import text_logprobs
from shoal.gateway.api.request import GenerationRequest, limited, prompt_ids
from shoal.gateway.errors import BadRequest, body_of
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.completions import CompletionRequest
from shoal.gateway.sse import DONE, event

PREFIX = "cmpl-"
MAX_SCORED = 8192
"""Tokens of one echoed prompt that are scored: each of them is a row of logits."""


async def completion_requests(body: CompletionRequest, model: Servable) -> list[GenerationRequest]:
    """What a completion request asks for: one for each prompt of its batch.

    Raises:
        ShoalError: a prompt is empty, too long, or has tokens that the model does not have.
    """
    return [await _one(body, model, prompt) for prompt in body.prompts()]


async def _one(body: CompletionRequest, model: Servable, prompt: str | list[int]) -> GenerationRequest:
    ids = await prompt_ids(model, prompt) if isinstance(prompt, str) else prompt
    limit = limited(
        model, ids, body.max_tokens if body.max_tokens is not None else 16
    )  # OpenAI's default here
    if body.echo and model.both is not None:
        raise BadRequest(f"{model.id} does not continue a prompt: its answer stands by itself", param="echo")
    if body.echo and body.logprobs is not None and len(ids) > MAX_SCORED:
        raise BadRequest(f"echo with logprobs takes prompts of up to {MAX_SCORED} tokens", param="echo")
    return GenerationRequest(
        model,
        tuple(ids),
        limit,
        body.sampling(body.logprobs, model.local.sampling),
        choices=body.n,
        stop=tuple(body.stop),
        echo=body.echo,
        salt=body.cache_salt,
        speculate=body.speculate,
        draft=body.draft,
        protect=body.protect,
    )


@dataclass(slots=True)
class _Choice:
    prompt: tuple[int, ...]
    text: str = ""
    written: int = 0
    """Characters by the texts of the single tokens, which offsets count."""
    scores: list[tuple[int, TokenScore | None]] = field(default_factory=list[tuple[int, TokenScore | None]])
    finish_reason: str | None = None


class CompletionForm:
    """A text completion, as chunks or as one object."""

    def __init__(self, record: Record, asked: Sequence[GenerationRequest], *, include_usage: bool) -> None:
        self._record = record
        self._model = asked[0].model
        self._scored = asked[0].sampling.top_logprobs is not None
        self._only_scored = asked[0].max_tokens == 0
        self._include_usage = include_usage
        self._created = int(time.time())
        self._choices = [_Choice(one.prompt) for one in asked for _ in range(one.choices)]

    def take(self, choice: int, delta: Delta) -> list[bytes]:
        state = self._choices[choice]
        state.text += delta.text
        state.finish_reason = delta.finish_reason
        added = [(token, delta.score) for token in delta.token_ids] if self._scored else []
        logprobs = self._logprobs(state, added)
        if not delta.text and not added and delta.finish_reason is None:
            return []
        return [self._chunk(choice, delta.text, logprobs, delta.finish_reason)]

    def take_scores(self, choice: int, scores: list[TokenScore | None]) -> list[bytes]:
        state = self._choices[choice]
        text = self._model.codec.decode(state.prompt) if self._model.codec else ""
        state.text += text
        added = list(zip(state.prompt, scores, strict=True)) if scores else []
        state.finish_reason = "length" if self._only_scored else None
        return [self._chunk(choice, text, self._logprobs(state, added), state.finish_reason)]

    def close(self) -> list[bytes]:
        if not self._include_usage:
            return [DONE]
        return [event(self._head([]) | {"usage": usage_of(self._record)}), DONE]

    def fail(self, error: ShoalError) -> list[bytes]:
        return [event(body_of(error))]

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "text": choice.text,
                "logprobs": text_logprobs(self._model.codec, choice.scores, 0) if self._scored else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        return self._head(choices) | {"usage": usage_of(self._record), "shoal": self._record.told()}

    def _logprobs(self, state: _Choice, added: list[tuple[int, TokenScore | None]]) -> dict[str, Any] | None:
        if not added:
            return None
        made = text_logprobs(self._model.codec, added, state.written)
        state.scores += added
        state.written = made["text_offset"][-1] + len(made["tokens"][-1])
        return made

    def _chunk(
        self, choice: int, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None
    ) -> bytes:
        whole = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return event(self._head([whole]) | ({"usage": None} if self._include_usage else {}))

    def _head(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._record.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.id,
            "system_fingerprint": system_fingerprint(self._model),
            "choices": choices,
        }
