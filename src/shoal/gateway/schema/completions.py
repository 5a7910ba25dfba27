"""The body of ``POST /v1/completions``."""

from __future__ import annotations

from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from shoal.gateway.schema.common import MAX_TOKENS, Asking, TokenId, TopLogprobs, by, misfit, tag

MAX_PROMPTS = 64
PromptIds = Annotated[list[TokenId], Field(min_length=1)]
PromptText = Annotated[str, Field(min_length=1)]


Batch = Field(min_length=1, max_length=MAX_PROMPTS)


def kind_of_prompt(value: Any) -> str | None:
    """Which of the four a prompt is, by its first item."""
    if isinstance(value, str):
        return "<text>"
    if not isinstance(value, list):
        return None
    first: object = cast(list[object], value)[0] if value else 0
    return "<texts>" if isinstance(first, str) else "<id lists>" if isinstance(first, list) else "<ids>"


CompletionPrompt = Annotated[
    Annotated[PromptText, tag("text")]
    | Annotated[PromptIds, tag("ids")]
    | Annotated[list[PromptText], Batch, tag("texts")]
    | Annotated[list[PromptIds], Batch, tag("id lists")],
    by(kind_of_prompt, "must be a string, a list of token ids, or a list of either"),
]


class CompletionRequest(Asking):
    prompt: CompletionPrompt
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)  # 0 with echo only scores the prompt
    logprobs: TopLogprobs | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: None = None

    @model_validator(mode="after")
    def _fits_together(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise misfit("best_of", "may only be what n is")
        if self.max_tokens == 0 and not self.echo:
            raise misfit("max_tokens", "may be 0 with echo alone")
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
