"""The bodies of ``POST /api/chat``, ``/api/generate`` and ``/api/show``, in Ollama's words.

As Ollama's servers do, fields and options that are not known are ignored.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from shoal.client.recommended import sampling_for
from shoal.client.sampling import MAX_TOP_LOGPROBS, REPETITION, Sampling
from shoal.gateway.schema.chat import MAX_MESSAGES, MAX_TOOLS
from shoal.gateway.schema.common import (
    LEAST_TOP_P,
    LONGEST_NAME,
    MAX_STOPS,
    MAX_TOKENS,
    OPENAI_TEMPERATURE,
    AnyObject,
    Body,
    Function,
    ModelName,
    Penalty,
    StopText,
    by,
    misfit,
    tag,
)
from shoal.models.store.local_model import SamplingDefaults
from shoal.types import ProtectionLevel

TO_THE_END = -2
"""``num_predict`` of an answer that may become as long as the context."""
HOTTEST = 100.0


def _whole(value: Any) -> Any:
    """Ollama cuts a fraction off."""
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


WholeNumber = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63), BeforeValidator(_whole)]


class OllamaOptions(Body):
    """How to choose tokens. What concerns the loading of a model (``num_ctx``, ``num_gpu``, …) is ignored."""

    temperature: float | None = Field(None, le=HOTTEST)
    top_p: float | None = None
    top_k: WholeNumber | None = None
    min_p: float | None = None
    seed: WholeNumber | None = None
    num_predict: WholeNumber | None = None
    stop: list[StopText] | None = Field(None, max_length=MAX_STOPS)
    repeat_penalty: float | None = Field(None, ge=REPETITION[0], le=REPETITION[1])
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def sampling(self, top_logprobs: int | None, defaults: SamplingDefaults) -> Sampling:
        """The same for the sampler: the model's own where nothing is said, then OpenAI's.

        A probability out of bounds is brought within, as Ollama does.
        """
        named = {
            "temperature": None if self.temperature is None else max(self.temperature, 0.0),
            "top_p": _within(self.top_p, LEAST_TOP_P, 1.0),
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": _within(self.min_p, 0.0, 1.0),
            "seed": self.seed if self.seed is not None and self.seed >= 0 else None,  # -1 is any
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "top_logprobs": top_logprobs,
        }
        return sampling_for(defaults, named, OPENAI_TEMPERATURE)

    @property
    def limit(self) -> int | None:
        """Tokens of the answer; ``None`` where none are named, which -1 and 0 also say."""
        if self.num_predict is None or (self.num_predict <= 0 and self.num_predict != TO_THE_END):
            return None
        return MAX_TOKENS if self.num_predict == TO_THE_END else min(self.num_predict, MAX_TOKENS)


def _within(value: float | None, least: float, most: float) -> float | None:
    return None if value is None else min(max(value, least), most)


OllamaImages = Annotated[list[str], Field(max_length=256)]
"""Images in base64."""


def _effort(value: Any) -> str | None:
    return "<flag>" if isinstance(value, bool) else "<word>" if isinstance(value, str) else None


Think = Annotated[
    Annotated[bool, tag("flag")] | Annotated[Literal["low", "medium", "high", "max"], tag("word")],
    by(_effort, "must be true, false, 'low', 'medium', 'high' or 'max'"),
]


def _format(value: Any) -> str | None:
    return "<word>" if isinstance(value, str) else "<schema>" if isinstance(value, dict) else None


OllamaFormat = Annotated[
    Annotated[Literal["", "json"], tag("word")] | Annotated[AnyObject, tag("schema")],
    by(_format, "must be 'json', or a JSON schema"),
]


def _time(value: Any) -> str | None:
    if isinstance(value, str):
        return "<duration>"
    return "<seconds>" if isinstance(value, int | float) and not isinstance(value, bool) else None


Duration = Annotated[
    str, StringConstraints(pattern=r"^[+-]?(0|([0-9.]+(ns|us|µs|ms|s|m|h))+)$", max_length=64)
]
KeepAlive = Annotated[
    Annotated[float, tag("seconds")] | Annotated[Duration, tag("duration")],
    by(_time, "must be seconds, or a duration such as '5m'"),
]


class OllamaRequest(Body):
    """What both ways of asking share."""

    model: ModelName
    stream: bool = True
    format: OllamaFormat | None = None
    think: Think | None = None
    options: OllamaOptions = Field(default_factory=lambda: OllamaOptions.model_validate({}))
    keep_alive: KeepAlive | None = None
    """Checked alone: models stay in memory for as long as their nodes serve them."""
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    protect: ProtectionLevel | None = None
    """Beyond Ollama's: how the answer is protected, as in the other routes' bodies."""

    @field_validator("stream", "options", "logprobs", "top_logprobs", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        return (
            cls.model_fields[info.field_name].get_default(call_default_factory=True)
            if value is None
            else value
        )

    @property
    def unloads(self) -> bool:
        """Whether a request without a prompt means that the model is not needed any more."""
        return self.keep_alive in (0, "0", "0s", "0m", "0h")

    @property
    def scores(self) -> int | None:
        """How many alternatives to score beside each token; ``None`` scores none."""
        return self.top_logprobs if self.logprobs else None


class CalledTool(Body):
    name: str = Field(max_length=LONGEST_NAME)
    arguments: AnyObject = Field(default_factory=dict[str, Any])


class OllamaCall(Body):
    """A call that the model made earlier in the conversation."""

    id: str | None = Field(None, max_length=256)
    function: CalledTool


class OllamaMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: OllamaImages | None = None
    tool_calls: list[OllamaCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_name: str | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)

    @field_validator("role", mode="before")
    @classmethod
    def _in_any_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _shows_what_its_role_may(self) -> OllamaMessage:
        if self.images and self.role != "user":
            raise misfit("images", f"cannot be shown by role {self.role!r}")
        return self


class OllamaTool(Body):
    type: Literal["function"] = "function"
    function: Function


class OllamaChatRequest(OllamaRequest):
    messages: list[OllamaMessage] | None = Field(None, max_length=MAX_MESSAGES)
    """Without any, Ollama only loads the model."""
    tools: list[OllamaTool] | None = Field(None, max_length=MAX_TOOLS)

    @model_validator(mode="after")
    def _fits_together(self) -> OllamaChatRequest:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise misfit("tools", "has two functions of one name")
        if self.messages and self.messages[-1].role == "assistant":
            raise misfit(
                "messages",
                "may not end with an assistant's message: an answer that has begun is not gone on with",
            )
        return self


class OllamaGenerateRequest(OllamaRequest):
    prompt: str | None = None
    """Without one, Ollama only loads the model."""
    system: str | None = None
    raw: bool = False
    """Whether the prompt is given to the model as it is, without a chat template."""
    images: OllamaImages | None = None

    @field_validator("raw", mode="before")
    @classmethod
    def _null_is_false(cls, value: Any) -> Any:
        return False if value is None else value

    @model_validator(mode="before")
    @classmethod
    def _has_what_is_supported(cls, value: Any) -> Any:
        """Empty ones say nothing, and some clients send them."""
        if isinstance(value, dict):
            fields = cast(dict[str, Any], value)
            for name, instead in UNSUPPORTED.items():
                if fields.get(name):
                    raise misfit(name, f"is not supported: {instead}")
        return value


UNSUPPORTED = {
    "suffix": "this model goes on at the end of a text alone",
    "template": "the model's own template is used; raw takes a prompt without one",
    "context": "send the conversation to /api/chat",
}
"""What changes the prompt of ``/api/generate`` in ways that we do not have, and what to do instead."""


ShownName = Annotated[str, StringConstraints(max_length=512)]


class NamedModel(Body):
    """A body that names a model in either of two ways."""

    model: ShownName | None = None
    name: ShownName | None = None
    """How older clients call it; newer ones send it empty."""

    @property
    def wanted(self) -> str:
        return self.model or self.name or ""

    @model_validator(mode="after")
    def _names_one(self) -> NamedModel:
        if not self.wanted:
            raise misfit("model", "is missing")
        return self


class ShowRequest(NamedModel):
    """What is known of which model."""


class PullRequest(NamedModel):
    """Which model to fetch. ``insecure`` is ignored: what comes is checked by its hashes."""

    stream: bool = True

    @field_validator("stream", mode="before")
    @classmethod
    def _null_is_true(cls, value: Any) -> Any:
        return True if value is None else value
