"""`shoal demo`: three nodes and a client on this machine, answering."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options

PROMPT = "Why do fish swim in shoals? Answer in two sentences."


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    once: Annotated[bool, typer.Option("--once", help="Answer the first prompt, then exit.")] = False,
    prompt: Annotated[str, typer.Option(help="The first prompt.")] = PROMPT,
    model: options.ModelOption = None,
    nodes: Annotated[int, typer.Option(help="Number of nodes to start.", min=1, max=64)] = 3,
    format: options.FormatOption = None,
    device: options.DeviceOption = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 64,
    as_json: options.JsonOption = False,
) -> None:
    """Try Shoal on this machine. Starts a few nodes, asks a question, and shows which blocks ran where."""
    settings = options.settings(model=model, format=format, device=device)
    import trio

    from shoal.cli.demo.demonstration import Demo, show

    trio.run(show, settings, Demo(prompt, nodes, max_tokens, once, as_json))
