"""`shoal key`: keys for the gateway's API. A key is shown once, when it is made."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from shoal.gateway.database.database import Database

from shoal.cli import options
from shoal.cli.output import emit, say
from shoal.types import PROTECTION_LEVELS


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
    group.command()(create)
    group.command("list")(show)
    group.command()(revoke)
    group.command()(usage)
    app.add_typer(group, name="key")


def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Who or what uses the key, for example laptop.")
    ],
    requests: Annotated[int, typer.Option(min=0, help="Requests per minute; 0 means no limit.")] = 0,
    tokens: Annotated[int, typer.Option(min=0, help="Tokens per minute; 0 means no limit.")] = 0,
    concurrency: Annotated[int, typer.Option(min=0, help="Concurrent requests; 0 means no limit.")] = 0,
    admin: Annotated[
        bool, typer.Option("--admin", help="Allow this key to show invites to the swarm.")
    ] = False,
    attested_only: Annotated[
        bool,
        typer.Option("--attested-only", help="Answer this key by peers alone that show what they run on."),
    ] = False,
    protect: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PROTECTION_LEVELS),
            help="Protection of its answers; as the gateway has it if not given.",
        ),
    ] = None,
    database: options.DatabaseOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Create a key and print it once. From then on the gateway requires a key."""
    from shoal.gateway.access import keys

    limits = keys.KeyLimits(requests, tokens, concurrency)
    level = options.asked_protection(protect)
    with _opened(database) as found:
        key, caller = keys.create(
            found, name, limits, admin=admin, attested_only=attested_only, protect=level
        )
    emit({"key": key, "id": caller.id, "name": name}, as_json, lambda: key)
    if not as_json:
        say("save it now: only its hash is stored, so it cannot be shown again")


def show(database: options.DatabaseOption = None, as_json: options.JsonOption = False) -> None:
    """List the keys, without their secrets."""
    from shoal.gateway.access import keys

    with _opened(database) as opened:
        records = keys.list_keys(opened)
    found: list[dict[str, Any]] = [
        {
            "id": record.caller.id,
            "name": record.caller.name,
            "admin": record.caller.admin,
            "attested_only": record.caller.attested_only,
            "created": record.created,
            "revoked": record.revoked,
            "requests_per_minute": record.caller.limits.requests_per_minute,
            "tokens_per_minute": record.caller.limits.tokens_per_minute,
            "concurrency": record.caller.limits.concurrency,
            "protect": record.caller.protect,
        }
        for record in records
    ]
    shown = [
        key
        | {"created": _day(key["created"]), "revoked": _day(key["revoked"]), "protect": key["protect"] or ""}
        for key in found
    ]
    emit({"keys": found}, as_json, lambda: _table(shown) if shown else "no keys: shoal key create NAME")


def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id or its name.")],
    database: options.DatabaseOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Revoke a key. A running gateway refuses it within a second."""
    from shoal.gateway.access import keys

    with _opened(database) as found:
        caller = keys.revoke(found, key)
    emit({"id": caller.id, "name": caller.name}, as_json, lambda: f"revoked {caller.name} ({caller.id})")


def usage(database: options.DatabaseOption = None, as_json: options.JsonOption = False) -> None:
    """Show what each key has used, by day and model."""
    from shoal.gateway.access.usage import report

    with _opened(database) as opened:
        accounts = report(opened)
    found = [
        {
            "day": account.day,
            "key": account.caller,
            "model": account.model,
            "requests": used.requests,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
        }
        for account, used in accounts
    ]
    emit({"usage": found}, as_json, lambda: _table(found) if found else "no usage yet")


def _opened(url: str | None) -> AbstractContextManager[Database]:
    """The database of the gateways that the settings are for."""
    from shoal.gateway.database.opening import database_at

    settings = options.settings(database=url)
    return closing(database_at(settings.database, settings.paths.gateway))


def _day(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d", time.localtime(at))


def _table(found: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in found[0]:
        rows.add_column(heading.replace("_", " "), overflow="fold")
    for entry in found:
        rows.add_row(*(Text(str(value)) for value in entry.values()))
    return rows
