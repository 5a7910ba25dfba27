"""`shoal key`: this machine's identity. The private key itself is never printed."""

from __future__ import annotations

import typer

from shoal.cli import options
from shoal.cli.output import emit
from shoal.errors import ShoalError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="This machine's identity.", no_args_is_help=True)
    for command in (show, create, path):
        group.command()(command)
    app.add_typer(group, name="key")


def show(as_json: options.Json = False) -> None:
    """Print the peer id that others know this machine by."""
    raise ShoalError("identities are not wired yet")


def create(as_json: options.Json = False) -> None:
    """Make an identity if there is none yet, and print its peer id."""
    raise ShoalError("identities are not wired yet")


def path(as_json: options.Json = False) -> None:
    """Print where the key is kept."""
    where = options.settings().paths.identity
    emit({"path": where, "exists": where.exists()}, as_json, lambda: str(where))
