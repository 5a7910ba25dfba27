"""What the bodies of several routes have in common.

Unknown fields are ignored, as OpenAI's servers do. A known field with a value that is not supported is
refused, so that nobody takes an answer for what it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shoal.client.recommended import sampling_for
from shoal.client.sampling import MAX_BIAS, MAX_PENALTY, MAX_TOP_LOGPROBS, REPETITION, Sampling
from shoal.models.store.local_model import SamplingDefaults
from shoal.types import ProtectionLevel

OPENAI_TEMPERATURE = 1.0
"""Where neither the client nor the model's makers name one."""
LEAST_TOP_P = 1e-9
"""Keeps the likeliest token alone, as 0 does, which each API takes."""
MAX_CHOICES = 8
"""They come one after the other: OpenAI's 128 would hold a turn for as long as so many answers take."""
MAX_STOPS = 16
MAX_TOKENS = 1 << 20
"""What ``max_tokens`` may say; what the model's context leaves is the limit then."""
MAX_BIASED = 1024
LONGEST_NAME = 128
"""Characters of a function's name: what Anthropic's API takes; OpenAI's takes half."""
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
Limit = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
UnauditedLevel = Literal["fast", "attested"]
"""Of :data:`shoal.types.ProtectionLevel`, those that vectors and transcripts can have."""


MISFIT = "misfit"
"""The type of an error in words of ours: they go on a sentence that begins with the field's path."""
NOT_TEXT = "not_text"
"""The type of the error for an image, or other things that are no text: ``kind`` says what it is."""


def misfit(field: str, said: str) -> PydanticCustomError:
    """A field that is wrong beside others, which no single type says; ``""`` where it is the whole."""
    return PydanticCustomError(MISFIT, "{said}", {"field": field, "said": said})


def by(tag_of: Callable[[Any], str | None], said: str) -> Discriminator:
    """Chooses a union's branch by its :func:`tag`, so that a fault is told of that branch alone.

    Args:
        said: what is wrong where ``tag_of`` finds no branch.
    """
    return Discriminator(tag_of, custom_error_type=MISFIT, custom_error_message=said)


def tag(name: str) -> Tag:
    """Names a branch; unlike a field's name it is left out of the paths of faults."""
    return Tag(f"<{name}>")


def is_tag(part: object) -> bool:
    """Whether a part of a fault's path is a :func:`tag`."""
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


class Body(BaseModel):
    """Values have the type that their field has in JSON: no text is a number. Numbers are neither NaN nor
    infinite."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True)


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """Refuses numbers such as 1e999, which JSON can say and no answer can repeat."""
    inside: list[object] = [value]
    while inside:
        one = inside.pop()
        if isinstance(one, dict):
            inside += cast("dict[str, object]", one).values()
        elif isinstance(one, list):
            inside += cast("list[object]", one)
        elif isinstance(one, float) and not math.isfinite(one):
            raise misfit("", "has a number that is not finite")
    return value


AnyObject = Annotated[dict[str, Any], AfterValidator(_finite)]
"""An object of which nothing is known but that it can be written as JSON again."""
NO_TEXT = {
    "image": "an image",
    "audio": "audio",
    "file": "a file",
    "document": "a file",
    "video": "a video",
}
"""What a part is called that is no text, by a word in its type: ``image_url``, ``input_image``, …"""


def not_text(kind: str) -> PydanticCustomError:
    """A part of a type that is no text."""
    other = next((name for word, name in NO_TEXT.items() if word in kind), None)
    return PydanticCustomError(NOT_TEXT, "{kind}", {"kind": other or f"a part of the type {kind[:32]!r}"})


class TextPart(Body):
    """A piece of what somebody said; a refusal is one too."""

    type: Literal["text", "input_text", "output_text", "refusal"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        part = cast(dict[str, Any], value)
        kind = part.get("type")
        if kind == "refusal":
            return part | {"text": part.get("refusal")}
        if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
            raise not_text(kind)
        return part


class ImagePart(Body):
    """An image that a user shows. What it is and whether the model takes any is said where it is known."""

    type: Literal["image_url", "input_image"]
    image_url: str
    detail: str | None = Field(None, max_length=16)

    @model_validator(mode="before")
    @classmethod
    def _has_its_url(cls, value: Any) -> Any:
        """Chat has the URL in an object, with the detail beside it."""
        part = cast(dict[str, Any], value)
        inside = part.get("image_url")
        if isinstance(inside, dict):
            return part | {"image_url": inside.get("url"), "detail": inside.get("detail")}
        return part


def _shape(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


def _part(value: Any) -> str:
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    return "<image>" if kind in ("image_url", "input_image") else "<text>"


ContentPart = Annotated[
    Annotated[TextPart, tag("text")] | Annotated[ImagePart, tag("image")], by(_part, "must be an object")
]
Content = Annotated[
    Annotated[str, tag("text")] | Annotated[list[ContentPart], tag("parts")],
    by(_shape, "must be a string, or a list of parts"),
]
"""What somebody said and showed: a text, or pieces of one, and images among them."""
TextContent = Annotated[
    Annotated[str, tag("text")] | Annotated[list[TextPart], tag("parts")],
    by(_shape, "must be a string, or a list of parts"),
]
"""The same where no images can be."""


def text_of(content: str | Sequence[TextPart | ImagePart] | None) -> str:
    """The words of a content, put together."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content if isinstance(part, TextPart))


