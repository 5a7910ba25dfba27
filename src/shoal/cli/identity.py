"""`shoal identity`: this machine's identity. The private key itself is never printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from shoal.net.identity import Identity

from shoal.cli import options
from shoal.cli.output import emit
from shoal.errors import ShoalError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Show or create this machine's identity.", no_args_is_help=True)
    for command in (show, create, path):
        group.command()(command)
    app.add_typer(group, name="identity")


def show(as_json: options.JsonOption = False) -> None:
    """Print the peer id, which identifies this machine to other peers."""
    from shoal.net.identity import Identity

    where = options.settings().paths.identity
    try:
        identity = Identity.load(where)
    except FileNotFoundError:
        raise ShoalError(
            "this machine has no identity yet",
            check=f"see whether {where} was moved or deleted",
            next_command="shoal identity create",
        ) from None
    _print(identity, where, as_json)


def create(as_json: options.JsonOption = False) -> None:
    """Create an identity if there is none, and print its peer id. An existing key is kept."""
    from shoal.net.identity import Identity

    where = options.settings().paths.identity
    _print(Identity.load_or_create(where), where, as_json)


def path(as_json: options.JsonOption = False) -> None:
    """Print the path of the key file."""
    where = options.settings().paths.identity
    emit({"path": where, "exists": where.exists()}, as_json, lambda: str(where))


def _print(identity: Identity, where: Path, as_json: bool) -> None:
    emit({"peer": identity.peer, "path": where}, as_json, lambda: identity.peer)
