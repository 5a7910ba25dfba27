"""``shoal.connect``: one door for synchronous, asyncio and trio callers.

    with shoal.connect() as swarm:                    # synchronous
        for delta in swarm.generate("SmolLM2-135M-Instruct", "The sea is"):
            print(delta.text, end="")

    async with shoal.connect() as swarm:              # trio or asyncio
        async for delta in swarm.generate("SmolLM2-135M-Instruct", "The sea is"):
            print(delta.text, end="")

The swarm itself runs on trio. A trio caller uses it as it is; the others reach it through a portal to a
thread that runs it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import sniffio
import trio
from anyio.from_thread import start_blocking_portal

from shoal import config
from shoal.client.paying.accounts import HopAccounts
from shoal.client.paying.acknowledging import Acknowledging
from shoal.client.portal import AsyncioSwarm, SyncSwarm
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.ledger.credits.credit_file import CreditFile
from shoal.models.store.store import ModelStore
from shoal.net.identity import Identity
from shoal.net.network import Network
from shoal.swarm import membership
from shoal.swarm.invite import read_invite
from shoal.swarm.join import enter_network, join_swarm
from shoal.swarm.member import Member
from shoal.swarm.membership import Membership
from shoal.tasks import one_error
from shoal.types import PeerId


def connect(
    swarm: str | None = None, *, invite: str | None = None, identity: Identity | None = None, **options: Any
) -> Connection:
    """Take part in a swarm as a client.

    Args:
        swarm: a swarm that this machine has joined, by its name; by default the ``swarm`` setting.
        invite: an invite code, for a swarm that this machine has not joined.
        identity: as :func:`open_swarm` has it.
        options: any field of :class:`shoal.config.Settings`.

    Raises:
        UsageError: an option that cannot be, or a swarm that this machine is not in.
        BadInvite: the code cannot be read.
    """
    settings = config.load({**options, "swarm": swarm})
    member_of = read_invite(invite) if invite else membership.load(settings.paths.swarms, settings.swarm)
    return Connection(settings, member_of, identity)


@asynccontextmanager
async def open_swarm(
    settings: Settings, member_of: Membership, identity: Identity | None = None
) -> AsyncGenerator[Swarm]:
    """The swarm for a trio caller, until the block ends. A client has an identity for the occasion.

    Args:
        identity: under which others can reach this peer, as members of a federated run must; it then listens.

    Raises:
        NotAllowed: the public swarm without the ``public`` setting, or a swarm that refuses us.
        PortInUse: a port was asked for and is taken.
    """
    store = ModelStore(settings.paths.models)
    with one_error():
        async with (
            join_swarm(
                settings, member_of, identity or Identity.ephemeral(), listen=identity is not None
            ) as (network, member),
            trio.open_nursery() as nursery,
        ):
            another = partial(_another_identity, settings, member_of)
            accounts = await accounts_for(network.peer, settings)
            other = partial(_another_member, settings, member_of)
            swarm = Swarm(network, member, settings, store, another, accounts, other)
            await nursery.start(swarm.move_messages)
            try:
                yield swarm
            finally:
                nursery.cancel_scope.cancel()


async def accounts_for(client: PeerId, settings: Settings) -> HopAccounts:
    """In whose name a client asks, and from which wallet it pays, as the settings want it.

    Raises:
        NotAllowed, BadLedgerFile, ShoalError: the node's key, or the wallet, cannot be used.
        UsageError: a payment needs what is not set, or not here.
        ChainError: the chain's node is away, or is of another chain.
    """
    named = None
    if settings.credits:
        identity = Identity.load_or_create(settings.paths.identity)
        file = CreditFile.of(settings.paths.credits, settings.swarm)
        named = Acknowledging(file, identity, client, time.time)
    if not settings.pay_budget:
        return HopAccounts(named)
    from shoal.client.paying.start import wallet_payer  # noqa: PLC0415  needs an extra

    return HopAccounts(named, await trio.to_thread.run_sync(wallet_payer, client, settings))


def _another_identity(settings: Settings, member_of: Membership) -> AbstractAsyncContextManager[Network]:
    """One more place in the swarm, which nobody knows to be ours: whoever is asked for an audit sees this."""
    quiet = replace(settings, mdns=False, port_map=False)
    return enter_network(quiet, member_of, Identity.ephemeral(), listen=False)


def _another_member(
    settings: Settings, member_of: Membership
) -> AbstractAsyncContextManager[tuple[Network, Member]]:
    """One more client of the swarm, which nobody knows to be ours: it joins as every other does."""
    quiet = replace(settings, mdns=False, port_map=False, otlp_endpoint="")
    return join_swarm(quiet, member_of, Identity.ephemeral(), listen=False)


class Connection:
    """What :func:`connect` returns: enter it with ``with`` or ``async with``."""

    def __init__(self, settings: Settings, member_of: Membership, identity: Identity | None = None) -> None:
        self._settings = settings
        self._membership = member_of
        self._identity = identity
        self._stack = ExitStack()
        self._native: AbstractAsyncContextManager[Swarm] | None = None

    def __enter__(self) -> SyncSwarm:
        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal("trio", name="shoal"))
            opening = portal.wrap_async_context_manager(
                open_swarm(self._settings, self._membership, self._identity)
            )
            swarm = SyncSwarm(portal, stack.enter_context(opening))
            self._stack = stack.pop_all()
        return swarm

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    async def __aenter__(self) -> Swarm | AsyncioSwarm:
        if sniffio.current_async_library() == "trio":
            self._native = open_swarm(self._settings, self._membership, self._identity)
            return await self._native.__aenter__()
        entered = await asyncio.to_thread(self.__enter__)
        return AsyncioSwarm(entered.portal, entered.swarm)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._native is not None:
            await self._native.__aexit__(kind, error, trace)
        else:
            await asyncio.to_thread(self.__exit__, kind, error, trace)
