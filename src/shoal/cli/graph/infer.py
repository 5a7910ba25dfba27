"""`shoal infer`: run any graph that the swarm serves."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.output import check_output, emit, many, printable, say
from shoal.swarm.names import name_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from shoal.client.graph.encrypted_rows import Encryption
    from shoal.client.graph.graph_client import GraphAnswer
    from shoal.client.graph.input_files import GraphInput
    from shoal.client.graph.known_graph import KnownGraph
    from shoal.config import Settings

FAST_NOTE = "each part was optimised by itself: the bits are not those of the whole graph"
FIRST_SHOWN = 6
"""Numbers of an output that a reader is shown."""


def register(app: typer.Typer) -> None:
    app.command()(infer)


def infer(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="GRAPH", help="An .onnx file, or the name or digest of a graph that is served."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Option(
            "--input",
            metavar="NAME=FILE",
            help="An input, from a .npy, .npz, .json, .png, .jpg or .wav file; repeat the option for more. "
            "Without NAME= a .npz or .json file gives several by their names.",
        ),
    ],
    preprocess: Annotated[
        str,
        typer.Option(
            metavar="NAME=VALUE,…",
            help="How pictures and sounds become arrays, where the graph does not say it itself: shortest, "
            "size, resample, channels, scale, mean, std, layout, rate. For example size=224x224,scale=1/255,"
            "mean=0.485:0.456:0.406,std=0.229:0.224:0.225",
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the outputs to a .npz file, or a single one to a .npy file."
        ),
    ] = None,
    encrypted: Annotated[
        bool,
        typer.Option(
            "--encrypted",
            help="Encrypt the inputs: the node computes on what it cannot read, and only this machine can "
            "decrypt the outputs. For small linear and logistic models; takes the extra shoal[encrypted] "
            "here and at the node.",
        ),
    ] = False,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    threads: options.ThreadsOption = None,
    fast: options.FastOption = None,
    only: options.OnlyOption = None,
    private_ends: options.PrivateEndsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Run a graph: arrays in, arrays out."""
    from shoal.cli.graph.files import OUTPUTS, read_inputs, write_outputs
    from shoal.models.graph.preprocess import Preprocess

    settings = options.settings(
        swarm=swarm, public=public, threads=threads, fast=fast, only=only, private_ends=private_ends
    )
    check_output(output, *OUTPUTS)
    Preprocess.parse(preprocess)
    known, answer = run_graph(settings, graph, read_inputs(inputs), preprocess, encrypted=encrypted)
    if output is not None:
        write_outputs(output, answer.outputs)
    fields = infer_fields(known, answer, with_data=as_json and output is None)
    emit(fields, as_json, lambda: outputs_table(fields))
    if answer.encryption is not None:
        say(encryption_note(answer.encryption), dim=True)
    elif settings.fast:
        say(FAST_NOTE, dim=True)
    for own in answer.own:
        say(f"segments {own.span} were computed here, in {own.compute_ms:.1f} ms", dim=True)
    if answer.own and answer.exposed:
        say(f"warning: peers got as they are: {', '.join(map(printable, answer.exposed))}")
    for peer in answer.lost:
        say(f"went on without {name_of(peer)}")
    hops = many(len(answer.route), "hop")
    say(f"{sum(stage.compute_ms for stage in answer.route):.1f} ms of computing over {hops}", dim=True)


def run_graph(
    settings: Settings,
    graph: str,
    inputs: Mapping[str, GraphInput],
    preprocess: str = "",
    *,
    encrypted: bool = False,
) -> tuple[KnownGraph, GraphAnswer]:
    """Join the swarm and ask. Raises as :meth:`shoal.client.swarm.Swarm.run`."""
    import trio

    from shoal.cli.enter import enter_swarm
    from shoal.cli.progress import working

    async def go() -> tuple[KnownGraph, GraphAnswer]:
        async with enter_swarm(settings) as swarm:
            with working(f"reading {graph}"):
                known = await swarm.graphs.resolve(graph, encrypted=encrypted)
            with working(f"asking {known.name}"):
                ask = swarm.graphs.infer_encrypted if encrypted else swarm.graphs.infer
                return known, await ask(known, inputs, preprocess)

    return trio.run(go)


def infer_fields(known: KnownGraph, answer: GraphAnswer, *, with_data: bool) -> dict[str, Any]:
    """What a graph gave as ``--json`` shows it; with all numbers unless they were written to a file."""
    return {
        "graph": known.name,
        "digest": known.digest,
        "outputs": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)}
            | ({"data": array.tolist()} if with_data else {})
            | {"first": array.ravel()[:FIRST_SHOWN].tolist()}
            for name, array in answer.outputs.items()
        },
        "route": [
            {
                "peer": stage.peer,
                "name": name_of(stage.peer),
                "start": stage.span.start,
                "end": stage.span.end,
                "carrier": stage.carrier,
                "compute_ms": round(stage.compute_ms, 3),
                "waiting_ms": round(stage.waiting_ms, 3),
            }
            for stage in answer.route
        ],
        "lost": list(answer.lost),
        "own": [own.shown() for own in answer.own],
        "exposed_inputs": list(answer.exposed),
        "encrypted": None if answer.encryption is None else asdict(answer.encryption),
    }


def encryption_note(encryption: Encryption) -> str:
    """What a reader should know of an answer to encrypted inputs."""
    return (
        f"inputs and outputs were encrypted ({encryption.parameters}, {encryption.sent_bytes / 1e6:.1f} MB "
        f"sent), which adds at most {encryption.error:.1g} to a score. Nobody checks that the node computed "
        "with the graph's weights"
    )


def outputs_table(fields: dict[str, Any]) -> Table:
    """One line an output: its shape, its type and its first numbers."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("output", "type", "shape", "values"):
        rows.add_column(heading, overflow="fold")
    for name, output in fields["outputs"].items():
        shape, first = output["shape"], output["first"]
        numbers = " ".join(f"{n:.6g}" if isinstance(n, float) else str(n) for n in first)
        rows.add_row(
            Text(printable(name)),
            output["dtype"],
            "×".join(map(str, shape)) or "-",
            numbers + (" …" if math.prod(shape) > len(first) else ""),
        )
    return rows
