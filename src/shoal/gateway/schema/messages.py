"""The bodies of ``POST /v1/messages`` and ``POST /v1/messages/count_tokens``, in Anthropic's words.

Unlike OpenAI's, Anthropic's servers refuse a field that they do not know, unless a header asks for a beta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from shoal.gateway.schema.chat import MAX_MESSAGES, MAX_TOOLS
from shoal.gateway.schema.common import (
    LONGEST_NAME,
    MAX_STOPS,
    NO_TEXT,
    AnyObject,
    Body,
    Limit,
    ModelName,
    StopText,
    by,
    misfit,
    not_text,
    tag,
)

MIN_THINKING = 1024
"""Tokens; the least that ``budget_tokens`` may say."""
CallId = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,256}$")]
CalledName = Annotated[str, StringConstraints(pattern=rf"^[a-zA-Z0-9_.-]{{1,{LONGEST_NAME}}}$")]


class ExactBody(Body):
    """A field that is not known is a mistake."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class CacheControl(ExactBody):
    """Where to cut the prompt for its cache. Ours needs no cuts: whatever a prompt begins with is found."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(ExactBody):
    type: Literal["text"]
    text: str = Field(min_length=1)
    cache_control: CacheControl | None = None
    citations: list[AnyObject] | None = Field(None, max_length=1024)


class ImageSource(ExactBody):
    """Where an image is: in the body, or elsewhere, from where none is fetched."""

    type: Literal["base64", "url", "file"]
    media_type: str | None = Field(None, max_length=64)
    data: str | None = None
    url: str | None = Field(None, max_length=4096)
    file_id: str | None = Field(None, max_length=256)


class ImageBlock(ExactBody):
    """An image that a user shows."""

    type: Literal["image"]
    source: ImageSource
    cache_control: CacheControl | None = None


class ToolUseBlock(ExactBody):
    """A call that the model made earlier."""

    type: Literal["tool_use"]
    id: CallId
    name: CalledName
    input: AnyObject
    cache_control: CacheControl | None = None
    caller: AnyObject | None = None


class ThinkingBlock(ExactBody):
    type: Literal["thinking"]
    thinking: str
    signature: str


class RedactedThinkingBlock(ExactBody):
    type: Literal["redacted_thinking"]
    data: str


def _block(value: Any) -> str | None:
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in BLOCKS else None


def _is_text(value: Any) -> Any:
    """Raises the error for a block that is an image or a document."""
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind in NO_TEXT:
        raise not_text(kind)
    return value


def _is_text_or_image(value: Any) -> Any:
    kind = cast(dict[str, Any], value).get("type") if isinstance(value, dict) else None
    return value if kind == "image" else _is_text(value)


def _content(value: Any) -> str | None:
    return "<text>" if isinstance(value, str) else "<blocks>" if isinstance(value, list) else None


ResultText = Annotated[TextBlock, BeforeValidator(_is_text)]
ResultContent = Annotated[
    Annotated[str, tag("text")] | Annotated[list[ResultText], tag("blocks")],
    by(_content, "must be a string, or a list of blocks"),
]


class ToolResultBlock(ExactBody):
    """What the called function gave."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: ResultContent = ""
    is_error: bool = False
    cache_control: CacheControl | None = None

    @property
    def text(self) -> str:
        said = text_of_blocks(self.content)
        return f"Error: {said}" if self.is_error else said


BLOCKS = ("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking")
SAID_BY = {
    "image": "user",
    "tool_use": "assistant",
    "thinking": "assistant",
    "redacted_thinking": "assistant",
    "tool_result": "user",
}
"""Which role alone may have a block."""
MessageBlock = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock
InputBlock = Annotated[
    Annotated[TextBlock, tag("text")]
    | Annotated[ImageBlock, tag("image")]
    | Annotated[ToolUseBlock, tag("tool_use")]
    | Annotated[ToolResultBlock, tag("tool_result")]
    | Annotated[ThinkingBlock, tag("thinking")]
    | Annotated[RedactedThinkingBlock, tag("redacted_thinking")],
    by(_block, f"must be a block of one of the types {', '.join(BLOCKS)}"),
    BeforeValidator(_is_text_or_image),
]
BlockContent = Annotated[
    Annotated[str, tag("text")] | Annotated[list[InputBlock], tag("blocks")],
    by(_content, "must be a string, or a list of blocks"),
]
SystemContent = Annotated[
    Annotated[str, tag("text")] | Annotated[list[TextBlock], tag("blocks")],
    by(_content, "must be a string, or a list of text blocks"),
]


def text_of_blocks(content: str | Sequence[MessageBlock]) -> str:
    """The words of a content; what stands in blocks of its own is parted by an empty line."""
    if isinstance(content, str):
        return content
    return "\n\n".join(block.text for block in content if isinstance(block, TextBlock))


