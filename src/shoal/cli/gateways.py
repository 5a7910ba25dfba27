"""The life of a gateway: in a process of its own, or over a swarm that we are in already."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shoal.cli.inside import entered
from shoal.cli.output import say
from shoal.cli.serving import steady
from shoal.cli.turns import tell
from shoal.config import Settings
from shoal.errors import EXIT_INTERRUPTED, EXIT_OK
from shoal.tasks import one_error

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm


async def run(settings: Settings, *, as_json: bool) -> int:
    """Serve until a signal asks to stop; returns the exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        ShoalError: the swarm cannot be entered, or the port is taken.
    """
    async with entered(settings, create=True) as swarm, opened(swarm, settings) as url:
        steady()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            tell("gateway", as_json, url=url, peer=swarm.network.peer)
            asked = await anext(signals)
        tell("ended", as_json, drained=True)
    return EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_OK


@asynccontextmanager
async def opened(swarm: Swarm, settings: Settings) -> AsyncGenerator[str]:
    """A gateway over a swarm that we are in, until the block ends; gives its URL.

    Raises:
        PortInUse: the port is taken.
    """
    from shoal.gateway.app import Options, open_gateway
    from shoal.gateway.serve import serve

    if settings.gateway_host not in ("127.0.0.1", "::1", "localhost"):
        say("note: the gateway can be reached from other machines; it answers them with an API key alone")
    wanted = Options(settings.model, settings.paths.gateway, settings.gateway_origins)
    with one_error():
        async with open_gateway(swarm, wanted) as gateway, trio.open_nursery() as nursery:
            yield await nursery.start(serve, gateway.app, settings.gateway_host, settings.gateway_port)
            nursery.cancel_scope.cancel()
