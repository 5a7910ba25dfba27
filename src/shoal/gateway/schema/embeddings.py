"""The bodies of ``POST /v1/embeddings``, and of Ollama's ``/api/embed`` and ``/api/embeddings``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from shoal.gateway.schema.common import Body, ModelName, UnauditedLevel, by, tag
from shoal.gateway.schema.completions import PromptIds, PromptText, kind_of_prompt

MAX_INPUTS = 2048
"""Texts of one request: as many as OpenAI's API takes."""
MAX_DIMENSIONS = 1 << 16

InputBatch = Field(min_length=1, max_length=MAX_INPUTS)
EmbeddingInput = Annotated[
    Annotated[PromptText, tag("text")]
    | Annotated[PromptIds, tag("ids")]
    | Annotated[list[PromptText], InputBatch, tag("texts")]
    | Annotated[list[PromptIds], InputBatch, tag("id lists")],
    by(kind_of_prompt, "must be a string, a list of token ids, or a list of either"),
]
Dimensions = Annotated[int, Field(ge=1, le=MAX_DIMENSIONS)]


class EmbeddingsRequest(Body):
    model: ModelName
    input: EmbeddingInput
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions | None = None
    user: str | None = None
    protect: UnauditedLevel | None = None


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<texts>" if isinstance(value, list) else None


AnyText = Annotated[str, StringConstraints(max_length=1 << 24)]


class EmbedRequest(Body):
    """Unlike OpenAI, Ollama takes empty texts, and cuts those that are too long."""

    model: ModelName
    input: (
        Annotated[
            Annotated[AnyText, tag("text")]
            | Annotated[list[AnyText], Field(max_length=MAX_INPUTS), tag("texts")],
            by(_kind, "must be a string or a list of strings"),
        ]
        | None
    ) = None
    """Without any, Ollama only loads the model."""
    truncate: bool | None = None
    dimensions: Dimensions | None = None
    protect: UnauditedLevel | None = None

    @property
    def texts(self) -> list[str]:
        """The texts of the batch; a single empty one is none."""
        if isinstance(self.input, str):
            return [self.input] if self.input else []
        return list(self.input or ())


class OneEmbeddingRequest(Body):
    """Of the older route."""

    model: ModelName
    prompt: AnyText | None = None
    protect: UnauditedLevel | None = None
