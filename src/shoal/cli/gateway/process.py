"""The life of a gateway: in a process of its own, or over a swarm that we are in already."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from shoal.cli.doctor import checks
from shoal.cli.enter import enter_swarm
from shoal.cli.node.process import steady
from shoal.cli.node.turns import tell
from shoal.cli.output import say
from shoal.config import Settings
from shoal.errors import EXIT_INTERRUPTED, EXIT_OK
from shoal.local.ending import stop_signals
from shoal.swarm import membership
from shoal.swarm.join import reachable
from shoal.tasks import one_error

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm
    from shoal.gateway.app import PaidDoor
    from shoal.swarm.membership import Membership


async def run(settings: Settings, *, as_json: bool) -> int:
    """Serve until a signal asks to stop; returns the exit code: 130 after Ctrl-C, otherwise 0.

    Raises:
        ShoalError: the swarm cannot be entered, or the port is taken.
    """
    async with enter_swarm(settings, create=True) as swarm, gateway_on(swarm, settings) as url:
        steady()
        with trio.open_signal_receiver(*stop_signals()) as signals:
            tell("gateway", as_json, url=url, peer=swarm.network.peer)
            asked = await anext(signals)
        tell("ended", as_json, drained=True)
    return EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_OK


@asynccontextmanager
async def gateway_on(
    swarm: Swarm, settings: Settings, *, inside: Membership | None = None
) -> AsyncGenerator[str]:
    """A gateway over a swarm that we are in, until the block ends; gives its URL.

    Args:
        inside: the swarm, where this machine has not joined it.

    Raises:
        PortInUse: the port is taken.
        OutOfResources: its database cannot be read.
        UsageError, ChainError: it is to be paid, and that cannot be.
    """
    from shoal.gateway.app import Options, open_gateway
    from shoal.gateway.database.opening import database_at
    from shoal.gateway.serve import serve
    from shoal.gateway.stored.expiry import Keeping

    if settings.gateway_host not in ("127.0.0.1", "::1", "localhost"):
        say("note: other machines can reach the gateway; they need an API key")

    def invite() -> Membership:
        return inside or reachable(settings, membership.load(settings.paths.swarms, settings.swarm))

    payment: PaidDoor | None = None
    if settings.payment:  # else nothing of chains is imported
        from shoal.gateway.payment.opening import paid_door

        payment = await trio.to_thread.run_sync(paid_door, settings)
    database = database_at(settings.database, settings.paths.gateway)
    wanted = Options(
        settings.model,
        database,
        settings.swarm,
        invite,
        partial(_health, settings),
        settings.gateway_origins,
        Keeping(settings.store_days),
        payment,
    )
    with one_error(), closing(database):
        async with open_gateway(swarm, wanted) as gateway, trio.open_nursery() as nursery:
            if settings.ollama_port:
                await nursery.start(serve, gateway.app, settings.gateway_host, settings.ollama_port)
            yield await nursery.start(serve, gateway.app, settings.gateway_host, settings.gateway_port)
            nursery.cancel_scope.cancel()


def _health(settings: Settings) -> list[dict[str, Any]]:
    """The doctor's findings, as the page shows them.

    A gateway has an identity for the occasion, and may be in a swarm that this machine has not joined: it
    does not ask for what only a node would need.
    """
    joined = settings.swarm in membership.names(settings.paths.swarms)
    moot = checks.SLOW | checks.JOINING | ({"identity"} if joined else {"identity", "swarms"})
    found = [checks.run(name, settings) for name in checks.CHECKS if name not in moot]
    return [
        {
            "name": finding.name,
            "ok": finding.verdict != "fail",
            "severity": "error" if finding.verdict == "fail" else finding.verdict,
            "message": finding.detail,
            "check": "" if _is_command(finding.fix) else finding.fix,
            "next_command": finding.fix if _is_command(finding.fix) else "",
        }
        for finding in found
    ]


def _is_command(text: str) -> bool:
    return text.startswith(("shoal ", "make ", "pip "))
