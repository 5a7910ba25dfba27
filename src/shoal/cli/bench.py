"""`shoal bench`: numbers about this machine, as ratios in one run."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options
from shoal.cli.output import emit

SENTENCE = (
    "{model} in {format}: {swarm_tokens_per_s} tokens a second through {nodes} nodes, "
    "{one_process_tokens_per_s} in one process: a ratio of {ratio}"
)


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
    format: options.FormatOption = None,
    as_json: options.Json = False,
) -> None:
    """Compare decoding through node processes here with the same model in one process."""
    settings = options.settings(model=model, threads=threads, format=format)
    import trio

    from shoal.bench.overhead import Bench
    from shoal.bench.overhead import overhead as measure

    found = trio.run(measure, settings, Bench(nodes, tokens))
    emit(found, as_json, lambda: SENTENCE.format(**found))
