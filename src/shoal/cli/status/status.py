"""`shoal status`, `shoal peers` and `shoal ping`: look at the swarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import options
from shoal.cli.enter import looking
from shoal.cli.output import emit, printable
from shoal.cli.progress import working
from shoal.cli.status.overview import Overview, peers_table, status_page
from shoal.config import Settings
from shoal.errors import EXIT_FAILURE, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.cli.enter import Onlooker
    from shoal.cli.status.observe import Pinged


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(peers)
    app.command()(ping)


def status(
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    trace: Annotated[
        bool,
        typer.Option("--trace", help="Show timings of recent steps, hop by hop, from this machine's nodes."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Update until Ctrl-C; with --json, one object per change.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show what the swarm serves: models, missing blocks, peers and their speed."""
    settings = options.settings(swarm=swarm, public=public, bootstrap=bootstrap)
    if trace and watch:
        raise UsageError("--trace and --watch cannot be combined", next_command="shoal status --watch")
    if trace:
        _trace(settings, as_json)
        return
    if watch:
        _watch(settings, as_json)
        return
    view = _look(settings)
    emit(view, as_json, lambda: status_page(view))


def peers(
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    attested: Annotated[
        bool, typer.Option("--attested", help="Ask the peers what they run on, and verify it.")
    ] = False,
    measurements: options.MeasurementsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """List the peers of the swarm, with the path to each."""
    settings = options.settings(swarm=swarm, public=public, bootstrap=bootstrap, measurements=measurements)
    view = _look(settings, attested=attested)
    found = {"swarm": view.swarm, "peer": view.peer, "peers": view.peers}
    emit(found, as_json, lambda: peers_table(view.peers, ids=True))


def ping(
    peer: Annotated[
        str | None, typer.Argument(help="A peer's name, its id or the end of that; all peers if not given.")
    ] = None,
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    bootstrap: options.BootstrapOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Measure latency to a peer, and show which way leads there over which carrier."""
    from shoal.cli.status import observe

    settings = options.settings(swarm=swarm, public=public, bootstrap=bootstrap)

    async def go(opened: Onlooker) -> list[Pinged]:
        with working("pinging"):
            return await observe.ping(opened, peer)

    found = looking(settings, go)
    emit({"swarm": settings.swarm, "peers": found}, as_json, lambda: pings_table(found))
    if any(pinged.rtt_ms is None for pinged in found):
        raise typer.Exit(EXIT_FAILURE)


def _trace(settings: Settings, as_json: bool) -> None:
    from shoal.cli.status.trace import recent, trace_page

    found = recent(settings)
    emit({"nodes": found}, as_json, lambda: trace_page(found))


def _look(settings: Settings, *, attested: bool = False) -> Overview:
    from shoal.cli.status import observe

    async def go(opened: Onlooker) -> Overview:
        with working("measuring latency to each peer"):
            return await observe.look(opened, attested=attested)

    return looking(settings, go)


def _watch(settings: Settings, as_json: bool) -> None:
    from shoal.cli.status.watch import live_view, watch

    async def go(opened: Onlooker) -> None:
        with live_view(as_json) as show:
            await watch(opened, show)

    looking(settings, go)


def pings_table(found: Sequence[Pinged]) -> Table:
    """One line a peer: which way leads there, how far it is and over what, or why it did not answer."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("peer", "way", "carrier", "rtt"):
        rows.add_column(heading, overflow="fold")
    for pinged in found:
        trip = printable(pinged.error) if pinged.rtt_ms is None else f"{pinged.rtt_ms:.2f} ms"
        rows.add_row(Text(printable(pinged.name)), pinged.way, pinged.carrier or "-", Text(trip))
    return rows
