"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

import trio

from shoal.errors import UsageError
from shoal.gateway.api.chat import for_templates
from shoal.gateway.api.request import conversation, prompt_ids
from shoal.gateway.models import Servable
from shoal.gateway.schema.tokens import DetokenizeRequest, TokenizeRequest


async def tokenize(body: TokenizeRequest, model: Servable) -> dict[str, Any]:
    """Token ids of a prompt or a conversation. Raises as :func:`prompt_ids`."""
    if body.messages is not None:
        tokens = await prompt_ids(model, conversation(model, for_templates(body.messages)))
    else:
        tokens = await prompt_ids(model, body.prompt or "", special=body.add_special_tokens)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": model.shape.context}


async def detokenize(body: DetokenizeRequest, model: Servable) -> dict[str, Any]:
    """The text of token ids.

    Raises:
        UsageError: ids outside of the vocabulary, or a model without a tokenizer.
    """
    if model.codec is None:
        raise UsageError(f"{model.id} has no tokenizer")
    if body.tokens and max(body.tokens) >= model.shape.vocab_size:
        raise UsageError(f"token {max(body.tokens)} is outside of the vocabulary of {model.shape.vocab_size}")
    return {"prompt": await trio.to_thread.run_sync(model.codec.decode, body.tokens)}
