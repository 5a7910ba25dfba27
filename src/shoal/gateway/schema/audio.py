"""The form of ``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``, beside its file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from shoal.gateway.schema.common import Body, ModelName, UnauditedLevel

Code = Annotated[str, StringConstraints(min_length=2, max_length=12)]


class AudioRequest(Body):
    """Fields of a form are texts: numbers are read from them."""

    model_config = ConfigDict(strict=False)
    model: ModelName
    language: Code | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    prompt: Annotated[str, StringConstraints(max_length=0)] = ""
    """Not taken: what was said before is not shown to the model."""
    stream: Literal["false"] = "false"
    user: str | None = None
    protect: UnauditedLevel | None = None
