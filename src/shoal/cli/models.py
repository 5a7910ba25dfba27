"""`shoal models`: the models on this machine and those that can be had."""

from __future__ import annotations

import typer

from shoal.cli import options
from shoal.errors import ShoalError


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Models: list, pull, rm, show.", no_args_is_help=True)
    group.command("list")(list_models)
    app.add_typer(group, name="models")


def list_models(as_json: options.Json = False) -> None:
    """List the catalogue and what is on this machine."""
    options.settings()
    raise ShoalError("models are not wired yet")
