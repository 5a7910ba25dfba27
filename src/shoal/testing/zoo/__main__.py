"""``python -m shoal.testing.zoo``: fifteen graphs in two, three and five parts, held against the whole."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import msgspec
import trio
import typer
from rich.console import Console
from rich.table import Table

from shoal.cli import main
from shoal.cli.progress import working
from shoal.errors import UsageError
from shoal.models.graph.graph_store import GraphStore
from shoal.testing.zoo.cutting import ZOO, CutGraph, cut_graph, write_graph
from shoal.testing.zoo.processes import KilledGraph, kill_a_hop

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def zoo(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="All of them by default.")] = None,
    parts: Annotated[str, typer.Option(help="In how many parts each is cut.")] = "2,3,5",
    folder: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where graphs and imports stay for the next time.")
    ] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Over three node processes instead, one of which is killed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a graph.")] = False,
) -> None:
    """Cut graphs into parts on nodes of their own; exit code 1 where one has other bits than the whole."""
    chosen = names or list(ZOO)
    if unknown := [name for name in chosen if name not in ZOO]:
        raise UsageError(f"there is no graph {unknown[0]!r} here", check=f"choose of {', '.join(ZOO)}")
    try:
        numbers = [int(number) for number in parts.split(",")]
    except ValueError as error:
        raise UsageError(f"--parts is {parts!r}", check="write numbers, such as 2,3,5") from error
    with TemporaryDirectory(prefix="shoal-zoo-") as scratch:
        home = folder or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        if processes:
            killed = [_kill(name, home) for name in chosen]
            raise typer.Exit(not all(graph.same for graph in killed))
        found = [_cut(name, home, numbers, as_json=as_json) for name in chosen]
    if not as_json:
        Console().print(_table(found, numbers))
    if not all(cut.same for graph in found for cut in graph.cuts):
        raise typer.Exit(1)


def _cut(name: str, home: Path, parts: list[int], *, as_json: bool) -> CutGraph:
    with working(f"writing {name}"):
        file, inputs = write_graph(name, home)
    with working(f"importing {name}"):
        graph = GraphStore(home / "graphs").resolve(str(file))
    with working(f"cutting {name}"):
        cut = trio.run(cut_graph, name, graph, inputs, home / "nodes", parts)
    if as_json:
        print(msgspec.json.encode(cut).decode(), flush=True)  # noqa: T201 - what the command is for
    return cut


def _kill(name: str, home: Path) -> KilledGraph:
    with working(f"writing {name}"):
        file, inputs = write_graph(name, home)
    with working(f"importing {name}"):
        graph = GraphStore(home / "graphs").resolve(str(file))
    with working(f"asking {name}"):
        killed = trio.run(kill_a_hop, name, graph, file, inputs, home)
    print(msgspec.json.encode(killed).decode(), flush=True)  # noqa: T201 - as above
    return killed


def _table(found: list[CutGraph], parts: list[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("graph", "segments", "MiB", "whole ms", *(f"{number} parts" for number in parts)):
        table.add_column(heading, justify="left" if heading == "graph" else "right")
    for graph in found:
        cuts = {cut.parts: cut for cut in graph.cuts}
        shown = [cuts.get(min(number, graph.segments)) for number in parts]
        table.add_row(
            graph.name,
            str(graph.segments),
            f"{graph.weights / (1 << 20):.1f}",
            f"{graph.whole_ms:.1f}",
            *(f"{'same' if cut.same else 'OTHER'} {cut.compute_ms:.1f}" if cut else "-" for cut in shown),
        )
    return table


if __name__ == "__main__":
    sys.exit(main.run(sys.argv[1:], app, "python -m shoal.testing.zoo"))
