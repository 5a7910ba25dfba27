"""The bodies of ``POST /tokenize`` and ``POST /detokenize``."""

from __future__ import annotations

from pydantic import Field, model_validator

from shoal.gateway.schema.chat import MAX_MESSAGES, RequestMessage
from shoal.gateway.schema.common import Body, ModelName, TokenId, misfit


class TokenizeRequest(Body):
    model: ModelName
    prompt: str | None = None
    messages: list[RequestMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise misfit("", "must have either a prompt or messages")
        return self


class DetokenizeRequest(Body):
    model: ModelName
    tokens: list[TokenId] = Field(max_length=1 << 20)
