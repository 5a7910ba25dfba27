"""`shoal audits`: what audits have cost and found on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.trust.audit_record import AuditRecord


def register(app: typer.Typer) -> None:
    app.command()(audits)


def audits(
    forget: Annotated[
        str | None,
        typer.Option(metavar="PEER", help="Forget what was found of a peer, by its id, its end or name."),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Show what audits and canaries have cost on this machine, and who was found out.

    A peer that was found out is avoided by this machine's clients, and its nodes place themselves as if it
    served nothing. Clients that run keep to what they know; --forget counts from the next one on.
    """
    import msgspec

    from shoal.swarm.audit_book import AuditBook

    book = AuditBook(options.settings().paths.audits)
    if forget is not None:
        forgotten = book.change(lambda record: _without(record, forget))
        if not as_json:
            say(f"forgot what was found of {forgotten}")
    record, avoided = book.read(), book.liars(time.time())
    found: dict[str, Any] = {
        "share": round(record.account.share, 4),
        "canaries": {
            "sent": record.canaries.sent,
            **msgspec.structs.asdict(record.canaries),
            "share": round(record.account.canary_share, 4),
        },
        "found": [
            {
                "peer": one.peer,
                "at": one.at,
                "digest": one.digest,
                "start": one.start,
                "end": one.end,
                "canary": one.canary,
                "avoided": one.peer in avoided,
            }
            for one in record.convictions
        ],
    }
    emit(found, as_json, lambda: _table(found) if found["found"] else f"nobody was found out; {_cost(found)}")


def _without(record: AuditRecord, wanted: str) -> tuple[AuditRecord, str]:
    """A record without the one peer that is meant.

    Raises:
        UsageError: none is, or several.
    """
    from shoal.swarm.names import is_meant

    meant = [one.peer for one in record.convictions if is_meant(one.peer, wanted)]
    if len(meant) != 1:
        count = "no peer" if not meant else f"{len(meant)} peers"
        raise UsageError(f"{count} that was found out is {wanted!r}", next_command="shoal audits")
    return record.pardon(meant[0]), meant[0]


def _cost(found: dict[str, Any]) -> str:
    said = f"audits took {found['share']:.1%} of the compute of audited answers"
    canaries = found["canaries"]
    if not canaries["sent"]:
        return said
    sent = "1 canary was" if canaries["sent"] == 1 else f"{canaries['sent']} canaries were"
    without = canaries["open"] + canaries["failed"]
    named = f"{canaries['cheat']} found somebody out, {without} had no clear end"
    return f"{said}, {canaries['share']:.1%} of it for canaries; {sent} sent, {named}"


def _table(found: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from shoal.swarm.names import name_of

    rows = Table(
        box=None,
        pad_edge=False,
        caption=_cost(found),
        caption_justify="left",
    )
    for heading in ("peer", "found out", "by", "blocks", "avoided", "id"):
        rows.add_column(heading, overflow="fold")
    for one in found["found"]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one["at"]))
        by, avoided = "canary" if one["canary"] else "audit", "yes" if one["avoided"] else "no longer"
        blocks = f"{one['start']}:{one['end']}"
        rows.add_row(name_of(one["peer"]), when, by, blocks, avoided, Text(one["peer"]))
    return rows
