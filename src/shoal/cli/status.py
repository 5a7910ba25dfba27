"""`shoal status`, `shoal peers` and `shoal ping`: look at the swarm."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import options
from shoal.errors import ShoalError


def register(app: typer.Typer) -> None:
    app.command()(status)
    app.command()(peers)
    app.command()(ping)


def status(swarm: options.Swarm = None, public: options.Public = None, as_json: options.Json = False) -> None:
    """Show what the swarm serves. Names the blocks that nobody serves, and how fast each peer is."""
    settings = options.settings(swarm=swarm, public=public)
    raise ShoalError(f"looking at {settings.swarm} is not wired yet")


def peers(swarm: options.Swarm = None, public: options.Public = None, as_json: options.Json = False) -> None:
    """List the peers, with the path to each."""
    settings = options.settings(swarm=swarm, public=public)
    raise ShoalError(f"looking at {settings.swarm} is not wired yet")


def ping(
    peer: Annotated[
        str | None, typer.Argument(help="A peer id, or its end; every peer if not given.")
    ] = None,
    swarm: options.Swarm = None,
    public: options.Public = None,
    as_json: options.Json = False,
) -> None:
    """Measure the way to a peer. Says over which carrier it went."""
    settings = options.settings(swarm=swarm, public=public)
    raise ShoalError(f"pinging {peer or 'every peer'} of {settings.swarm} is not wired yet")
