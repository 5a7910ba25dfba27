"""The body of ``POST /v1/chat/completions``."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shoal.gateway.schema.common import Asking, Body, Function, Limit, TextFormat, TopLogprobs

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
TemplateValue = bool | int | float | Annotated[str, Field(max_length=4096)]


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str = Field(max_length=64)
    arguments: str = "{}"


class ToolCall(Body):
    """A call that the model made earlier in the conversation."""

    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As templates read it: the arguments as an object where they are one."""
        try:
            arguments: object = json.loads(self.function.arguments)
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        called = {"name": self.function.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": called}


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=256)
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_TOOLS)
    tool_call_id: str | None = Field(None, max_length=256)

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError("content may be null only where an assistant calls tools")
        return self


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Asking):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Limit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None
    reasoning_effort: str | None = Field(None, max_length=16)
    chat_template_kwargs: dict[TemplateWord, TemplateValue] | None = Field(None, max_length=32)
    modalities: list[Literal["text"]] | None = None
    # Known, and not supported with any other value than none.
    audio: None = None
    functions: None = None
    function_call: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _fits_together(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if TEMPLATE_WORDS & (self.chat_template_kwargs or {}).keys():
            raise ValueError(f"chat_template_kwargs may not set any of {', '.join(sorted(TEMPLATE_WORDS))}")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools: two functions have one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice: no function {self.tool_choice.function.name[:64]!r} among the tools"
            )
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice: required, and there are no tools")
        wanted = self.response_format.type if self.response_format else "text"
        if wanted == "json_schema" and (
            self.response_format is None or self.response_format.json_schema is None
        ):
            raise ValueError("response_format: json_schema is missing")
        if wanted != "text" and self.tools and self.tool_choice not in (None, "none", "auto"):
            raise ValueError("response_format: the answer cannot be JSON and a call that tool_choice demands")
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many alternatives to score beside each token; ``None`` scores none."""
        return (self.top_logprobs or 0) if self.logprobs else None
