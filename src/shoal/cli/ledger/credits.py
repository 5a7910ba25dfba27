"""`shoal credits`: what peers of the swarm gave this machine, and took from it. No chain is needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, printable

if TYPE_CHECKING:
    from rich.console import Group

    from shoal.ledger.credits.credit_file import KeptCredits


def register(app: typer.Typer) -> None:
    app.command()(credits)


def credits(swarm: options.SwarmOption = None, as_json: options.JsonOption = False) -> None:
    """Show what peers of the swarm gave this machine and took from it, in tokens times blocks.

    They are kept by `shoal serve --credits on`, and by clients with the same option."""
    from shoal.ledger.credits.credit_file import CreditFile

    settings = options.settings(swarm=swarm)
    kept = CreditFile.of(settings.paths.credits, settings.swarm).read()
    found = _fields(kept, settings.swarm, time.time())
    emit(found, as_json, lambda: _tables(found))


def _fields(kept: KeptCredits, swarm: str, now: float) -> dict[str, Any]:
    from shoal.ledger.credits.credit_book import ALLOWANCE
    from shoal.types import PeerId

    peers = {*kept.book.peers, *kept.words}
    rows: list[dict[str, Any]] = []
    for peer in peers:
        account = kept.book.peers.get(peer)
        word = kept.words.get(peer)
        rows.append(
            {
                "peer": peer,
                "given": account.given if account else 0,
                "taken": account.taken if account else 0,
                "balance": account.balance if account else 0,
                "may_take": kept.book.credit(PeerId(peer), {}),
                "signed_for_us": word.units if word else 0,
            }
        )
    rows.sort(key=lambda row: (-row["balance"], row["peer"]))
    hosts = [
        {"host": host, "taken": round(debt.left(now)), "allowance": ALLOWANCE}
        for host, debt in sorted(kept.book.hosts.items())
        if debt.left(now) >= 1
    ]
    return {"swarm": swarm, "unit": "tokens times blocks", "peers": rows, "without_credit": hosts}


def _tables(found: dict[str, Any]) -> Group | str:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from shoal.swarm.names import name_of

    if not found["peers"] and not found["without_credit"]:
        return "nobody has given or taken anything yet; nodes and clients count it with --credits on"
    peers = Table(box=None, pad_edge=False)
    peers.add_column("peer")
    for heading in ("gave us", "took", "balance", "may take", "signed for us"):
        peers.add_column(heading, justify="right")
    for row in found["peers"]:
        figures = (row[name] for name in ("given", "taken", "balance", "may_take", "signed_for_us"))
        peers.add_row(Text(printable(name_of(row["peer"]))), *(f"{units:,}" for units in figures))
    hosts = Table("without credit, from", box=None, pad_edge=False)
    hosts.add_column("took of its allowance", justify="right")
    for row in found["without_credit"]:
        hosts.add_row(Text(printable(row["host"]) or "hosts that are not known"), f"{row['taken']:,}")
    return Group(peers, Text(""), hosts) if found["without_credit"] else Group(peers)
