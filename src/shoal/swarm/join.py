"""Into a swarm: a network and a member in it, from settings and a membership."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from shoal.config import Settings
from shoal.errors import NotAllowed
from shoal.metrics.otel import exporting
from shoal.net.addresses import host_and_port, is_loopback, split_bootstrap, to_multiaddr, version_of
from shoal.net.identity import Identity
from shoal.net.network import Network
from shoal.option_values import parse_public_address
from shoal.swarm.local_nodes import running_nodes
from shoal.swarm.member import Member
from shoal.swarm.membership import Membership
from shoal.tasks import one_error
from shoal.trust.operator import OperatorStatement

PUBLIC_NOTICE = (
    "This is the public swarm: every peer can see your address and what you serve, and the nodes of a route "
    "see the hidden states of your text, from which it can be guessed."
)

INVITED = 8
"""Addresses that an invite holds."""

log = logging.getLogger(__name__)


@asynccontextmanager
async def join_swarm(
    settings: Settings,
    membership: Membership,
    identity: Identity,
    *,
    listen: bool,
    operator: OperatorStatement | None = None,
) -> AsyncGenerator[tuple[Network, Member]]:
    """Take part in a swarm until the block ends.

    Args:
        listen: accept connections of other peers, as a node does; a client need not.
        operator: whose machine a node announces that it is.

    Raises:
        NotAllowed: the public swarm, and the ``public`` setting does not allow it.
        PortInUse: a port was asked for and is taken.
    """
    if membership.secret is None and not settings.public:
        raise NotAllowed(
            "the public swarm is open to everyone, and these settings do not allow it",
            check=PUBLIC_NOTICE,
            next_command="the same command with --public",
        )
    with one_error(), exporting(settings.otlp_endpoint, "shoal", identity.peer):
        async with (
            enter_network(settings, membership, identity, listen=listen) as network,
            trio.open_nursery() as nursery,
        ):
            member = Member(
                network,
                announce_s=settings.announce_s,
                expiry_s=settings.expiry_s,
                swarm=membership.secret or b"",
                bootstrap=(*_here(settings, membership), *membership.bootstrap, *settings.bootstrap),
                operator=operator,
            )
            await nursery.start(member.run)
            try:
                yield network, member
            finally:
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def enter_network(
    settings: Settings, membership: Membership, identity: Identity, *, listen: bool
) -> AsyncGenerator[Network]:
    """A place in a swarm's network until the block ends, without being a member: peers can be dialled.

    Raises:
        PortInUse: a port was asked for and is taken.
    """
    from shoal.net.host import NetworkSettings, open_network  # noqa: PLC0415  libp2p takes a second to import

    network_settings = NetworkSettings(
        identity,
        membership.secret,
        host=settings.host,
        port=settings.port if listen else 0,
        direct_port=settings.direct_port if listen else 0,
        forwarded=tuple(map(parse_public_address, settings.public_address)),
        listen=listen,
        direct=settings.direct,
        relay=settings.relay,
        port_map=settings.port_map,
        mdns=settings.mdns,
        iroh=settings.iroh,
        iroh_relays=settings.iroh_relay,
    )
    async with open_network(network_settings) as network:
        yield network


def reachable(settings: Settings, membership: Membership) -> Membership:
    """The membership as it is handed on: with where its nodes on this machine can be reached.

    A code is typed and scanned: the machine's own addresses come first, and only a few.
    """
    here = _here(settings, membership)
    addresses = dict.fromkeys(
        [*_forwarded(settings, here), *here, *settings.bootstrap, *membership.bootstrap]
    )
    return replace(membership, bootstrap=tuple(addresses)[:INVITED])


def _forwarded(settings: Settings, here: Sequence[str]) -> list[str]:
    """Where ``public_address`` leads to the same nodes, whether they were told of it or not."""
    found: list[str] = []
    for host in (host for host, port in map(parse_public_address, settings.public_address) if not port):
        for own, peer in map(split_bootstrap, here):
            if version_of(own) == version_of(at := to_multiaddr(host, (host_and_port(own) or ("", 0))[1])):
                found.append(f"{at}/p2p/{peer}")
    return found


def here_only(membership: Membership) -> bool:
    """Whether all of a swarm's addresses are of the machine's own interface, where no other can join."""
    hosts = [host_and_port(address.rpartition("/p2p/")[0]) for address in membership.bootstrap]
    return bool(hosts) and all(host is not None and is_loopback(host[0]) for host in hosts)


def _here(settings: Settings, membership: Membership) -> list[str]:
    """Addresses of the swarm's nodes on this machine, which need no discovery."""
    nodes = running_nodes(settings.paths.nodes)
    return [address for node in nodes if node.swarm == membership.name for address in node.addresses]
