"""The body of ``POST /v1/responses``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from shoal.gateway.schema.chat import MAX_MESSAGES, MAX_TOOLS
from shoal.gateway.schema.common import (
    LONGEST_NAME,
    NO_CHOICE_OF_TOOLS,
    Body,
    Choosing,
    Content,
    Function,
    JsonSchema,
    Limit,
    ModelName,
    ReasoningEffort,
    TextContent,
    TopLogprobs,
    by,
    check_shows,
    choice_of_tools,
    misfit,
    tag,
)


class Item(Body):
    """One of the things that a conversation is made of."""

    id: str | None = Field(None, max_length=256)


class InputMessage(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None

    @model_validator(mode="after")
    def _says_something(self) -> InputMessage:
        if self.content is None and self.role != "assistant":
            raise misfit("content", "must be a string, or a list of parts: only an assistant's may be null")
        check_shows(self.role, self.content)
        return self


class InputCall(Item):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str = Field(max_length=256)
    name: str = Field(max_length=LONGEST_NAME)
    arguments: str = "{}"


class InputResult(Item):
    """What the called function gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=256)
    output: TextContent


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class InputReasoning(Item):
    """What the model thought earlier: a summary is not that, and what is encrypted only its maker reads."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = Field(None, max_length=MAX_MESSAGES)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _item(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = cast(dict[str, Any], value).get("type") or "message"
    return f"<{kind}>" if kind in ITEMS else None


InputItem = Annotated[
    Annotated[InputMessage, tag("message")]
    | Annotated[InputCall, tag("function_call")]
    | Annotated[InputResult, tag("function_call_output")]
    | Annotated[InputReasoning, tag("reasoning")],
    by(_item, f"must be an item of one of the types {', '.join(ITEMS)}"),
]


def _input(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<items>" if isinstance(value, list) else None


Input = Annotated[
    Annotated[str, tag("text")]
    | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES), tag("items")],
    by(_input, "must be a string, or a list of items"),
]


class FunctionTool(Function):
    type: Literal["function"]


class ToolByName(Body):
    type: Literal["function"]
    name: str


class AllowedToolsByName(Body):
    """Which of the functions may be called; the model is told of all."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ToolByName] = Field(min_length=1, max_length=MAX_TOOLS)


ResponsesToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], tag("word")]
    | Annotated[ToolByName, tag("object")]
    | Annotated[AllowedToolsByName, tag("allowed")],
    by(choice_of_tools, NO_CHOICE_OF_TOOLS),
]


class PlainFormat(Body):
    type: Literal["text", "json_object"] = "text"


class SchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class ReasoningConfig(Body):
    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    """Only told back: the thought itself is in the answer."""


def _format(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    return "<schema>" if cast(dict[str, Any], value).get("type") == "json_schema" else "<plain>"


AnswerFormat = Annotated[
    Annotated[PlainFormat, tag("plain")] | Annotated[SchemaFormat, tag("schema")],
    by(_format, "must be an object"),
]


class TextOptions(Body):
    format: AnswerFormat | None = None


class ResponsesRequest(Choosing):
    model: ModelName
    input: Input
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    stream: bool = False
    tools: list[FunctionTool] = Field(default_factory=list[FunctionTool], max_length=MAX_TOOLS)
    tool_choice: ResponsesToolChoice = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    reasoning: ReasoningConfig = Field(default_factory=lambda: ReasoningConfig.model_validate({}))
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(None, max_length=16)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    cache_salt: str = Field("", max_length=256)
    # Only told back. The calls that are counted are those of tools that a server runs, and ours runs none.
    max_tool_calls: int | None = Field(None, ge=1)
    safety_identifier: str | None = Field(None, max_length=64)
    prompt_cache_key: str | None = Field(None, max_length=64)
    store: bool | None = None
    """Whether the response is kept: unless this is false, as with OpenAI, or the gateway keeps nothing."""
    previous_response_id: str | None = Field(None, min_length=1, max_length=64)
    # Known, and refused where it would mean something: nothing runs unseen, nothing is cut.
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    conversation: None = None
    prompt: None = None

    @field_validator(
        "stream", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", mode="before"
    )
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True) if value is None else value

    @model_validator(mode="after")
    def _names_each_tool_once(self) -> ResponsesRequest:
        if len({tool.name for tool in self.tools}) < len(self.tools):
            raise misfit("tools", "has two functions of one name")
        return self

    @property
    def scores(self) -> int | None:
        """How many alternatives to score beside each token; ``None`` scores none."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if asked or self.top_logprobs is not None else None
