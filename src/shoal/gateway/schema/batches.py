"""The body of ``POST /v1/batches``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from shoal.gateway.schema.common import Body
from shoal.gateway.stored.batches.batch import Endpoint

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


EXPIRES = range(3600, 2592001)
"""Seconds, as with OpenAI: from an hour to 30 days."""


class OutputExpiry(Body):
    anchor: Literal["created_at"]
    seconds: int = Field(ge=EXPIRES.start, lt=EXPIRES.stop)


class BatchRequest(Body):
    """Which file of requests to work on, and for which route."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: OutputExpiry | None = None