def check_shows(role: str, content: object) -> None:
    """Raises the error for an image in a message that is not the user's."""
    if role != "user" and isinstance(content, list):
        for place, part in enumerate(cast("list[object]", content)):
            if isinstance(part, ImagePart):
                raise misfit(f"content.{place}", f"is an image, which role {role!r} cannot show")


def by_shape(value: Any) -> str | None:
    """Tells a word from an object: ``<word>`` or ``<object>``."""
    return "<word>" if isinstance(value, str) else "<object>" if isinstance(value, dict) else None


def choice_of_tools(value: Any) -> str | None:
    """Tells what a ``tool_choice`` is: ``<word>``, ``<object>``, or ``<allowed>``."""
    allowed = isinstance(value, dict) and cast(dict[str, Any], value).get("type") == "allowed_tools"
    return "<allowed>" if allowed else by_shape(value)


NO_CHOICE_OF_TOOLS = "must be 'none', 'auto', 'required', a function by name or allowed_tools"
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""How much a model is to think, in OpenAI's words."""


class StreamOptions(Body):
    include_usage: bool | None = None


class Choosing(Body):
    """How the next token is chosen. ``None`` is what a client means by leaving a field out."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = Field(None, max_length=MAX_BIASED)
    top_k: int | None = Field(None, ge=-1, le=1 << 24)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=REPETITION[0], le=REPETITION[1])
    speculate: bool | None = None
    """Whether tokens are guessed ahead; by default as the gateway is set. The answer is the same."""
    draft: bool = True
    """Whether the gateway's draft model guesses too, if it has one."""
    protect: ProtectionLevel | None = None
    """How the answer is protected from nodes that compute something else: ``fast``, ``audited``,
    ``proved``, ``consensus`` or ``attested``. By default as the header ``X-Shoal-Protect``, the key or the
    gateway has it."""

    def sampling(self, top_logprobs: int | None, defaults: SamplingDefaults) -> Sampling:
        """The client's wishes as the sampler takes them; the model's own where it has none, then OpenAI's."""
        named = {
            "temperature": self.temperature,
            "top_p": None if self.top_p is None else max(self.top_p, LEAST_TOP_P),
            "top_k": None if self.top_k is None else max(self.top_k, 0),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "seed": None if self.seed is None else self.seed % (1 << 63),
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias,
            "top_logprobs": top_logprobs,
        }
        return sampling_for(defaults, named, OPENAI_TEMPERATURE)


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
        if not isinstance(value, str | list):
            raise misfit("", "must be a string, or a list of strings")
        return [value] if isinstance(value, str) else value

    @field_validator("n", "stream", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class JsonSchema(Body):
    """A schema by name, as ``response_format`` carries it."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, strict=True, populate_by_name=True)
    name: str = Field("answer", max_length=64)
    description: str | None = None
    body: AnyObject = Field(default_factory=dict[str, Any], alias="schema")
    strict: bool | None = None


class TextFormat(Body):
    """Chat's ``response_format``."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise misfit("json_schema", "is missing")
        return self


class Function(Body):
    """A function that the model may call."""

    name: str = Field(pattern=rf"^[A-Za-z0-9_.-]{{1,{LONGEST_NAME}}}$")
    description: str | None = Field(None, max_length=1 << 16)
    parameters: AnyObject | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _describes_an_object(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        kinds: object = (value or {}).get("type")
        if kinds not in (None, "object") and not (isinstance(kinds, list) and "object" in kinds):
            raise misfit("type", "must be 'object': arguments are one")
        return value
