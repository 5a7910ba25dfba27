"""What embeddings are asked for, and how each API writes them down."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import trio

from shoal.client.embeddings import check_embeddable, listed, text_tokens
from shoal.client.swarm import Swarm
from shoal.errors import PromptTooLong
from shoal.executor.arrays import Floats
from shoal.gateway.errors import BadRequest
from shoal.gateway.models import Servable
from shoal.gateway.page.requests import Record
from shoal.gateway.schema.embeddings import EmbeddingsRequest, EmbedRequest, OneEmbeddingRequest
from shoal.models.embedding.pooling import unit
from shoal.models.embedding.settings import EmbeddingSettings

PREFIX = "embd-"
OLLAMA_PREFIX = "ollama-embd-"
MAX_TOKENS = 300_000
"""Of all texts of one request together, as OpenAI has it."""
MAX_NUMBERS = 1 << 23
"""Of all vectors of one answer together: as JSON they take 20 bytes each."""


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """What is to be embedded."""

    model: Servable
    settings: EmbeddingSettings
    texts: Sequence[Sequence[int]]
    """Token ids, special ones among them."""
    dimensions: int | None

    @property
    def tokens(self) -> int:
        """Of all texts together."""
        return sum(map(len, self.texts))


@dataclass(frozen=True, slots=True)
class Made:
    """What came of it."""

    vectors: Floats
    took_s: float
    """Since the request came."""


async def embedding_request(
    swarm: Swarm,
    model: Servable,
    texts: list[str] | list[list[int]],
    dimensions: int | None,
    *,
    truncate: bool = False,
) -> EmbeddingRequest:
    """Texts as the model takes them.

    Raises:
        UsageError: the model gives no embeddings, or not so long ones; a text has no tokens, or wrong ones.
        PromptTooLong: a text is too long, or all are together.
        BadRequest: so many vectors of such a length are too much for one answer.
        BadWeights: the model's files do not say how its embeddings are made, or it has no tokenizer.
    """
    check_embeddable(model.local, dimensions)
    settings = await swarm.embedding(model.local)
    if len(texts) * (dimensions or model.shape.hidden_size) > MAX_NUMBERS:
        raise BadRequest(
            f"{len(texts)} vectors are more than the {MAX_NUMBERS} numbers of one answer",
            check="send fewer texts at once",
            param="input",
        )
    read = partial(text_tokens, model.local, model.codec, settings, texts, truncate=truncate)
    asked = EmbeddingRequest(model, settings, await trio.to_thread.run_sync(read), dimensions)
    if asked.tokens > MAX_TOKENS:
        raise PromptTooLong(
            f"the texts have {asked.tokens} tokens together, and a request takes {MAX_TOKENS}",
            check="send fewer texts at once",
        )
    return asked


async def openai_request(body: EmbeddingsRequest, swarm: Swarm, model: Servable) -> EmbeddingRequest:
    """What OpenAI's clients ask for. Raises as :func:`embedding_request`."""
    return await embedding_request(swarm, model, listed(body.input), body.dimensions)


async def ollama_request(
    body: EmbedRequest | OneEmbeddingRequest, swarm: Swarm, model: Servable
) -> EmbeddingRequest:
    """What Ollama's clients ask for; without any texts there is nothing to be done. Raises as above."""
    if isinstance(body, OneEmbeddingRequest):
        return await embedding_request(swarm, model, [body.prompt or ""], None, truncate=True)
    truncate = body.truncate is not False
    return await embedding_request(swarm, model, body.texts, body.dimensions, truncate=truncate)


def openai_answer(
    form: Literal["float", "base64"], asked: EmbeddingRequest, record: Record, made: Made
) -> dict[str, Any]:
    """As OpenAI writes it down; base64 holds little-endian float32."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(form, vector)}
            for index, vector in enumerate(made.vectors)
        ],
        "model": asked.model.id,
        "usage": {"prompt_tokens": asked.tokens, "total_tokens": asked.tokens},
        "shoal": record.told(),
    }


def ollama_answer(
    body: EmbedRequest | OneEmbeddingRequest, asked: EmbeddingRequest, record: Record, made: Made
) -> dict[str, Any]:
    """As Ollama does: of length 1, but for the older route's."""
    if isinstance(body, OneEmbeddingRequest):
        return {"embedding": made.vectors[0].tolist()}
    return {
        "model": body.model,
        "embeddings": [unit(vector).tolist() for vector in made.vectors],
        "total_duration": round(made.took_s * 1e9),
        "load_duration": 0,
        "prompt_eval_count": asked.tokens,
    }


def nothing(body: EmbedRequest | OneEmbeddingRequest) -> dict[str, Any] | None:
    """Ollama's answer to a request without a text, by which its clients load a model; ``None`` with one."""
    if isinstance(body, OneEmbeddingRequest):
        return None if body.prompt else {"embedding": []}
    return None if body.texts else {"model": body.model, "embeddings": []}


def _written(form: Literal["float", "base64"], vector: Floats) -> str | list[float]:
    if form == "float":
        return vector.tolist()
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()
