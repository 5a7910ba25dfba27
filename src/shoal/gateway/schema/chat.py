"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from shoal.gateway.schema.common import (
    LONGEST_NAME,
    NO_CHOICE_OF_TOOLS,
    NOT_TEXT,
    Asking,
    Body,
    Content,
    Function,
    Limit,
    ReasoningEffort,
    TextFormat,
    TopLogprobs,
    by,
    check_shows,
    choice_of_tools,
    misfit,
    tag,
)
from shoal.models.text.conversation import called_function

MAX_MESSAGES = 4096
MAX_TOOLS = 128
TEMPLATE_WORDS = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "tokenize",
        "chat_template",
        "continue_final_message",
    }
)
"""What ``chat_template_kwargs`` may not set (CVE-2025-62426): ours to say, or nobody's."""
TemplateWord = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def _plain(value: Any) -> str | None:
    names = {bool: "<flag>", int: "<number>", float: "<fraction>", str: "<text>"}
    return names.get(type(value))


TemplateValue = Annotated[
    Annotated[bool, tag("flag")]
    | Annotated[int, tag("number")]
    | Annotated[float, tag("fraction")]
    | Annotated[str, Field(max_length=4096), tag("text")],
    by(_plain, "must be a string, a number, true or false"),
]


class CalledFunction(Body):
    name: str = Field(max_length=LONGEST_NAME)
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _nothing_is_no_arguments(cls, value: Any) -> Any:
        return "{}" if value in (None, "") else value

    def for_template(self) -> dict[str, Any]:
        """As templates read it: the arguments as an object where they are one."""
        return called_function(self.name, self.arguments)


class ToolCall(Body):
    """A call that the model made earlier in the conversation."""

    id: str | None = Field(None, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As templates read it."""
        return {"id": self.id or "", "type": "function", "function": self.function.for_template()}


class RequestMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """What the model thought, as our own answers tell it; some templates show it to the model again."""
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(None, max_length=256)
    function_call: CalledFunction | None = None
    """How a call was written before there were tools."""
    audio: Any = None

    @property
    def calls(self) -> list[ToolCall]:
        """What an assistant called."""
        called = self.tool_calls or []
        return called or ([ToolCall(id=None, function=self.function_call)] if self.function_call else [])

    @field_validator("audio")
    @classmethod
    def _is_no_audio(cls, value: Any) -> Any:
        if value is not None:
            raise PydanticCustomError(NOT_TEXT, "{kind}", {"kind": "audio"})
        return value

    @model_validator(mode="after")
    def _says_something(self) -> RequestMessage:
        if self.content is None and self.role != "assistant":
            raise misfit("content", "must be a string, or a list of parts: only an assistant's may be null")
        check_shows(self.role, self.content)
        return self


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class AllowedFunctions(Body):
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedTools(Body):
    """Which of the functions may be called; the model is told of all."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions

    @property
    def names(self) -> list[str]:
        return [tool.function.name for tool in self.allowed_tools.tools]


ChatToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], tag("word")]
    | Annotated[NamedTool, tag("object")]
    | Annotated[AllowedTools, tag("allowed")],
    by(choice_of_tools, NO_CHOICE_OF_TOOLS),
]


class ChatRequest(Asking):
    messages: list[RequestMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ChatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: dict[TemplateWord, TemplateValue] | None = Field(None, max_length=32)
    modalities: list[Literal["text"]] | None = None
    receipts: bool | None = None
    """Have the hops sign what they have done, and send that with the answer (``shoal.receipts``)."""
    # Known, and not supported with any other value than none.
    audio: None = None
    functions: None = None
    function_call: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise misfit("top_logprobs", "needs logprobs: true")
        if self.receipts and self.n > 1:
            raise misfit("receipts", "are of one choice: leave out n")
        if forbidden := sorted(TEMPLATE_WORDS & (self.chat_template_kwargs or {}).keys()):
            raise misfit("chat_template_kwargs", f"may not set {', '.join(forbidden)}")
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise misfit("tools", "has two functions of one name")
        choice = self.tool_choice
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            name = choice.function.name[:64]
            raise misfit("tool_choice", f"demands {name!r}, and no such function is among the tools")
        if isinstance(choice, AllowedTools) and (strange := set(choice.names) - set(names)):
            name = min(strange)[:64]
            raise misfit("tool_choice", f"allows {name!r}, and no such function is among the tools")
        if self.tool_choice == "required" and not names:
            raise misfit("tool_choice", "is required, and there are no tools")

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many alternatives to score beside each token; ``None`` scores none."""
        return (self.top_logprobs or 0) if self.logprobs else None
