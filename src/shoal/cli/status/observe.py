"""Look at a swarm from inside: who is there, how far, over what. `status`, `peers` and `ping` show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import trio

from shoal.cli.status.machines import ask_machines
from shoal.cli.status.overview import Overview, PeerReach, ShownMachine, overview
from shoal.errors import NotRunning, ShoalError, UsageError
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement
from shoal.swarm.names import is_meant, name_of
from shoal.types import CarrierName, PeerId, Way
from shoal.wire.messages import Message

if TYPE_CHECKING:
    from shoal.cli.enter import Onlooker

HEAR_WITHIN_S = 3.0
"""Seconds that a newcomer waits to hear of anybody."""
PING_WITHIN_S = 5.0
LOOK_EVERY_S = 0.002
MEASURED = 64
"""Peers whose distance is measured; anybody can announce more."""


async def hear(swarm: Onlooker) -> Sequence[Announcement]:
    """Every announcement that is alive.

    Raises:
        NotRunning: nobody is there.
    """
    with trio.move_on_after(HEAR_WITHIN_S):
        while not swarm.announcements():
            await swarm.member.wait_changed()
    alive = swarm.announcements()
    if not alive and not swarm.network.connections():
        raise NotRunning(
            f"no peer of swarm {swarm.settings.swarm!r} can be reached",
            check="check that a node of it runs, here or where the invite came from",
            next_command="shoal up, or shoal doctor",
        )
    return alive


async def look(swarm: Onlooker, *, attested: bool = False) -> Overview:
    """The swarm with the way to each peer, and the round trip over it.

    Args:
        attested: ask the peers what they run on, too.

    Raises:
        NotRunning, UsageError: as :func:`hear` and :func:`shoal.cli.status.machines.ask_machines`.
    """
    alive = await hear(swarm)
    machines = await ask_machines(swarm, alive) if attested else None
    return seen(swarm, await reach_all(swarm, alive), machines)


def seen(
    swarm: Onlooker,
    reached: Mapping[PeerId, PeerReach],
    machines: Mapping[PeerId, ShownMachine] | None = None,
) -> Overview:
    """The swarm as it is known now, with the ways that were tried, and what peers have shown."""
    return overview(
        swarm.settings.swarm,
        swarm.network.peer,
        swarm.announcements(),
        swarm.network.connections(),
        reached,
        swarm.member.clock.wall(),
        known=swarm.member.directory.known,
        clocks=swarm.member.clock.doubts(),
        nat=swarm.network.reach().nat,
        machines=machines,
        estimated=swarm.member.size.peers if swarm.member.size.partial else 0,
    )


async def reach_all(swarm: Onlooker, alive: Sequence[Announcement]) -> dict[PeerId, PeerReach]:
    """How each of the first peers is reached: over a channel, as a session would."""
    reached: dict[PeerId, PeerReach] = {}

    async def reach(announcement: Announcement) -> None:
        pinged = await ping_one(swarm.network, announcement)
        rtt_s = None if pinged.rtt_ms is None else pinged.rtt_ms / 1e3
        reached[PeerId(announcement.peer)] = PeerReach(pinged.way if rtt_s is not None else "none", rtt_s)

    async with trio.open_nursery() as nursery:
        for announcement in alive[:MEASURED]:
            nursery.start_soon(reach, announcement)
    return reached


@dataclass(frozen=True, slots=True)
class Pinged:
    """What pinging one peer gave."""

    peer: str
    name: str
    carrier: CarrierName | Literal[""]
    """How the channel to it was made; empty when none was."""
    way: Way
    """Which way leads there."""
    rtt_ms: float | None
    """The round trip of a ping over that channel."""
    error: str = ""


async def ping(swarm: Onlooker, wanted: str | None) -> list[Pinged]:
    """Ping the peer that ``wanted`` names, or whose id ends with it; or every peer.

    Raises:
        NotRunning: nobody is there.
        UsageError: ``wanted`` means no peer, or more than one.
    """
    alive = choose(await hear(swarm), wanted)
    found: list[Pinged] = []

    async def one(announcement: Announcement) -> None:
        found.append(await ping_one(swarm.network, announcement))

    async with trio.open_nursery() as nursery:
        for announcement in alive:
            nursery.start_soon(one, announcement)
    return sorted(found, key=lambda pinged: pinged.peer)


def choose(alive: Sequence[Announcement], wanted: str | None) -> list[Announcement]:
    """The peers that ``wanted`` means; of all of them the first. Raises as :func:`ping`."""
    if wanted is None:
        return list(alive[:MEASURED])
    meant = [announcement for announcement in alive if is_meant(announcement.peer, wanted)]
    if len(meant) != 1:
        count = "there is no peer" if not meant else f"there are {len(meant)} peers"
        raise UsageError(
            f"{count} named {wanted!r} or with an id that ends in it",
            check="give a name or id that shoal peers lists",
            next_command="shoal peers",
        )
    return meant


async def ping_one(network: Network, announcement: Announcement) -> Pinged:
    """Open a channel to the peer, by whichever carrier works, and time a ping over it."""
    said = partial(Pinged, announcement.peer, name_of(announcement.peer))
    try:
        pipe = await network.open_pipe(announcement.address, deadline_s=PING_WITHIN_S)
    except ShoalError as error:
        return said("", "none", None, error.message)
    channel = Channel(pipe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, _ignore)
        try:
            await channel.wait_ready(PING_WITHIN_S)
            # A channel pings as soon as it is ready, and notes the round trip itself.
            with trio.move_on_after(PING_WITHIN_S):
                while channel.rtt_s is None:  # noqa: ASYNC110  it tells nobody
                    await trio.sleep(LOOK_EVERY_S)
        except ShoalError as error:
            return said(channel.carrier, channel.way, None, error.message)
        finally:
            channel.close()
    if channel.rtt_s is None:
        return said(channel.carrier, channel.way, None, f"no answer within {PING_WITHIN_S:.0f} s")
    return said(channel.carrier, channel.way, round(channel.rtt_s * 1000, 3))


async def _ignore(channel: Channel, message: Message, payload: bytes) -> None:
    """Nothing that a peer sends concerns one who only pings."""
