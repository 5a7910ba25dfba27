"""`shoal demo`: three nodes and a client on this machine, answering."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options

PROMPT = "Why do fish swim in shoals? Answer in two sentences."


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    once: Annotated[bool, typer.Option("--once", help="Answer once, then end.")] = False,
    prompt: Annotated[str, typer.Option(help="What to ask first.")] = PROMPT,
    model: options.Model = None,
    nodes: Annotated[int, typer.Option(help="Node processes to start.", min=1, max=64)] = 3,
    format: options.FormatOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 64,
    as_json: options.Json = False,
) -> None:
    """See it work here. Starts nodes on this machine, asks them, and says what ran where."""
    settings = options.settings(model=model, format=format)
    import trio

    from shoal.cli.demonstration import Demo, show

    trio.run(show, settings, Demo(prompt, nodes, max_tokens, once, as_json))
