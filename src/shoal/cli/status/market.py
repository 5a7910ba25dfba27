"""`shoal market`: what the swarm offers, for people and for other programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import options
from shoal.cli.enter import looking
from shoal.cli.output import emit, printable
from shoal.cli.progress import working
from shoal.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group

    from shoal.cli.enter import Onlooker
    from shoal.swarm.market import Market


def register(app: typer.Typer) -> None:
    app.command()(market)


def market(
    swarm: options.SwarmOption = None,
    public: options.PublicOption = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the nodes as comma-separated values.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """List what the swarm offers: models, who serves which blocks, how fast, and with which protection.

    Nodes say so of themselves, but for who was found out: that this machine's audits know.
    """
    if as_csv and as_json:
        raise UsageError("--csv and --json cannot be combined", next_command="shoal market --csv")
    settings = options.settings(swarm=swarm, public=public)

    async def go(opened: Onlooker) -> Market:
        from shoal.cli.status.observe import hear
        from shoal.swarm.audit_book import AuditBook
        from shoal.swarm.market import market as offered

        with working("listening to the swarm"):
            alive = await hear(opened)
        liars = AuditBook(settings.paths.audits).liars(opened.member.clock.wall())
        return offered(settings.swarm, alive, liars)

    found = looking(settings, go)
    if as_csv:
        from shoal.swarm.market import as_csv as written

        sys.stdout.write(written(found))
        return
    emit(found, as_json, lambda: market_page(found))


def market_page(found: Market) -> Group:
    """Models first, then who serves them."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    models, spans = Table(box=None, pad_edge=False), Table(box=None, pad_edge=False)
    for heading in ("model", "blocks", "format", "peers", "tok/s", "protection"):
        models.add_column(heading, overflow="fold")
    for model in found.models:
        speed = "-" if model.tokens_per_s is None else f"{model.tokens_per_s:.1f}"
        levels = ", ".join(model.protection) or "incomplete"
        cells = (model.name, str(model.n_blocks), model.format, str(model.peers), speed, levels)
        models.add_row(*(Text(printable(cell)) for cell in cells))
    headings = (
        "peer",
        "model",
        "blocks",
        "format",
        "device",
        "tok/s",
        "free tokens",
        "price",
        "attests",
        "audits",
    )
    for heading in headings:
        spans.add_column(heading, overflow="fold")
    for span in found.spans:
        cells = (
            span.name,
            span.model,
            f"{span.start}:{span.end}",
            span.format,
            span.device or "-",
            "-" if span.tokens_per_s is None else f"{span.tokens_per_s:.1f}",
            str(span.tokens_free),
            span.price or "-",
            span.attests or "-",
            "found out" if span.found_out else "-",
        )
        spans.add_row(*(Text(printable(cell)) for cell in cells))
    hidden = found.peers_in_all - len(found.spans)
    more = [Text(f"{hidden} more peers are not listed")] if hidden > 0 else []
    none = [] if found.spans else [Text("no node serves a model; start one with: shoal up")]
    return Group(models, Text(""), spans, *more, *none)
