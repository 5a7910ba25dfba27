"""`shoal run` and `shoal chat`: ask a model that the swarm serves."""

from __future__ import annotations

import sys
from typing import Annotated, TextIO

import typer

from shoal.cli import options
from shoal.errors import ShoalError, UsageError

MAX_STDIN = 64 << 20
"""Characters read from stdin; a longer prompt fits no model, and is refused rather than cut."""

MaxTokens = Annotated[int, typer.Option(help="Tokens of the answer at most.", min=1)]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; higher is freer.")]
TopK = Annotated[int, typer.Option(help="Choose among the k likeliest tokens; 0 among all.")]
TopP = Annotated[float, typer.Option(help="Choose among the likeliest tokens of this probability together.")]
MinP = Annotated[float, typer.Option(help="Choose among tokens this likely, relative to the likeliest.")]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Divide the score of tokens that occurred.")
]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be given again.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.", show_default=False)]
Raw = Annotated[bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")]


def register(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(chat)


def run(
    model: options.ModelArgument,
    prompt: Annotated[
        str | None, typer.Argument(help="The prompt; what comes on stdin is put behind it.")
    ] = None,
    swarm: options.Swarm = None,
    public: options.Public = None,
    dtype: options.DType = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    raw: Raw = False,
    as_json: options.Json = False,
) -> None:
    """Answer one prompt. The answer is streamed on stdout."""
    settings = options.settings(swarm=swarm, public=public, model=model, dtype=dtype)
    text = whole_prompt(prompt, sys.stdin)
    raise ShoalError(f"asking {settings.model} ({len(text)} characters) is not wired yet")


def chat(
    model: Annotated[
        str | None, typer.Argument(help="The default model if not named.", show_default=False)
    ] = None,
    swarm: options.Swarm = None,
    public: options.Public = None,
    dtype: options.DType = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.7,
    seed: Seed = None,
) -> None:
    """Talk with a model. /quit or Ctrl-D ends it."""
    settings = options.settings(swarm=swarm, public=public, model=model, dtype=dtype)
    raise ShoalError(f"talking with {settings.model} is not wired yet")


def whole_prompt(argument: str | None, stdin: TextIO) -> str:
    """The prompt: the argument, then what comes on stdin unless that is a terminal, a blank line between.

    Raises:
        UsageError: there is neither, or stdin is no text or has no end in sight.
    """
    piped = ""
    if not stdin.isatty():
        try:
            piped = stdin.read(MAX_STDIN + 1)
        except UnicodeDecodeError as error:
            raise UsageError(
                "what comes on stdin is not UTF-8 text", check="the file that is piped in"
            ) from error
        if len(piped) > MAX_STDIN:
            raise UsageError(f"what comes on stdin is longer than {MAX_STDIN >> 20} Mi characters")
    parts = [part for part in (argument or "", piped.removesuffix("\n")) if part]
    if not parts:
        raise UsageError("there is no prompt", next_command='shoal run MODEL "Why is the sky blue?"')
    return "\n\n".join(parts)
