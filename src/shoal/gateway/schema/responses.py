"""The body of ``POST /v1/responses``, without any state kept: each request brings its whole conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from shoal.gateway.schema.chat import MAX_MESSAGES, MAX_TOOLS
from shoal.gateway.schema.common import Body, Choosing, Function, JsonSchema, Limit, ModelName, TopLogprobs


class InputText(Body):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText]


class InputCall(Body):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str = Field(max_length=256)
    name: str = Field(max_length=64)
    arguments: str = "{}"


class InputResult(Body):
    """What the called function gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(max_length=256)
    output: str | list[InputText]


class InputReasoning(Body):
    """What other models thought; no prompt of ours takes it."""

    type: Literal["reasoning"]


InputItem = InputCall | InputResult | InputReasoning | InputMessage


class FunctionTool(Function):
    type: Literal["function"]


class ToolByName(Body):
    type: Literal["function"]
    name: str


class PlainFormat(Body):
    type: Literal["text", "json_object"] = "text"


class SchemaFormat(JsonSchema):
    type: Literal["json_schema"]


class TextOptions(Body):
    format: PlainFormat | SchemaFormat = Field(default_factory=PlainFormat)


class ResponsesRequest(Choosing):
    model: ModelName
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Limit | None = None
    stream: bool = False
    tools: list[FunctionTool] = Field(default_factory=list[FunctionTool], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolByName = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = Field(default_factory=TextOptions)
    top_logprobs: TopLogprobs | None = None
    include: list[str] | None = Field(None, max_length=16)
    metadata: dict[str, str] | None = Field(None, max_length=16)
    cache_salt: str = Field("", max_length=256)
    # Known, and refused where it would mean something: nothing is stored, nothing is cut.
    store: bool | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None

    @field_validator("stream", "tools", "tool_choice", "parallel_tool_calls", "text", mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any, info: Any) -> Any:
        field = cls.model_fields[info.field_name]
        return field.get_default(call_default_factory=True) if value is None else value

    @property
    def scores(self) -> int | None:
        """How many alternatives to score beside each token; ``None`` scores none."""
        asked = "message.output_text.logprobs" in (self.include or ())
        return (self.top_logprobs or 0) if asked or self.top_logprobs is not None else None