class BlockMessage(ExactBody):
    role: Literal["user", "assistant", "system"]
    content: BlockContent

    @property
    def blocks(self) -> Sequence[MessageBlock]:
        """What was said, one way."""
        if isinstance(self.content, str):
            return [TextBlock.model_construct(type="text", text=self.content)] if self.content else []
        return self.content

    @model_validator(mode="after")
    def _says_what_its_role_may(self) -> BlockMessage:
        if not self.content and self.role != "assistant":
            raise misfit("content", "must not be empty")
        for place, block in enumerate(self.blocks):
            if SAID_BY.get(block.type, self.role) != self.role:
                raise misfit(
                    f"content.{place}", f"is a block {block.type}, which role {self.role!r} cannot have"
                )
        return self


class ClientTool(ExactBody):
    """A function that the client runs; tools that Anthropic's servers run have other types."""

    type: Literal["custom"] | None = None
    name: CalledName
    description: str | None = Field(None, max_length=1 << 16)
    input_schema: AnyObject
    strict: bool | None = None
    cache_control: CacheControl | None = None
    # Known, and without a meaning here: arguments are always streamed, and every tool is told of.
    eager_input_streaming: bool | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = Field(None, max_length=16)
    input_examples: list[AnyObject] | None = Field(None, max_length=64)

    @field_validator("type", mode="before")
    @classmethod
    def _runs_at_the_client(cls, value: Any) -> Any:
        if value not in (None, "custom"):
            raise misfit(
                "", "names a tool that Anthropic's servers run: here only the client's own tools can be used"
            )
        return value

    @field_validator("input_schema")
    @classmethod
    def _describes_an_object(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value.get("type") != "object":
            raise misfit("type", "must be 'object': a tool's input is one")
        return value


class MessagesToolChoice(ExactBody):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=LONGEST_NAME)
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _names_its_tool(self) -> MessagesToolChoice:
        if (self.name is not None) != (self.type == "tool"):
            raise misfit("name", "is missing" if self.name is None else "goes with the type 'tool' alone")
        return self


class Thinking(ExactBody):
    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: int | None = Field(None, ge=MIN_THINKING)
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _has_its_budget(self) -> Thinking:
        if (self.budget_tokens is not None) != (self.type == "enabled"):
            missing = self.budget_tokens is None
            raise misfit("budget_tokens", "is missing" if missing else "goes with the type 'enabled' alone")
        return self


class JsonOutput(ExactBody):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True, populate_by_name=True)
    type: Literal["json_schema"]
    body: AnyObject = Field(alias="schema")


class OutputConfig(ExactBody):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutput | None = None


class Metadata(ExactBody):
    user_id: str | None = Field(None, max_length=512)


class CountTokensRequest(ExactBody):
    """A conversation; what its prompt is made of."""

    model: ModelName
    messages: list[BlockMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: SystemContent = ""
    tools: list[ClientTool] = Field(default_factory=list[ClientTool], max_length=MAX_TOOLS)
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> CountTokensRequest:
        names = [tool.name for tool in self.tools]
        choice = self.tool_choice
        if len(set(names)) < len(names):
            raise misfit("tools", "has two tools of one name")
        if choice is not None and choice.type != "none":
            if not names:
                raise misfit("tool_choice", "is given, and there are no tools")
            if choice.type == "tool" and choice.name not in names:
                raise misfit("tool_choice", f"demands {choice.name!r}, and no such tool is among the tools")
            if choice.type != "auto" and self.thinks:
                raise misfit("tool_choice", "may not demand a call where thinking is enabled")
        self._check_calls()
        return self

    def _check_calls(self) -> None:
        """Each call has its result in the next message, and each result is of a call in the one before."""
        open_calls: set[str] = set()
        for place, message in enumerate(self.messages):
            results = [block.tool_use_id for block in message.blocks if isinstance(block, ToolResultBlock)]
            if strange := [id for id in results if id not in open_calls]:
                raise misfit(
                    f"messages.{place}",
                    f"has a tool_result for {strange[0][:64]!r}, which was not called before",
                )
            open_calls -= set(results)
            open_calls |= {block.id for block in message.blocks if isinstance(block, ToolUseBlock)}
            following = self.messages[place + 1].role if place + 1 < len(self.messages) else None
            if open_calls and message.role == "user" and following != "user":
                missing = min(open_calls)[:64]
                raise misfit(
                    f"messages.{place}", f"has no tool_result for {missing!r}, which was called before it"
                )

    @property
    def thinks(self) -> bool:
        """Whether the model is asked to think: without a word about it, it is not."""
        return self.thinking is not None and self.thinking.type != "disabled"


class MessagesRequest(CountTokensRequest):
    max_tokens: Limit
    stop_sequences: list[StopText] = Field(default_factory=list[StopText], max_length=MAX_STOPS)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 24)
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    # Known, and not supported with any other value than none.
    container: None = None
    diagnostics: None = None
    inference_geo: None = None
    mcp_servers: None = None

    @field_validator("stop_sequences")
    @classmethod
    def _are_not_blank(cls, value: list[str]) -> list[str]:
        if any(not stop.strip() for stop in value):
            raise misfit("", "may not have a sequence of blanks alone")
        return value

    @model_validator(mode="after")
    def _can_be_answered(self) -> MessagesRequest:
        if self.messages[-1].role == "assistant":
            raise misfit(
                "messages", "must end with a user's message: an answer that has begun is not gone on with"
            )
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and budget >= self.max_tokens:
            raise misfit("max_tokens", "must be more than thinking.budget_tokens")
        return self
