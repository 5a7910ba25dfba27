"""`shoal bench`: numbers about this machine, as ratios in one run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.progress import Progress
from shoal.types import Format

if TYPE_CHECKING:
    from shoal.bench.results import Report

SENTENCE = (
    "{model} in {format}: {swarm_tokens_per_s} tokens a second through {nodes} nodes, "
    "{one_process_tokens_per_s} in one process: a ratio of {ratio}"
)
Model = Annotated[
    str | None,
    typer.Option(help="The model, or random-1.1b: a Llama with random weights.", show_default=False),
]
Formats = Annotated[
    str | None,
    typer.Option("--format", help="Measure this format only: fp32, bf16, int8 or int4.", show_default=False),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads for each program measured; by default one per core.", show_default=False),
]
Rounds = Annotated[int, typer.Option(help="Number of measurements; medians are shown.", min=1, max=100)]
Nodes = Annotated[int, typer.Option(help="Number of nodes on this machine.", min=1, max=64)]
Page = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write an HTML report with plots.", show_default=False),
]

PACKED: tuple[Format, ...] = ("bf16", "int8")
"""What is measured through nodes and beside other programs when no format is named."""


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure this machine.", no_args_is_help=True)
    for command in (device, executor, overhead, swarm, gateway, peers, accuracy):
        group.command()(command)
    app.add_typer(group, name="bench")


def device(
    threads: Threads = None, rounds: Rounds = 5, report: Page = None, as_json: options.Json = False
) -> None:
    """Measure memory bandwidth, and the speed of matrix products in each format."""
    settings = _settings(None, None, threads)

    async def measure(progress: Progress) -> Report:
        from shoal.bench.executor import torch_thread
        from shoal.bench.roof import device as measured

        with torch_thread() as thread:
            return await measured(thread, settings, rounds, progress)

    _show(measure, report, as_json)


def executor(
    model: Model = None,
    format: Formats = None,
    threads: Threads = None,
    rounds: Rounds = 5,
    report: Page = None,
    as_json: options.Json = False,
) -> None:
    """Decode 1, 8 and 32 sessions and prefill 512 tokens, in one process, in each format."""
    settings = _settings(model, format, threads)

    def measure(progress: Progress) -> Awaitable[Report]:
        from shoal.bench.executor import executor as measured

        return measured(settings, _formats(settings, get_args(Format)), rounds, progress)

    _show(measure, report, as_json)


def accuracy(
    model: Model = None,
    format: Formats = None,
    threads: Threads = None,
    report: Page = None,
    as_json: options.Json = False,
) -> None:
    """Compare the perplexity of an English text in every format, codec and kind of KV with float32."""
    settings = _settings(model, format, threads)

    def measure(progress: Progress) -> Awaitable[Report]:
        from shoal.bench.accuracy import accuracy as measured

        return measured(settings, _formats(settings, get_args(Format)), progress)

    _show(measure, report, as_json)


def swarm(
    model: Model = None,
    format: Formats = None,
    nodes: Nodes = 3,
    sessions: Annotated[
        int,
        typer.Option(help="Largest number of concurrent sessions; doubles from 1 up to it.", min=1, max=64),
    ] = 32,
    threads: Threads = None,
    rounds: Rounds = 5,
    report: Page = None,
    as_json: options.Json = False,
) -> None:
    """Compare decoding through local nodes with one process, for more and more sessions."""
    settings = _settings(model, format, threads)

    def measure(progress: Progress) -> Awaitable[Report]:
        from shoal.bench.swarm import Asked
        from shoal.bench.swarm import swarm as measured

        return measured(settings, Asked(_formats(settings, PACKED), nodes, sessions, rounds), progress)

    _show(measure, report, as_json)


def gateway(
    model: Model = None,
    format: Formats = None,
    nodes: Nodes = 3,
    sessions: Annotated[
        int, typer.Option(help="Number of concurrent chats, measured next to a single one.", min=1, max=64)
    ] = 8,
    threads: Threads = None,
    rounds: Rounds = 5,
    report: Page = None,
    as_json: options.Json = False,
) -> None:
    """Compare chats over the gateway's HTTP API with the same chats through the library."""
    settings = _settings(model, format, threads)

    def measure(progress: Progress) -> Awaitable[Report]:
        from shoal.bench.gateway import Asked
        from shoal.bench.gateway import gateway as measured

        return measured(settings, Asked(nodes, sessions, rounds), progress)

    _show(measure, report, as_json)


def peers(
    model: Model = None,
    format: Formats = None,
    nodes: Nodes = 3,
    sessions: Annotated[
        int, typer.Option(help="Concurrent sessions in the measurements with many.", min=2, max=64)
    ] = 8,
    threads: Threads = None,
    rounds: Rounds = 5,
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of llama.cpp's programs; by default they are built once.",
            show_default=False,
        ),
    ] = None,
    report: Page = None,
    as_json: options.Json = False,
) -> None:
    """Compare with llama.cpp and language-pipes, with the same weights, threads and number of nodes."""
    settings = _settings(model, format, threads)

    def measure(progress: Progress) -> Awaitable[Report]:
        from shoal.bench.peers.compare import Asked
        from shoal.bench.peers.compare import peers as measured

        asked = Asked(_formats(settings, PACKED), nodes, sessions, rounds, llama_cpp)
        return measured(settings, asked, progress)

    _show(measure, report, as_json)


def overhead(
    model: options.Model = None,
    nodes: Nodes = 3,
    tokens: Annotated[int, typer.Option(help="Tokens to decode in each.", min=8)] = 64,
    threads: options.Threads = None,
    format: options.FormatOption = None,
    as_json: options.Json = False,
) -> None:
    """Compare decoding through local nodes with the same model in one process."""
    settings = options.settings(model=model, threads=threads, format=format)
    import trio

    from shoal.bench.overhead import Bench
    from shoal.bench.overhead import overhead as measure

    with working("getting ready") as progress:
        found = trio.run(measure, settings, Bench(nodes, tokens), progress)
    emit(found, as_json, lambda: SENTENCE.format(**found))


def _settings(model: str | None, format: str | None, threads: int | None) -> Settings:
    """The settings of a benchmark: everything that is measured takes the same number of threads."""
    import psutil

    settings = options.settings(model=model, format=format, threads=threads)
    return replace(settings, threads=settings.threads or psutil.cpu_count(logical=False) or 1)


def _formats(settings: Settings, otherwise: tuple[Format, ...]) -> tuple[Format, ...]:
    return otherwise if settings.format == "auto" else (settings.format,)


def _show(measure: Callable[[Progress], Awaitable[Report]], page: Path | None, as_json: bool) -> None:
    """Run a benchmark; print what it found, and write it as a page if one was asked for."""
    import trio

    with working("getting ready") as progress:

        async def run() -> Report:
            return await measure(progress)

        found = trio.run(run)
    from shoal.bench.page import page as drawn
    from shoal.bench.table import table

    if page is not None:
        page.write_text(drawn(found), encoding="utf-8")
        say(f"the report is in {page}")
    emit(found.as_json(), as_json, lambda: table(found))
