"""What the bodies of several routes have in common.

Unknown fields are ignored, as OpenAI's servers do. A known field with a value that is not supported is
refused, so that nobody takes an answer for what it is not.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from shoal.client.sampling import MAX_BIAS, MAX_PENALTY, MAX_TOP_LOGPROBS, REPETITION, Sampling

MAX_CHOICES = 8
MAX_STOPS = 16
MAX_TOKENS = 1 << 20
"""What ``max_tokens`` may say; what the model's context leaves is the limit then."""
MAX_BIASED = 1024
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Limit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Body(BaseModel):
    """Numbers are numbers: neither NaN nor infinite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False


class Choosing(Body):
    """How the next token is chosen. ``None`` is what a client means by leaving a field out."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=MAX_BIASED)
    top_k: int | None = Field(None, ge=-1, le=1 << 24)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=REPETITION[0], le=REPETITION[1])

    def sampling(self, top_logprobs: int | None) -> Sampling:
        """The client's wishes as the sampler takes them; OpenAI's defaults where it has none."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=None if self.seed is None else self.seed % (1 << 63),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or {},
            top_logprobs=top_logprobs,
        )


class Asking(Choosing):
    """What chat and text completions share."""

    model: ModelName
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stop: list[StopText] = Field(default_factory=list[StopText], max_length=MAX_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    cache_salt: str = Field("", max_length=256)
    """Only requests of the same key with the same salt share what was computed for their prompts."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        if value is None:
            return []
        return [value] if isinstance(value, str) else value

    @field_validator("n", "stream", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class JsonSchema(Body):
    """A schema by name, as ``response_format`` carries it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, populate_by_name=True)
    name: str = Field("answer", max_length=64)
    description: str | None = None
    body: dict[str, Any] = Field(default_factory=dict[str, Any], alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Chat's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Function(Body):
    """A function that the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = Field(None, max_length=8192)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
