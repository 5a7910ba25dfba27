"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from shoal.gateway.schema.common import MAX_TOKENS, Asking, TokenId, TopLogprobs

MAX_PROMPTS = 64
Ids = Annotated[list[TokenId], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]


class CompletionRequest(Asking):
    prompt: Text | Ids | Annotated[list[Text] | list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)  # 0 with echo only scores the prompt
    logprobs: TopLogprobs | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of: only as many as n are made")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 makes sense with echo alone")
        return self

    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt of the batch: all texts, or all token ids."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        if isinstance(prompt[0], str):
            return [text for text in prompt if isinstance(text, str)]
        return [ids for ids in prompt if isinstance(ids, list)]
