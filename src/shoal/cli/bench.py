"""`shoal bench`: numbers about this machine, as ratios in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options
from shoal.errors import ShoalError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure this machine.", no_args_is_help=True)
    group.callback()(lambda: None)  # keeps `overhead` a word of its own while it is the only one
    group.command()(overhead)
    app.add_typer(group, name="bench")


def overhead(
    model: options.Model = None,
    nodes: Annotated[int, typer.Option(help="Node processes to decode through.", min=1, max=64)] = 3,
    tokens: Annotated[int, typer.Option(help="Tokens to decode each way.", min=8)] = 64,
    threads: options.Threads = None,
    dtype: options.DType = None,
    as_json: options.Json = False,
) -> None:
    """Compare decoding through node processes here with the same model in one process."""
    settings = options.settings(model=model, threads=threads, dtype=dtype)
    raise ShoalError(f"the overhead of {settings.model} on {nodes} nodes ({tokens} tokens) is not wired yet")
